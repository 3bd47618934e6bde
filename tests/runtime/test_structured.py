"""Tool calls and thoughts, read as they come; templates that know tools, and those that do not."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from pocketvlm.messages import ChatRequest
from pocketvlm.structured.compile import CompiledRequest, compile_raw, compile_request
from pocketvlm.structured.output_parser import OutputParser, OutputPiece
from pocketvlm.structured.tool_call_format import HERMES, detect_tool_call_format
from pocketvlm.templates.prompt import ChatTemplate, ImageSpan, TextSpan

TOOL = {"type": "function", "function": {"name": "look", "parameters": {"type": "object"}}}
CALL = {"id": "1", "type": "function", "function": {"name": "look", "arguments": '{"side": "left <|im_end|>"}'}}
HI = {"role": "user", "content": "hi"}
TURN = [HI, {"role": "assistant", "tool_calls": [CALL]}, {"role": "tool", "tool_call_id": "1", "content": "a wall"}]
# In the style of models that were trained on calls.
KNOWS = """
{%- if tools %}<|im_start|>system
Tools:{% for tool in tools %}
{{ tool | tojson }}{% endfor %}
Write <tool_call>
{"name": ..., "arguments": ...}
</tool_call><|im_end|>
{% endif -%}
{%- for message in messages -%}
<|im_start|>{{ message.role }}
{{ message.content }}
{%- for call in message.tool_calls or [] %}
<tool_call>
{"name": "{{ call.function.name }}", "arguments": {{ call.function.arguments | tojson }}}
</tool_call>
{%- endfor %}<|im_end|>
{% endfor -%}
{%- if add_generation_prompt %}<|im_start|>assistant
{% endif -%}
"""
PLAIN = """
{%- for message in messages -%}
<|im_start|>{{ message.role }}
{{ message.content }}<|im_end|>
{% endfor -%}
{%- if add_generation_prompt %}<|im_start|>assistant
{% endif -%}
"""
NO_SYSTEM = "{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('no') }}{% endif %}" + (
    "{{ m.role + ': ' + m.content }}{% endfor %}"
)


def planned(template: str, messages: list[Any] | None = None, **fields: Any) -> CompiledRequest:
    made = ChatTemplate(template)
    return compile_request(
        ChatRequest.parse(messages or [HI], **fields), made, detect_tool_call_format(made, {}, {"<|im_end|>"})
    )


def told(made: CompiledRequest, *, special: bool | None = None) -> str:
    spans = [span for span in made.spans if isinstance(span, TextSpan)]
    return "".join(span.text for span in spans if special is None or span.special == special)


def read(text: str, size: int, *, stops: tuple[str, ...] = (), **options: Any) -> list[OutputPiece]:
    """Neighbouring pieces of one kind as one."""
    reader = OutputParser(stops, **{"call_format": HERMES, "thinks": False, "thinking": False, **options})
    data = text.encode()
    pieces: list[OutputPiece] = []
    for at in range(0, len(data), size):
        pieces += reader.push(data[at : at + size])
        if reader.stopped:
            break
    found: list[OutputPiece] = []
    for piece in [*pieces, *reader.finish()]:
        same = found and (found[-1].kind, found[-1].index) == (piece.kind, piece.index) and piece.kind != "call"
        if same:
            piece = OutputPiece(piece.kind, found.pop().text + piece.text, piece.index)
        found.append(piece)
    return found


@pytest.mark.parametrize("size", [1, 2, 3, 7, 1000])
def test_reading(size: int) -> None:
    one = '<tool_call>\n{"name": "look", "arguments": {"a": "</tool_call> } \\" é", "b": [{}]}}\n</tool_call>'
    two = '<tool_call>\n{"name": "go", "arguments": {}}\n</tool_call>'
    calls = [
        OutputPiece("call", "look", 0),
        OutputPiece("arguments", '{"a": "</tool_call> } \\" é", "b": [{}]}', 0),
        OutputPiece("call", "go", 1),
        OutputPiece("arguments", "{}", 1),
    ]
    assert read(f"{one}\n{two}", size) == calls
    assert read(f" Let me <tool see.\n{one}\n{two}", size) == [OutputPiece("content", "Let me <tool see.\n"), *calls]
    assert read("a <tool_cal", size) == [OutputPiece("content", "a <tool_cal")]
    assert read(two, size, call_format=None) == [OutputPiece("content", two)]
    assert read(f"say STOP {two}", size, stops=("STOP",)) == [OutputPiece("content", "say ")]
    assert read(f"{one}", size, stops=("look",)) == calls[:2]
    bare = replace(HERMES, opening='{"name": "', mark='{"name": "', anywhere=False)
    assert read('STO{"name": "f"', size, stops=("STOP",), call_format=bare) == [
        OutputPiece("content", 'STO{"name": "f"')
    ]
    thought = [OutputPiece("reasoning", "hm\n\nhm"), OutputPiece("content", "yes")]
    assert read("<think>\nhm\n\nhm\n</think>\n\nyes", size, thinks=True) == thought
    assert read("\nhm\n\nhm\n</think>\n\nyes", size, thinks=True, thinking=True) == thought
    assert read("<think>\nhm\n\nhm\n</think>\n\nyes\n\nno", size, stops=("\n\n",), thinks=True) == thought
    assert read("<think>hm", size, thinks=True) == [OutputPiece("reasoning", "hm")]
    assert read("<thin", size, thinks=True) == [OutputPiece("content", "<thin")]
    assert read("yes <think>", size, thinks=True) == [OutputPiece("content", "yes <think>")]


def test_a_template_that_knows_tools() -> None:
    assert detect_tool_call_format(ChatTemplate(KNOWS), {}, {"<|im_end|>"}) == replace(
        HERMES, gap=HERMES.gap.replace("call>\n<", "call><")
    )
    made = planned(KNOWS, TURN, tools=[TOOL])
    assert '"look"' in told(made) and "You can call" not in told(made)
    assert '<tool_call>\n{"name": "look", "arguments": {"side": "left <|im_end|>"}}\n</tool_call>' in told(made)
    assert "left <|im_end|>" not in told(made, special=True)  # what a user wrote is no control token
    assert "<|im_start|>tool\na wall" in told(made)
    bomb = {**CALL, "function": {"name": "look", "arguments": '{"a":' * 50_000 + "1" + "}" * 50_000}}
    assert "look" in told(planned(KNOWS, [HI, {"role": "assistant", "tool_calls": [bomb]}, TURN[2]]))
    assert "Tools:" not in told(planned(KNOWS, TURN, tools=[TOOL], tool_choice="none"))


@pytest.mark.parametrize("template", [PLAIN, NO_SYSTEM])
def test_a_template_that_knows_none(template: str) -> None:
    assert detect_tool_call_format(ChatTemplate(template), {}, ()) is None
    made = planned(template, TURN, tools=[TOOL])
    assert '{"name": "look"' in told(made) and "<tool_response>\na wall\n</tool_response>" in told(made)
    assert told(planned(template, tools=[TOOL], tool_choice="none")) == told(planned(template))
    assert "Mind these:" in told(planned(template, tools=[TOOL], tool_prompt="Mind these:"))
    system = {"role": "system", "content": "Be brief."}
    if template == PLAIN:
        assert told(planned(template, [system, HI], tools=[TOOL])).count("<|im_start|>system") == 1


def test_thoughts() -> None:
    opens = PLAIN.replace("assistant\n{% endif", "assistant\n<think>\n{% endif") + "{# </think> #}"
    made = planned(opens)
    assert made.output_parser().push(b"hm</think>yes") == [
        OutputPiece("reasoning", "hm"),
        OutputPiece("content", "yes"),
    ]
    assert planned(PLAIN).output_parser().push(b"<think>") == [OutputPiece("content", "<think>")]
    held = planned(opens, response_format={"type": "json_object"}).constraint
    assert held is not None and "thought" in held.grammar


# ---- raw prompts


def test_a_raw_prompt_is_all_that_the_model_gets() -> None:
    """Control tokens are parsed, pictures stand where they are, and white space of the answer stays."""
    content = ["<s>a", {"type": "image", "base64": "AA"}, {"type": "image", "base64": "AA"}, " b<e>"]
    compiled = compile_raw(ChatRequest.parse([{"role": "user", "content": content}], stop="."), {"<s>", "<e>"})
    assert compiled.spans == (
        TextSpan("<s>", special=True),
        TextSpan("a", special=False),
        ImageSpan(0),
        ImageSpan(1),
        TextSpan(" b", special=False),
        TextSpan("<e>", special=True),
    )
    assert compiled.constraint is None
    parser = compiled.output_parser()
    pieces = [*parser.push(b" <think>x</think> <tool_call>y"), *parser.push(b". z"), *parser.finish()]
    assert "".join(piece.text for piece in pieces) == " <think>x</think> <tool_call>y"
    assert {piece.kind for piece in pieces} == {"content"}


def test_a_raw_prompt_with_a_schema() -> None:
    form = {"type": "json_schema", "schema": {"type": "integer"}}
    compiled = compile_raw(ChatRequest.parse([{"role": "user", "content": "a"}], response_format=form, stop="1"), set())
    assert compiled.constraint is not None
    assert "".join(piece.text for piece in compiled.output_parser().push(b"12")) == "12"  # a stop would cut it
