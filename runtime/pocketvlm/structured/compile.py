"""What a request's response_format and tools mean for its prompt, for what may be written, and for how it is read."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from pocketvlm.messages import ChatRequest, Message
from pocketvlm.native.grammar import Constraint
from pocketvlm.structured import tools as calling
from pocketvlm.structured.output_parser import THINK, THINK_END, OutputParser
from pocketvlm.structured.schema import json_rule
from pocketvlm.structured.tool_call_format import HERMES, ToolCallFormat
from pocketvlm.templates.prompt import ChatTemplate, Span, TextSpan

_DEFAULTS = {"name": "", "description": "", "parameters": {"type": "object", "properties": {}}}  # templates need all
_ANYTHING = r"/(.|\n)*/"


@dataclass(frozen=True)
class CompiledRequest:
    """`spans` is the prompt; `constraint` what the answer is held to, if to anything."""

    spans: tuple[Span, ...]
    constraint: Constraint | None
    _form: ToolCallFormat | None
    _thinks: bool
    _thinking: bool
    _stops: tuple[str, ...]

    def reader(self) -> OutputParser:
        """For one answer."""
        return OutputParser(self._stops, form=self._form, thinks=self._thinks, thinking=self._thinking)


def compile_request(
    request: ChatRequest, template: ChatTemplate, form: ToolCallFormat | None = None
) -> CompiledRequest:
    """`form`: the template's own for calls, if it has one. Raises RequestError with the path of the field at fault."""
    shown = () if request.tool_choice == "none" else request.tools or ()
    messages: list[Message] = list(request.messages)
    told = form is not None
    form = form or HERMES
    if not told:
        messages = calling.spelled(messages)
    elif form.short_ids:
        messages = calling.numbered(messages)
    first = (
        calling.described(shown, request.tool_prompt) if shown and not told else request.tool_prompt if shown else None
    )
    if first:
        messages = calling.told(messages, first, system=template.takes_system)
    as_given: list[dict[str, Any]] | None = None
    if shown and told:
        as_given = [{"type": "function", "function": {**_DEFAULTS, **calling.plain(tool)}} for tool in shown]
    style = {"text_arguments": form.text_arguments, "no_content": form.no_content}
    spans = template.render(messages, tools=as_given, effort=request.reasoning_effort, **style)
    last = spans[-1] if spans else None
    thinking = isinstance(last, TextSpan) and last.special and last.text.rstrip().endswith(THINK)
    constraint, whole = _constraint(request, form, thinks=template.thinks, thinking=thinking)
    # A stop string would cut what must be whole.
    stops = () if whole else request.stop or ()
    return CompiledRequest(spans, constraint, form if shown else None, template.thinks, thinking, stops)


def _constraint(
    request: ChatRequest, form: ToolCallFormat, *, thinks: bool, thinking: bool
) -> tuple[Constraint | None, bool]:
    """And whether all content is of a given form."""
    rules: list[str] = []
    forms: list[str] = []
    free = True
    given, choice = request.response_format, request.tool_choice or "auto"
    shown = () if choice == "none" else request.tools or ()
    param = "tools"
    must = bool(shown) and choice != "auto"
    if given is not None and given.type != "text":
        schema: Any = None
        param = "response_format"
        if given.type == "json_schema":
            schema, param = given.json_schema.schema_, "response_format.json_schema.schema"
        elif given.value is not None:
            schema, param = given.value, "response_format.value"
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
        rules.append(calling.calls_rules(shown, chosen, form, several=several))
        if must or not free:
            forms.append(f"{form.rule(form.mark)} calls")
            param = "tools" if must else param
        else:
            rules += _free(form, thinks=thinks)
            forms += ["FREE", "trigger calls"]
    if not rules:
        return None, False
    before = ""
    if thinking or thinks:
        opened = "" if thinking else THINK
        rules.append(f"thought[lazy]: /{opened}(.|\\n)*{THINK_END.replace('/', chr(92) + '/')}/")
        before = "thought /\\n{0,2}/ " if thinking else "(thought /\\n{0,2}/)? "
    start = f"start: {before}({' | '.join(forms)})"
    return Constraint("\n".join(["%llguidance {}", start, *rules]), param), not free


def _free(form: ToolCallFormat, *, thinks: bool) -> list[str]:
    """Rules FREE, text without a call, and `trigger`, text up to the mark of one."""
    anything = f"{_ANYTHING} & ~/(.|\\n)*{THINK}(.|\\n)*/" if thinks else _ANYTHING
    mark = re.escape(form.mark).replace("/", r"\/")
    if form.mark in form.controls:  # no text can hold it
        return [f"FREE: {anything}", f"trigger: FREE {form.rule(form.mark)}"]
    if not form.anywhere:
        return [f"FREE: {anything} & ~/\\s*{mark}(.|\\n)*/", rf"trigger: /\s{{0,4}}/ {form.rule(form.mark)}"]
    return [
        f"FREE: {anything} & ~/(.|\\n)*{mark}(.|\\n)*/",
        f"trigger[lazy]: {_ANYTHING} {form.rule(form.mark)}",
    ]
