"""What a request's response_format and tools mean for its prompt, for what may be written, and for how it is read."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from pocketvlm.messages import ChatRequest, Message
from pocketvlm.native.grammar import Constraint
from pocketvlm.prompt import ChatTemplate, Span, TextSpan
from pocketvlm.structured import tools as calling
from pocketvlm.structured.reading import THINK, THOUGHT, Reader
from pocketvlm.structured.schema import json_rule

_ANYTHING = r"/(.|\n)*/"


@dataclass(frozen=True)
class Plan:
    """`spans` is the prompt; `constraint` what the answer is held to, if to anything."""

    spans: tuple[Span, ...]
    constraint: Constraint | None
    _calls: bool
    _thinks: bool
    _thinking: bool
    _stops: tuple[str, ...]

    def reader(self) -> Reader:
        """For one answer."""
        return Reader(self._stops, tools=self._calls, thinks=self._thinks, thinking=self._thinking)


def plan(request: ChatRequest, template: ChatTemplate) -> Plan:
    """Raises RequestError with the path of the field at fault."""
    shown = () if request.tool_choice == "none" else request.tools or ()
    messages: list[Message] = list(request.messages)
    told = template.knows_tools
    if not told:
        messages = calling.spelled(messages)
    first = (
        calling.described(shown, request.tool_prompt) if shown and not told else request.tool_prompt if shown else None
    )
    if first:
        messages = calling.told(messages, first, system=template.takes_system)
    as_given: list[dict[str, Any]] | None = None
    if shown and told:
        as_given = [tool.model_dump(exclude_none=True) for tool in shown]
    spans = template.render(messages, tools=as_given, effort=request.reasoning_effort)
    last = spans[-1] if spans else None
    thinking = isinstance(last, TextSpan) and last.special and last.text.rstrip().endswith(THINK)
    constraint, whole = _constraint(request, thinks=template.thinks, thinking=thinking)
    # A stop string would cut what must be whole.
    stops = () if whole else request.stop or ()
    return Plan(spans, constraint, bool(shown), template.thinks, thinking, stops)


def _constraint(request: ChatRequest, *, thinks: bool, thinking: bool) -> tuple[Constraint | None, bool]:
    """And whether all content is of a given form."""
    rules: list[str] = []
    forms: list[str] = []
    free = True
    form, choice = request.response_format, request.tool_choice or "auto"
    shown = () if choice == "none" else request.tools or ()
    param = "tools"
    must = bool(shown) and choice != "auto"
    if form is not None and form.type != "text":
        schema: Any = None
        param = "response_format"
        if form.type == "json_schema":
            schema, param = form.json_schema.schema_, "response_format.json_schema.schema"
        elif form.value is not None:
            schema, param = form.value, "response_format.value"
        free = False
        if not must:
            rules.append(f"body: {json_rule({'type': 'object'} if schema is None else schema, param)}")
            forms.append("body")
    if shown:
        chosen = list(range(len(shown)))
        several = request.parallel_tool_calls is not False
        if not isinstance(choice, str):
            chosen = [i for i in chosen if shown[i].function.name == choice.function.name][:1]
            several = False
        rules.append(calling.calls_rules(shown, chosen, several=several))
        if must or not free:
            forms.append(f'"{calling.BEGIN}" calls')
            param = "tools" if must else param
        else:
            rules.append(f'trigger[lazy]: {_ANYTHING} "{calling.BEGIN}"')
            without = [calling.BEGIN, *([THINK] if thinks else [])]
            kept = "".join(f" & ~/(.|\\n)*{mark}(.|\\n)*/" for mark in without)
            rules.append(f"FREE: {_ANYTHING}{kept}")
            forms += ["FREE", "trigger calls"]
    if not rules:
        return None, False
    before = ""
    if thinking or thinks:
        opened = "" if thinking else THINK
        rules.append(f"thought[lazy]: /{opened}(.|\\n)*{THOUGHT.replace('/', chr(92) + '/')}/")
        before = "thought /\\n{0,2}/ " if thinking else "(thought /\\n{0,2}/)? "
    start = f"start: {before}({' | '.join(forms)})"
    return Constraint("\n".join(["%llguidance {}", start, *rules]), param), not free
