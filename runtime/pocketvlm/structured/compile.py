"""Compile a request: its `response_format` and `tools` into a prompt, a grammar of the answer, and a parser for it."""

from __future__ import annotations

import logging
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from typing import Any

from pocketvlm.errors import ModelError, RequestError
from pocketvlm.messages import AssistantMessage, ChatRequest, Message, TextPart, Tool
from pocketvlm.messages.tools import NamedTool, names_in, requires_call
from pocketvlm.native.grammar import Constraint, SchemaRule
from pocketvlm.structured.begun_answer import begun_answer, is_placeholder, text_of, without_white_space
from pocketvlm.structured.output_parser import OutputParser
from pocketvlm.structured.schema import KEYWORDS, compile_schema
from pocketvlm.structured.tool_call_format import HERMES, ToolCallFormat
from pocketvlm.structured.tools import (
    argument_schemas,
    call_rules,
    calls_as_text,
    describe_tools,
    function_fields,
    with_instructions,
    with_short_ids,
)
from pocketvlm.templates.prompt import ChatTemplate, ImageSpan, Span, TextSpan, isolate_control_tokens, joined
from pocketvlm.templates.thoughts import THINK, THINK_END

logger = logging.getLogger(__name__)
_DEFAULT_FIELDS = {"name": "", "description": "", "parameters": {"type": "object", "properties": {}}}
_ANY_TEXT = r"/(.|\n)*/"


@dataclass(frozen=True)
class AnswerForm:
    """A form of the content that is not a schema. `rules` are llguidance's Lark and define `body`."""

    rules: str
    param: str  # what errors name


@dataclass(frozen=True)
class CompiledRequest:
    """`spans` is the prompt, `constraint` the grammar of the answer, if it has one.

    `begun` is the last message if the answer continues it; with `raw`, it continues the prompt. `not_enforced` are the
    paths of the keywords of schemas that the grammar leaves out.
    """

    spans: tuple[Span, ...]
    constraint: Constraint | None
    _call_format: ToolCallFormat | None
    _thinks: bool
    _thinking: bool
    _stops: tuple[str, ...]
    begun: AssistantMessage | None = None
    not_enforced: tuple[str, ...] = ()
    raw: bool = False
    _names: tuple[str, ...] = ()  # of the functions that can be called

    @property
    def thinking(self) -> bool:
        """Whether the prompt ends within a thought."""
        return self._thinking

    def output_parser(self, controls: Mapping[str, int] | None = None) -> OutputParser:
        """Return a parser for one answer. `controls` are ids of control tokens that are content, by their text."""
        return OutputParser(
            self._stops,
            call_format=self._call_format,
            thinks=self._thinks,
            thinking=self._thinking,
            continues=self.raw or self.begun is not None,
            names=self._names,
            controls=controls,
        )


def compile_request(
    request: ChatRequest,
    template: ChatTemplate,
    call_format: ToolCallFormat | None = None,
    form: AnswerForm | None = None,
) -> CompiledRequest:
    """Compile a request for a model with this `template`. With a `form`, it has neither tools nor a response format.

    `call_format` is the template's own form of tool calls. Without one, the prompt describes the tools and the form of
    Hermes models in words. Raises RequestError with the path of the wrong field.
    """
    tools = _offered_tools(request)
    template_has_calls = call_format is not None
    call_format = call_format or HERMES
    begun = begun_answer(request)
    messages: list[Message] = list(request.messages)
    only_thought = begun is not None and not text_of(begun).strip()
    only_new = is_placeholder(request) or (only_thought and not template.thinks)
    if only_new:
        begun = None
        messages = messages[:-1] or messages
    if not template_has_calls:
        messages = calls_as_text(messages)
    elif call_format.short_ids:
        messages = with_short_ids(messages)
    instructions = request.tool_prompt if tools else None
    template_tools: list[dict[str, Any]] | None = None
    if tools and template_has_calls:
        # Templates expect all of a function's fields.
        functions = [{**_DEFAULT_FIELDS, **function_fields(tool)} for tool in tools]
        template_tools = [{"type": "function", "function": function} for function in functions]
    elif tools:
        instructions = describe_tools(tools, request.tool_prompt)
    if instructions:
        messages = with_instructions(messages, instructions, system=template.takes_system)
    try:
        spans = template.render(
            messages,
            tools=template_tools,
            effort=request.effort,
            variables=request.template_variables,
            text_arguments=call_format.text_arguments,
            no_content=call_format.no_content,
            add_generation_prompt=only_new or request.add_generation_prompt is not False,
            continue_final_message=begun is not None,
        )
    except ModelError as error:
        if request.chat_template_kwargs:  # a template fails where a variable is of another type
            raise RequestError(error.message, "chat_template_kwargs") from None
        raise
    thinks = template.thinks
    if begun is not None:
        thinks = thinking = only_thought  # behind the beginning of a text there is no thought
    else:
        last = spans[-1] if spans else None
        thinking = isinstance(last, TextSpan) and last.special and last.text.rstrip().endswith(THINK)
    constraint, not_enforced = _constraint(request, call_format, form, thinks=thinks, thinking=thinking)
    if not_enforced:  # property names are the client's, keywords are not
        keywords = sorted({path.rpartition(".")[2] for path in not_enforced} & KEYWORDS)
        logger.warning("schemas of this request are not enforced wholly: %s", ", ".join(keywords) or "some parts")
    if begun is not None and constraint is not None and not thinking:
        text = text_of(begun)
        constraint = replace(constraint, begun=without_white_space(text) if _content_schema(request) else text)
    return CompiledRequest(
        spans,
        constraint,
        call_format if tools else None,
        thinks,
        thinking,
        # A stop string would cut content that must be complete.
        () if _content_schema(request) else request.stop or (),
        begun,
        tuple(not_enforced),
        _names=tuple(tool.function.name for tool in tools),
    )


def compile_raw(
    request: ChatRequest, control_tokens: Collection[str], form: AnswerForm | None = None
) -> CompiledRequest:
    """Compile a request whose only message is the whole prompt: text with control tokens, and pictures.

    No template writes anything around it, so the caller decides which control tokens it has. The answer is text, or
    follows `response_format` or `form`. Raises RequestError.
    """
    content = request.messages[0].content or ""
    spans: list[Span] = []
    for part in (content,) if isinstance(content, str) else content:
        if isinstance(part, str | TextPart):
            spans.append(TextSpan(part if isinstance(part, str) else part.text, special=True))
        else:
            spans.append(ImageSpan(sum(isinstance(span, ImageSpan) for span in spans)))
    constraint, not_enforced = _constraint(request, HERMES, form, thinks=False, thinking=False)
    return CompiledRequest(
        isolate_control_tokens(joined(spans), control_tokens),
        constraint,
        None,
        _thinks=False,
        _thinking=False,
        _stops=() if _content_schema(request) else request.stop or (),
        not_enforced=tuple(not_enforced),
        raw=True,
    )


def _offered_tools(request: ChatRequest) -> tuple[Tool, ...]:
    return () if request.tool_choice == "none" else request.tools or ()


@dataclass(frozen=True)
class _ContentSchema:
    """The schema of the content, and the path of its field."""

    schema: Any
    param: str
    strict: bool


def _content_schema(request: ChatRequest) -> _ContentSchema | None:
    """Return None where the content is free text."""
    form = request.response_format
    if form is None or (content := form.content_schema()) is None:
        return None
    schema, field = content
    return _ContentSchema(schema, f"response_format.{field}", form.is_strict)


def _constraint(
    request: ChatRequest, call_format: ToolCallFormat, form: AnswerForm | None, *, thinks: bool, thinking: bool
) -> tuple[Constraint | None, list[str]]:
    """Return the grammar of the answer, None where any text will do, and what of schemas it does not enforce."""
    tools, names = _offered_tools(request), names_in(request.tool_choice)
    must_call = bool(tools) and requires_call(request.tool_choice)
    content = _content_schema(request)
    pretty = request.json_whitespace == "pretty"
    rules: list[str] = []
    schemas: list[SchemaRule] = []
    not_enforced: list[str] = []
    alternatives: list[str] = []
    param = "tools"
    if form is not None:
        param = form.param
        rules.append(form.rules)
        alternatives.append("body")
    if content is not None and not must_call:
        param = content.param
        compiled = compile_schema(content.schema, param, owner="response_format", strict=content.strict, pretty=pretty)
        schemas.append(SchemaRule("body", compiled.rule, param))
        not_enforced += compiled.left_out
        alternatives.append("body")
    if tools:
        chosen = list(range(len(tools)))
        several = request.parallel_tool_calls is not False
        if names is not None:
            chosen = [i for i in chosen if tools[i].function.name in names]
        if isinstance(request.tool_choice, NamedTool):
            chosen, several = chosen[:1], False
        rules.append(call_rules(tools, chosen, call_format, several=several))
        arguments, left_out = argument_schemas(tools, chosen, pretty=pretty)
        schemas += arguments
        not_enforced += left_out
        if must_call or content is not None:
            alternatives.append(f"{call_format.rule(call_format.mark)} calls")
        else:
            rules += _free_text_rules(call_format, thinks=thinks)
            alternatives += ["FREE", "trigger calls"]
    if not alternatives:
        return None, []
    thought = ""
    if thinking or thinks:
        opening = "" if thinking else THINK
        rules.append(f"thought[lazy]: /{opening}(.|\\n)*{THINK_END.replace('/', chr(92) + '/')}/")
        thought = "thought /\\n{0,2}/ " if thinking else "(thought /\\n{0,2}/)? "
    start = f"start: {thought}({' | '.join(alternatives)})"
    return Constraint("\n".join(["%llguidance {}", start, *rules]), param, tuple(schemas)), not_enforced


def _free_text_rules(call_format: ToolCallFormat, *, thinks: bool) -> list[str]:
    """Return the rules FREE, text without a call, and `trigger`, text up to the mark of a call."""
    text = f"{_ANY_TEXT} & ~/(.|\\n)*{THINK}(.|\\n)*/" if thinks else _ANY_TEXT
    mark, mark_rule = re.escape(call_format.mark).replace("/", r"\/"), call_format.rule(call_format.mark)
    if call_format.mark in call_format.controls:  # no text can contain it
        return [f"FREE: {text}", f"trigger: FREE {mark_rule}"]
    if not call_format.anywhere:
        return [f"FREE: {text} & ~/\\s*{mark}(.|\\n)*/", rf"trigger: /\s{{0,4}}/ {mark_rule}"]
    return [f"FREE: {text} & ~/(.|\\n)*{mark}(.|\\n)*/", f"trigger[lazy]: {_ANY_TEXT} {mark_rule}"]
