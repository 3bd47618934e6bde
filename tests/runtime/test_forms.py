"""How calls are written, read back from templates in the styles that models have, written for these tests."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any

import pytest

from pocketvlm.messages import ChatRequest
from pocketvlm.structured.compile import compile_request
from pocketvlm.structured.output_parser import OutputParser, OutputPiece
from pocketvlm.structured.tool_call_format import HOLE, ToolCallFormat, detect_tool_call_format
from pocketvlm.templates.prompt import ChatTemplate, TextSpan

EOS = "<eos>"
TOOL = {"type": "function", "function": {"name": "look", "parameters": {"type": "object"}}}
SHOWN = "{% if tools %}[TOOLS]{{ tools | tojson }}[/TOOLS]{% endif %}"
REFUSED = "{{ raise_exception('nine letters and digits') }}"
# Each: before the calls, a call, between calls, behind them; of one assistant's turn.
LIST_WITH_IDS = (
    "[TOOL_CALLS][{% for call in m.tool_calls %}{% if call.id | length != 9 %}" + REFUSED + "{% endif %}"
    '{"name": "{{ call.function.name }}", "arguments": {{ call.function.arguments | tojson }}, "id": "{{ call.id }}"}'
    "{% if not loop.last %}, {% endif %}{% endfor %}]"
)
TAGGED = (
    "{% for call in m.tool_calls %}"
    "<function={{ call.function.name }}>{{ call.function.arguments | tojson }}</function>{% endfor %}"
)
BARE = (
    "{% if m.tool_calls | length > 1 %}{{ raise_exception('one at once') }}{% endif %}"
    '{"name": "{{ m.tool_calls[0].function.name }}", '
    '"parameters": {{ m.tool_calls[0].function.arguments | tojson }}}'
)
NUMBERED = (
    "<|ACTION|>[\n{% for call in m.tool_calls %}"
    '    {"tool_call_id": "{{ loop.index0 }}", "tool_name": "{{ call.function.name }}", '
    '"parameters": {{ call.function.arguments | tojson }}}{{ ",\n" if not loop.last }}{% endfor %}'
    '{{ "\n]" }}<|END_ACTION|>'
)
TEXT_ONLY = (
    "{% if m.content is none %}<|calls|>{% for call in m.tool_calls %}"
    "<|call|>{{ call.function.name + '\n```json\n' + call.function.arguments + '\n```<|end_call|>' }}"
    "{% endfor %}<|end_calls|>{% endif %}"
)
XML = (
    "{% for call in m.tool_calls %}<tool_call>\n<function={{ call.function.name }}>\n"
    "{% for key, value in call.function.arguments | items %}"
    "<parameter={{ key }}>\n{{ value }}\n</parameter>\n{% endfor %}</function>\n</tool_call>{% endfor %}"
)
DROPPED = ""
TO_A_CHANNEL = (
    " to={{ m.tool_calls[0].function.name }}<|channel|>json<|message|>{{ m.tool_calls[0].function.arguments | tojson }}"
)


def template(calls: str, *, shown: str = SHOWN, results: str = "{{ m.content }}") -> str:
    return (
        shown + "{% for m in messages %}{% if m.role == 'tool' %}<|tool|>" + results + "<|end|>\n"
        "{% elif m.tool_calls %}<|assistant|>" + calls + "<|end|>\n"
        "{% else %}<|{{ m.role }}|>{{ m.content }}<|end|>\n{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}<|assistant|>{% endif %}"
    )


CONTROLS = {"[TOOL_CALLS]": 7, "<|ACTION|>": 8, "<|calls|>": 9, "<|end|>": 10}


def form(source: str) -> ToolCallFormat | None:
    return detect_tool_call_format(ChatTemplate(source), CONTROLS, {"<|end|>"})


def texts(found: ToolCallFormat | None) -> tuple[str | None, ...]:
    assert found is not None
    return found.opening, found.middle, found.gap, found.closing, found.mark


def test_forms() -> None:
    found = form(template(LIST_WITH_IDS))
    gap = f', "id": "{HOLE}"}}, {{"name": "'
    middle = '", "arguments": '
    assert texts(found) == ('[TOOL_CALLS][{"name": "', middle, gap, f', "id": "{HOLE}"}}]', "[TOOL_CALLS]")
    assert found is not None and found.short_ids and found.controls == {"[TOOL_CALLS]": 7}
    assert texts(form(template(TAGGED))) == (
        "<function=",
        ">",
        "</function><function=",
        "</function>",
        "<function=",
    )
    found = form(template(BARE))
    assert texts(found) == ('{"name": "', '", "parameters": ', None, "}", '{"name": "')
    assert found is not None and not found.anywhere
    before = f'    {{"tool_call_id": "{HOLE}", "tool_name": "'
    assert texts(form(template(NUMBERED))) == (
        f"<|ACTION|>[\n{before}",
        '", "parameters": ',
        f"}},\n{before}",
        "}\n]<|END_ACTION|>",
        "<|ACTION|>",
    )
    found = form(template(TEXT_ONLY))
    behind = "\n```<|end_call|>"
    assert texts(found) == (
        "<|calls|><|call|>",
        "\n```json\n",
        f"{behind}<|call|>",
        f"{behind}<|end_calls|>",
        "<|calls|>",
    )
    assert found is not None and found.text_arguments and found.no_content


@pytest.mark.parametrize(
    "source",
    [
        template(XML),
        template(DROPPED),
        template(TO_A_CHANNEL),
        template(TAGGED, shown=""),
        template(TAGGED, results=""),
        template(TAGGED).replace("<function=", "<|end|>"),  # would end the answer
        template("{{ m.tool_calls[0].function.arguments | tojson }}{{ m.tool_calls[0].function.name }}"),
        template("{{ m.tool_calls }}"),
        template("{{ m.missing.field }}"),
    ],
)
def test_no_form_and_so_told_in_text(source: str) -> None:
    assert form(source) is None
    call = {"id": "1", "type": "function", "function": {"name": "look", "arguments": {"side": "left"}}}
    turn = [{"role": "user", "content": "hi"}, {"role": "assistant", "tool_calls": [call]}]
    made = compile_request(ChatRequest.parse(turn, tools=[TOOL]), ChatTemplate(source), None)
    told = "".join(span.text for span in made.spans if isinstance(span, TextSpan))
    assert '{"name": "look"' in told and "To call one" in told
    assert '<tool_call>\n{"name": "look", "arguments": {"side": "left"}}\n</tool_call>' in told


WRITTEN = {
    LIST_WITH_IDS: '[TOOL_CALLS][{"name": "look", "arguments": %s, "id": "abc123XYZ"}, '
    '{"name": "go", "arguments": {}, "id": "000000001"}]',
    TAGGED: "<function=look>%s</function><function=go>{}</function>",
    NUMBERED: '<|ACTION|>[\n    {"tool_call_id": "0", "tool_name": "look", "parameters": %s},\n'
    '    {"tool_call_id": "1", "tool_name": "go", "parameters": {}}\n]<|END_ACTION|>',
    TEXT_ONLY: "<|calls|><|call|>look\n```json\n%s\n```<|end_call|>"
    "<|call|>go\n```json\n{}\n```<|end_call|><|end_calls|>",
}


@pytest.mark.parametrize("size", [1, 3, 1000])
@pytest.mark.parametrize("calls", WRITTEN)
def test_reading(calls: str, size: int) -> None:
    arguments = '{"a": "}</function>]", "b": [1]}'
    found = read(template(calls), f"Well.\n{WRITTEN[calls] % arguments}", size)
    assert found == [
        ("content", "Well.\n"),
        ("call", "look"),
        ("arguments", arguments),
        ("call", "go"),
        ("arguments", "{}"),
    ]


@pytest.mark.parametrize("size", [1, 3, 1000])
def test_bare_json_is_a_call_only_at_the_beginning(size: int) -> None:
    call = '{"name": "look", "parameters": {"a": 1}}'
    source = template(BARE)
    assert read(source, f" \n{call}", size) == [("call", "look"), ("arguments", '{"a": 1}')]
    assert read(source, f"See: {call}", size) == [("content", f"See: {call}")]
    assert read(source, '{"nam', size) == [("content", '{"nam')]
    assert read(source, '{"names": 1}', size) == [("content", '{"names": 1}')]


def read(source: str, text: str, size: int) -> list[tuple[str, str]]:
    reader = OutputParser((), call_format=form(source), thinks=False, thinking=False)
    pieces: list[OutputPiece] = []
    data = text.encode()
    for at in range(0, len(data), size):
        pieces += reader.push(data[at : at + size])
    found: list[tuple[str, str]] = []
    for piece in [*pieces, *reader.finish()]:
        if found and found[-1][0] == piece.kind:
            found.append((piece.kind, found.pop()[1] + piece.text))
        else:
            found.append((piece.kind, piece.text))
    return found


def test_a_control_token_is_known_by_its_number() -> None:
    reader = OutputParser((), call_format=form(template(LIST_WITH_IDS)), thinks=False, thinking=False)
    assert reader.push(b"", 7) == []
    assert reader.push(b"", 10) == []  # of another, nothing is said
    assert reader.push(b'[{"name": "look", "arguments": {}', 99) == [
        OutputPiece("call", "look"),
        OutputPiece("arguments", "{}"),
    ]


def test_ids_that_a_template_refuses_are_numbered() -> None:
    source = template(LIST_WITH_IDS, results="{{ m.tool_call_id }}={{ m.content }}")
    calls = [
        {"id": f"call_{i}{'0' * 20}", "type": "function", "function": {"name": "look", "arguments": "{}"}}
        for i in range(2)
    ]
    turn: list[Any] = [{"role": "user", "content": "hi"}, {"role": "assistant", "tool_calls": calls}]
    turn += [{"role": "tool", "tool_call_id": call["id"], "content": call["id"][:6]} for call in reversed(calls)]
    made = compile_request(ChatRequest.parse(turn, tools=[TOOL]), ChatTemplate(source), form(source))
    told = "".join(span.text for span in made.spans if isinstance(span, TextSpan))
    assert '"id": "000000000"}, {' in told and "<|tool|>000000001=call_1" in told and "<|tool|>000000000=call_0" in told


def test_more_calls_than_a_template_can_write_at_once() -> None:
    calls = [{"id": i, "type": "function", "function": {"name": "look", "arguments": "{}"}} for i in "ab"]
    turn = [{"role": "user", "content": "hi"}, {"role": "assistant", "tool_calls": calls}]
    made = compile_request(ChatRequest.parse(turn, tools=[TOOL]), ChatTemplate(template(BARE)), form(template(BARE)))
    told = "".join(span.text for span in made.spans if isinstance(span, TextSpan))
    assert told.count('<|assistant|>{"name": "look", "parameters": {}}<|end|>') == 2


def test_a_template_that_goes_through_tools_without_asking() -> None:
    source = template(TAGGED, shown="{% for tool in tools %}{{ tool | tojson }}{% endfor %}")
    made = compile_request(ChatRequest.parse([{"role": "user", "content": "hi"}]), ChatTemplate(source), form(source))
    assert made.spans[1] == TextSpan("hi", False)


@pytest.mark.skipif("POCKETVLM_TEMPLATES" not in os.environ, reason="POCKETVLM_TEMPLATES names no folder of *.jinja")
def test_templates_of_others() -> None:
    """Where a template has a form, what it writes itself is read back whole; it reads two calls in any pieces."""
    derived = 0
    for path in sorted(Path(os.environ["POCKETVLM_TEMPLATES"]).glob("*.jinja")):
        source = path.read_text("utf-8")
        ends = {"<|im_end|>", "<|eot_id|>", "<|eom_id|>", EOS, "<|end|>", "<|message_sep|>", "<|END_OF_TURN_TOKEN|>"}
        names = {*re.findall(r"<\|[^|<>\s]{1,40}\|>|\[/?[A-Z_]{3,30}\]|<SPECIAL_\d+>", source), EOS, *ends}
        made = ChatTemplate(source, bos="<bos>", eos=EOS)
        found = detect_tool_call_format(made, {name: number for number, name in enumerate(sorted(names))}, ends)
        if found is None:
            continue
        derived += 1
        function = {"name": "look.at", "arguments": json.dumps({"a": "}'\"", "b": [1, {"c": None}]})}
        calls = [{"id": f"abcdefgh{i}", "type": "function", "function": function} for i in range(1 + bool(found.gap))]
        asked: list[Any] = [
            {"role": "user", "content": "what-now"},
            {"role": "assistant", "content": "", "tool_calls": calls},
        ]
        asked += [{"role": "tool", "content": "done", "tool_call_id": call["id"], "name": "look.at"} for call in calls]
        spans = compile_request(ChatRequest.parse(asked, tools=[TOOL]), made, found).spans
        told = "".join(span.text for span in spans if isinstance(span, TextSpan))
        text = told[told.index("what-now") :]
        reader = OutputParser((), call_format=found, thinks=False, thinking=False)
        pieces = [*reader.push(text[text.index(found.mark) :].encode()), *reader.finish()]
        assert [piece.text for piece in pieces if piece.kind == "call"] == ["look.at"] * len(calls), path.name
        for piece in pieces:
            if piece.kind == "arguments":
                assert json.loads(piece.text) == json.loads(function["arguments"]), path.name
    assert derived
