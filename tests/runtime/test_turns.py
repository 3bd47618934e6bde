"""Conversations in all forms that clients send, with templates that know some of them: no text or picture is lost."""

from __future__ import annotations

import os
import time
from itertools import count
from pathlib import Path
from typing import Any

import pytest

from pocketvlm.errors import ModelError, RequestError
from pocketvlm.messages import (
    AssistantMessage,
    ChatRequest,
    ImagePart,
    Message,
    SystemMessage,
    TextPart,
    ToolMessage,
    UserMessage,
)
from pocketvlm.structured.compile import CompiledRequest, compile_request
from pocketvlm.structured.output_parser import OutputPiece
from pocketvlm.structured.tool_call_format import detect_tool_call_format
from pocketvlm.templates.prompt import ChatTemplate, ImageSpan, Span, TextSpan

from .templates import ALTERNATING, BOS, EOS, HEADERS, PICTURES_FIRST, TEMPLATES, THINKING, plainly

REFUSE = "{{ raise_exception('refused') }}"
# Templates that know no system, the first message only, or refuse a late system text.
NO_SYSTEM = (
    "{% for m in messages %}{% if m.role == 'user' %}USER: {{ m.content }} "
    "{% elif m.role == 'assistant' %}ASSISTANT: {{ m.content }}</s>{% endif %}{% endfor %}ASSISTANT:"
)
FIRST_ONLY = "{% if messages[0].role == 'system' %}[{{ messages[0].content }}]{% endif %}" + NO_SYSTEM
FIRST_OR_REFUSED = (
    "{% for m in messages %}{% if m.role == 'system' and not loop.first %}" + REFUSE + "{% endif %}"
    "<{{ m.role }}>{{ m.content }}{% endfor %}"
)
REFUSED = "{% if 'system' in messages | map(attribute='role') %}" + REFUSE + "{% endif %}" + NO_SYSTEM
# Turns must alternate; calls and results do not count.
SKIPS_CALLS = (
    "{% set ns = namespace(n=0) %}{% for m in messages %}"
    "{% if m.role == 'user' or (m.role == 'assistant' and not m.tool_calls) %}"
    "{% if (m.role == 'user') != (ns.n % 2 == 0) %}" + REFUSE + "{% endif %}{% set ns.n = ns.n + 1 %}{% endif %}"
    "{% if m.role == 'user' %}[INST]{% if m.content is string %}{{ m.content }}{% else %}{% for p in m.content %}"
    "{{ p.text if p.type == 'text' else '[IMG]' }}{% endfor %}{% endif %}[/INST]"
    "{% elif m.role == 'tool' %}[RESULT]{{ m.content }}[/RESULT]"
    "{% elif m.tool_calls %}{% for c in m.tool_calls %}[CALLS]{{ c.function.name }}{% endfor %}</s>"
    "{% elif m.role == 'assistant' %}{{ m.content if m.content is string else m.content[0].text }}</s>{% endif %}"
    "{% endfor %}"
)
SYSTEMS = {
    "alternating": ALTERNATING,
    "no system": NO_SYSTEM,
    "first only": FIRST_ONLY,
    "late ones refused": FIRST_OR_REFUSED,
    "refused": REFUSED,
    "headers": HEADERS,
    "pictures first": PICTURES_FIRST,
    "skips calls": SKIPS_CALLS,
}


def say(role: str, *parts: str | None, **fields: Any) -> Message:
    """A message of one text, or of parts, in which None is a picture."""
    kinds: dict[str, Any] = {"user": UserMessage, "assistant": AssistantMessage, "tool": ToolMessage}
    content: Any = tuple(
        ImagePart(type="image", path="unread.png") if part is None else TextPart(type="text", text=part)
        for part in parts
    )
    if len(parts) == 1 and parts[0] is not None:
        content = parts[0]
    return kinds.get(role, SystemMessage).model_construct(role=role, content=content, **fields)


def of(letters: str) -> list[Message]:
    """Messages by the first letters of their roles, with a text each: word1, word2, ... A capital has a picture too."""
    roles = {"s": "system", "d": "developer", "u": "user", "a": "assistant", "t": "tool"}
    return [say(roles[i.lower()], *([None] if i.isupper() else []), f"word{n}") for n, i in enumerate(letters, 1)]


def calling(text: str | None, *names: str, **fields: Any) -> Message:
    calls = [{"id": name, "function": {"name": name, "arguments": "{}"}} for name in names]
    message = {"role": "assistant", "content": text, "tool_calls": calls, **fields}
    return ChatRequest.parse([message]).messages[0]


def made(source: str, token: str | None = None) -> ChatTemplate:
    return ChatTemplate(source, bos=BOS, eos=EOS, image_token=token)


def whole(spans: tuple[Span, ...]) -> str:
    return "".join(span.text if isinstance(span, TextSpan) else f"[{span.index}]" for span in spans)


def prompt(source: str, messages: list[Message], token: str | None = None, **options: Any) -> str:
    return whole(made(source, token).render(messages, **options))


# ---- texts of the system


@pytest.mark.parametrize(
    "letters", ["su", "s", "us", "ssu", "sdu", "du", "uasu", "uadu", "suasu", "sau", "usu", "sasuu"]
)
@pytest.mark.parametrize("name", SYSTEMS)
def test_no_text_is_lost_or_refused(name: str, letters: str) -> None:
    written = prompt(SYSTEMS[name], of(letters))
    assert [written.count(f"word{n}") for n in range(1, len(letters) + 1)] == [1] * len(letters)


@pytest.mark.parametrize(
    ("source", "letters", "expected"),
    [
        (FIRST_OR_REFUSED, "suasu", "<system>word1\n\nword4<user>word2<assistant>word3<user>word5"),
        (FIRST_OR_REFUSED, "uasu", "<user>word1<assistant>word2<user>word3\n\nword4"),
        (FIRST_ONLY, "ssu", "[word1\n\nword2]USER: word3 ASSISTANT:"),
        (NO_SYSTEM, "su", "USER: word1\n\nword2 ASSISTANT:"),
        (NO_SYSTEM, "uas", "USER: word1 ASSISTANT: word2</s>USER: word3 ASSISTANT:"),
        (SKIPS_CALLS, "su", "[INST]word1\n\nword2[/INST]"),
    ],
)
def test_where_texts_of_the_system_go(source: str, letters: str, expected: str) -> None:
    assert prompt(source, of(letters)) == expected


def test_a_template_without_turns_of_the_system_gets_none() -> None:
    """It would write one that the model does not know, as it refuses no role at this place."""
    assert "<start_of_turn>system" not in prompt(ALTERNATING, of("us"))


@pytest.mark.parametrize("text", ["/no_think", " /think\n", " "])
def test_a_switch_may_be_removed(text: str) -> None:
    source = "{% if messages[0].role == 'system' %}[on]{% set messages = messages[1:] %}{% endif %}" + NO_SYSTEM
    assert prompt(source, [say("system", text), say("user", "hi")]) == "[on]USER: hi ASSISTANT:"


@pytest.mark.parametrize("letters", ["uau", "suau", "uausu"])
def test_a_text_that_no_arrangement_keeps_is_named(letters: str) -> None:
    with pytest.raises(RequestError, match="leaves out this text of the role") as caught:
        prompt("{{ messages[-1].content }}", of(letters))
    assert caught.value.param == "messages.0.content"


# ---- turns that do not alternate

ALTERNATE = ["uu", "au", "uaau", "suuau", "saau"]


@pytest.mark.parametrize("letters", ALTERNATE)
@pytest.mark.parametrize("name", ["alternating", "skips calls"])
def test_neighbours_are_joined_where_turns_must_alternate(name: str, letters: str) -> None:
    joined = {
        "uu": [("user", "word1\n\nword2")],
        "au": [("user", ""), ("assistant", "word1"), ("user", "word2")],
        "uaau": [("user", "word1"), ("assistant", "word2\n\nword3"), ("user", "word4")],
        "suuau": [("system", "word1"), ("user", "word2\n\nword3"), ("assistant", "word4"), ("user", "word5")],
        "saau": [("system", "word1"), ("user", ""), ("assistant", "word2\n\nword3"), ("user", "word4")],
    }[letters]
    source = (
        SYSTEMS[name]
        if name == "alternating"
        else "{% if messages[0].role == 'system' %}"
        + ("[{{ messages[0].content }}]{% set messages = messages[1:] %}{% endif %}" + SKIPS_CALLS)
    )
    expected = plainly(source, [{"role": role, "content": content} for role, content in joined])
    assert prompt(source, of(letters)) == expected


@pytest.mark.parametrize("letters", ALTERNATE)
@pytest.mark.parametrize("name", ["chatml", "headers", "iota", "lines"])
def test_nothing_changes_where_a_template_takes_it(name: str, letters: str) -> None:
    source, token, _ = TEMPLATES[name]
    messages = [message.model_dump(include={"role", "content"}) for message in of(letters)]
    assert prompt(source, of(letters), token) == plainly(source, messages)


def test_pictures_of_joined_turns_keep_their_order() -> None:
    messages = [say("user", None, "a"), say("user", "b", None), say("user", None, "c"), say("assistant", "d")]
    written = prompt(ALTERNATING, messages, "<start_of_image>", add_generation_prompt=False)
    assert "user\n[0]a\n\nb[1][2]c<end_of_turn>" in written


def test_a_question_behind_a_result() -> None:
    messages = [say("user", "q"), calling(None, "f"), say("tool", "r"), say("user", "s")]
    assert prompt(SKIPS_CALLS, messages) == "[INST]q[/INST][CALLS]f</s>[RESULT]r[/RESULT]</s>[INST]s[/INST]"
    request = ChatRequest.parse([{"role": "user", "content": "x"}]).model_copy(update={"messages": tuple(messages)})
    written = whole(compile_request(request, made(ALTERNATING)).spans)  # which knows no calls
    assert "user\n<tool_response>\nr\n</tool_response>\n\ns<end_of_turn>" in written


# ---- calls


def test_text_beside_calls() -> None:
    messages = [say("user", "q"), calling("Let me see.", "f"), say("tool", "r")]
    assert prompt(SKIPS_CALLS, messages) == "[INST]q[/INST]Let me see.</s>[CALLS]f</s>[RESULT]r[/RESULT]"
    refuses_none = SKIPS_CALLS.replace(
        "{% for c in", "{% if m.content is not none %}" + REFUSE + "{% endif %}{% for c in"
    )
    assert "Let me see.</s>[CALLS]f" in prompt(refuses_none, messages, no_content=True)


@pytest.mark.parametrize("answered", ["fg", "gf", "f", ""])
def test_one_call_at_a_time(answered: str) -> None:
    single = SKIPS_CALLS.replace(
        "{% elif m.tool_calls %}", "{% elif m.tool_calls %}{% if m.tool_calls | length > 1 %}" + REFUSE + "{% endif %}"
    )
    results = [say("tool", f"{name}!", tool_call_id=name) for name in answered]
    calls = [f"[CALLS]{name}</s>" for name in [*answered, *sorted({*"fg"} - {*answered})]]
    results_written = [f"[RESULT]{name}![/RESULT]" for name in answered]
    expected = "".join(call + result for call, result in zip(calls, [*results_written, "", ""], strict=False))
    assert prompt(single, [say("user", "q"), calling(None, "f", "g"), *results]) == f"[INST]q[/INST]{expected}"


# ---- pictures of others than users


@pytest.mark.parametrize("letters", ["Su", "uAu", "uS", "sUaSu", "SUAU", "uaS"])
@pytest.mark.parametrize("name", ["alternating", "chatml", "headers", "iota", "mixed", "pictures first", "skips calls"])
def test_every_role_may_have_pictures(name: str, letters: str) -> None:
    source, token = (SKIPS_CALLS, "[IMG]") if name == "skips calls" else TEMPLATES[name][:2]
    written = prompt(source, of(letters), token)
    pictures = sum(map(str.isupper, letters))
    assert [at for at in written if at.isdigit() and f"[{at}]" in written] != [] and pictures
    assert [written.count(f"[{n}]") for n in range(pictures)] == [1] * pictures
    assert [written.count(f"word{n}") for n in range(1, len(letters) + 1)] == [1] * len(letters)


@pytest.mark.parametrize(
    ("letters", "expected"),
    [
        ("Su", "[INST][0]word1\n\nword2[/INST]"),
        ("uAu", "[INST]word1[/INST]word2</s>[INST][0]word3[/INST]"),
        ("UaU", "[INST][0]word1[/INST]word2</s>[INST][1]word3[/INST]"),
        ("uA", "[INST]word1[0][/INST]word2</s>"),
    ],
)
def test_where_pictures_go(letters: str, expected: str) -> None:
    assert prompt(SKIPS_CALLS, of(letters), "[IMG]") == expected


@pytest.mark.parametrize(
    ("after", "expected"),
    [
        ([], "</s>[INST][1][2][/INST]"),
        ([say("user", None, "s")], "</s>[INST][1][2][3]s[/INST]"),
        ([say("assistant", "a"), say("user", "s")], "</s>[INST][1][2][/INST]a</s>[INST]s[/INST]"),
    ],
)
def test_pictures_of_tools(after: list[Message], expected: str) -> None:
    messages = [say("user", None, "q"), calling(None, "f", "g"), say("tool", None, "r"), say("tool", "t", None), *after]
    before = "[INST][0]q[/INST][CALLS]f[CALLS]g</s>[RESULT]r[/RESULT][RESULT]t[/RESULT]"
    assert prompt(SKIPS_CALLS, messages, "[IMG]") == before + expected


def test_pictures_of_tools_that_become_text() -> None:
    messages = (say("user", None, "q"), calling(None, "f"), say("tool", "r", None), say("user", None, "s"))
    request = ChatRequest.parse([{"role": "user", "content": "x"}]).model_copy(update={"messages": messages})
    for name in ("alternating", "iota", "chatml", "mixed", "headers"):
        source, token, _ = TEMPLATES[name]
        spans = compile_request(request, made(source, token)).spans
        assert [span.index for span in spans if isinstance(span, ImageSpan)] == [0, 1, 2]
        assert whole(spans).index("[1]") < whole(spans).index("</tool_response>")


# ---- thoughts

READS = (
    "{% for m in messages %}<{{ m.role }}>{% if m.role == 'assistant' %}<think>{{ m.NAME or '' }}</think>{% endif %}"
    "{{ m.content or '' }}{% endfor %}"
)
REFUSES_BOTH = READS.replace(
    "<think>", "{% if m.thinking and m.tool_calls and m.content %}" + REFUSE + "{% endif %}<think>"
)
PARTS = (
    "{% for m in messages %}{% if m.content is string %}{{ m.content }}{% else %}{% for p in m.content %}"
    "{{ '[THINK]' + p.thinking + '[/THINK]' if p.type == 'thinking' else p.text }}{% endfor %}{% endif %};{% endfor %}"
)


@pytest.mark.parametrize("sent", ["reasoning_content", "reasoning", "thinking", "reasoning_text"])
@pytest.mark.parametrize("read", ["reasoning_content", "reasoning", "thinking", "reasoning_text", "thought"])
def test_a_thought_reaches_the_template_under_its_name(sent: str, read: str) -> None:
    thought = {"role": "assistant", "content": "a", sent: "hm </think>"}
    messages = list(ChatRequest.parse([{"role": "user", "content": "q"}, thought]).messages)
    spans = made(READS.replace("NAME", read)).render(messages)
    assert whole(spans) == "<user>q<assistant><think>hm </think></think>a"
    assert TextSpan("hm </think>", False) in spans  # its marks are text


def test_other_forms_of_thoughts() -> None:
    thought = say("assistant", "a", reasoning_content="hm")
    assert prompt(PARTS, [say("user", "q"), thought, say("user", "r")]) == "q;[THINK]hm[/THINK]a;r;"
    expected = plainly(
        THINKING, [{"role": "user", "content": "q"}, {"role": "assistant", "content": "<think>hm</think>a"}]
    )
    assert "<think>\nhm\n</think>\n\na" in expected
    assert prompt(THINKING, [say("user", "q"), thought]) == expected.replace("<|im_end|>\n", "<|im_end|>\n") + (
        "<|im_start|>assistant\n" if not expected.endswith("assistant\n") else ""
    )
    for name in ("chatml", "headers", "iota"):  # which know none
        assert "hm" not in prompt(TEMPLATES[name][0], [say("user", "q"), thought, say("user", "r")])


def test_a_thought_that_a_template_refuses_is_dropped_last() -> None:
    messages = [say("user", "q"), calling("a", "f", reasoning_content="hm"), say("tool", "r")]
    assert prompt(REFUSES_BOTH.replace("NAME", "thinking"), messages) == (
        "<user>q<assistant><think></think>a<assistant><think>hm</think><tool>r"
    )
    never = READS.replace("<think>", "{% if m.thinking %}" + REFUSE + "{% endif %}<think>").replace("NAME", "thought")
    assert "<think></think>a" in prompt(never, messages)


# ---- answers that go on

HI = {"role": "user", "content": "hi"}
JSON = '{"shape": "'
OPENS = READS.replace("NAME", "reasoning_content").replace(
    "<{{ m.role }}>", "{{ '<end>' if not loop.first }}<{{ m.role }}>"
) + ("<end>{% if add_generation_prompt %}<assistant><think>\n{% endif %}")
DROPS_LAST = (
    "{% for m in messages %}{% if not (loop.last and m.role == 'assistant') %}<{{ m.role }}>{{ m.content }}{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}<assistant><think>\n{% endif %}{# </think> #}"
)


def compiled(source: str, answer: dict[str, Any] | str, **fields: Any) -> CompiledRequest:
    begun = {"role": "assistant", **({"content": answer} if isinstance(answer, str) else answer)}
    return compile_request(ChatRequest.parse([HI, begun], **fields), made(source))


@pytest.mark.parametrize("text", [JSON, "Well, ", " \n- one\n- ", "a<|im_end|>b"])
@pytest.mark.parametrize("name", TEMPLATES)
def test_a_begun_answer_goes_on(name: str, text: str) -> None:
    source, _, trims = TEMPLATES[name]
    fields = {"continue_final_message": True, "add_generation_prompt": False}
    content: Any = text if name != "pictures first" else [{"type": "text", "text": text}]
    hi: Any = HI if name != "pictures first" else {"role": "user", "content": [{"type": "text", "text": "hi"}]}
    closed = plainly(source, [hi, {"role": "assistant", "content": content}], add_generation_prompt=False)
    shown = text.strip() if trims else text
    expected = closed[: closed.rindex(shown) + len(shown)] + (text[len(text.rstrip()) :] if trims else "")
    for request in (compiled(source, text), compiled(source, text, **fields)):
        assert whole(request.spans) == expected
        assert request.spans[-1].special is False if isinstance(request.spans[-1], TextSpan) else None
        assert request.output_parser().push(b" one") == [OutputPiece("content", " one")]


def test_a_begun_answer_alone() -> None:
    begun = ChatRequest.parse([{"role": "assistant", "content": "It was "}])
    expected = {"alternating": "<bos><start_of_turn>user\n<end_of_turn>\n<start_of_turn>model\nIt was "}
    for name in ("alternating", "headers", "iota", "thinking"):
        written = whole(compile_request(begun, made(TEMPLATES[name][0])).spans)
        assert written == expected.get(name, written) and written.endswith("It was ")


@pytest.mark.parametrize(
    ("answer", "expected", "first"),
    [
        ({"content": JSON}, f"<assistant><think></think>{JSON}", "content"),
        ({"content": JSON, "reasoning": "hm"}, f"<assistant><think>hm</think>{JSON}", "content"),
        ({"content": "", "reasoning_content": "hm, "}, "<assistant><think>hm, ", "reasoning"),
    ],
)
def test_a_begun_answer_of_a_model_that_thinks(answer: dict[str, Any], expected: str, first: str) -> None:
    request = compiled(OPENS, answer)
    assert whole(request.spans).endswith(f"<end>{expected}")
    assert request.output_parser().push(b" one more</think>")[0] == OutputPiece(
        first, " one more" if first == "reasoning" else " one more</think>"
    )
    drops = whole(compiled(DROPS_LAST, answer).spans)
    thought = answer.get("reasoning", "") if answer["content"] else answer["reasoning_content"]
    in_thought = DROPS_LAST.replace("{% if not (loop.last and m.role == 'assistant') %}", "").replace(
        "{{ m.content }}{% endif %}", "{{ '<think>\n' if m.role == 'assistant' }}{{ m.content }}"
    )
    assert answer["content"] == "" or whole(compiled(in_thought, answer).spans) == drops
    assert drops == "<user>hi<assistant><think>\n" + thought + (f"\n</think>\n\n{JSON}" if answer["content"] else "")


@pytest.mark.parametrize(
    ("answer", "fields", "goes_on"),
    [
        ({"content": "a"}, {}, True),
        ({"content": "a", "prefix": True}, {}, True),
        ({"content": "a"}, {"add_generation_prompt": False}, True),
        ({"content": "a"}, {"continue_final_message": True}, True),
        ({"content": "a", "prefix": False}, {}, False),
        ({"content": "a", "prefix": True}, {"add_generation_prompt": True}, False),
        ({"content": "a"}, {"continue_final_message": False}, False),
        ({"content": "a"}, {"response_format": {"type": "json_object"}}, False),
        ({"content": "{}"}, {"response_format": {"type": "json_object"}}, False),
        ({"content": '{"a": [1, '}, {"response_format": {"type": "json_object"}}, True),
        (
            {"content": "a"},
            {"tools": [{"type": "function", "function": {"name": "f"}}], "tool_choice": "required"},
            False,
        ),
        ({"content": "", "reasoning": "of another model"}, {}, False),
    ],
)
def test_which_answers_go_on(answer: dict[str, Any], fields: dict[str, Any], goes_on: bool) -> None:
    request = compiled(HEADERS, answer, **fields)
    assert (request.begun is not None) == goes_on
    assert whole(request.spans).endswith("assistant<|end_header_id|>\n\n") != goes_on


@pytest.mark.parametrize("name", ["headers", "chatml", "iota"])
def test_an_empty_answer_at_the_end_is_a_place_for_it(name: str) -> None:
    source = TEMPLATES[name][0]
    asked = compile_request(ChatRequest.parse([HI]), made(source)).spans
    thought = {"content": "", "reasoning": "of another model"}
    for fields in ({}, {"add_generation_prompt": False}, {"continue_final_message": True}):
        assert compiled(source, "", **fields).spans == compiled(source, thought, **fields).spans == asked


def test_the_beginning_that_the_grammar_gets() -> None:
    held = compiled(HEADERS, '{ "a b":\n"c d \\" ', response_format={"type": "json_object"})
    assert held.constraint is not None and held.constraint.begun == '{"a b":"c d \\" '
    number = compiled(HEADERS, "[ 1 ", response_format={"type": "json_object", "value": {"type": "array"}})
    assert number.constraint is not None and number.constraint.begun == "[1 "
    tools = [{"type": "function", "function": {"name": "f"}}]
    free = compiled(HEADERS, "Well, ", tools=tools)
    assert free.constraint is not None and free.constraint.begun == "Well, "
    thought = compiled(OPENS, {"content": "", "reasoning": "hm"}, response_format={"type": "json_object"})
    assert thought.constraint is not None and thought.constraint.begun == "" and "thought" in thought.constraint.grammar
    text = compiled(OPENS, "[", response_format={"type": "json_object"})
    assert text.constraint is not None and "thought" not in text.constraint.grammar


@pytest.mark.parametrize(
    ("last", "fields", "param"),
    [
        (HI, {"continue_final_message": True}, "continue_final_message"),
        ({"role": "assistant", "content": "a"}, {"continue_final_message": True, "add_generation_prompt": True}, None),
        ({"role": "assistant", "content": "a"}, {"continue_final_message": "yes"}, "continue_final_message"),
        ({"role": "assistant", "content": "a", "prefix": 1}, {}, "messages.1.prefix"),
    ],
)
def test_what_cannot_go_on(last: dict[str, Any], fields: dict[str, Any], param: str | None) -> None:
    with pytest.raises(RequestError) as caught:
        ChatRequest.parse([HI, last], **fields)
    assert caught.value.param == (param or "continue_final_message")


# ---- templates of others


@pytest.mark.skipif("POCKETVLM_TEMPLATES" not in os.environ, reason="POCKETVLM_TEMPLATES names no folder of *.jinja")
def test_templates_of_others_keep_all_texts() -> None:
    tools = [{"type": "function", "function": {"name": "f", "description": "d"}}]
    for path in sorted(Path(os.environ["POCKETVLM_TEMPLATES"]).glob("*.jinja")):
        template = ChatTemplate(path.read_text("utf-8"), bos=BOS, eos="</s>")
        call_format = detect_tool_call_format(template, {}, {"</s>", "<|im_end|>", "<|eot_id|>", "<|end|>"})
        try:
            template.render(ChatRequest.parse([HI]).messages)
        except ModelError:  # one needs a variable that nothing else has
            continue
        for letters in (
            "s",
            "ssu",
            "uadu",
            "suasu",
            "usu",
            "uu",
            "au",
            "uaau",
            "Su",
            "uAu",
            "uctu",
            "uctcTu",
            "sucTsu",
        ):
            number = count(1)
            messages: list[Message] = []
            for letter in letters:
                if letter == "c":
                    messages.append(calling(f"word{next(number)}", "f"))
                else:
                    messages += [
                        message.model_copy(update={"tool_call_id": "f", "name": "f"} if letter in "tT" else {})
                        for message in of(letter)
                    ]
                    text = f"word{next(number)}"
                    parts = [None, text] if letter.isupper() else [text]
                    messages[-1] = messages[-1].model_copy(update={"content": say("user", *parts).content})
            request = ChatRequest.parse([HI], tools=tools if "c" in letters else None)
            request = request.model_copy(update={"messages": tuple(messages)})
            written = whole(compile_request(request, template, call_format).spans)
            lost = [n for n in range(1, next(number)) if written.count(f"word{n}") != 1]
            assert not lost, (path.name, letters, lost)


@pytest.mark.parametrize("role", ["user", "assistant", "system", "tool"])
def test_many_messages_that_no_arrangement_helps_take_little_time(role: str) -> None:
    """The variables of a request can break any template."""
    messages = [say("user", "first"), *(say(role, f"word{n}") for n in range(1000)), say("user", "last")]
    began = time.process_time()
    with pytest.raises(ModelError):
        made("{% set ns = namespace(n=0) %}" + HEADERS).render(messages, variables={"namespace": 1})
    assert time.process_time() - began < 15


def test_many_calls_one_at_a_time_take_little_time() -> None:
    single = HEADERS + "{% for m in messages if m.tool_calls and m.tool_calls | length > 1 %}" + REFUSE + "{% endfor %}"
    names = [f"f{n}" for n in range(6000)]
    results = [say("tool", name, tool_call_id=name) for name in reversed(names)]
    began = time.process_time()
    prompt(single, [say("user", "q"), calling(None, *names), *results])
    assert time.process_time() - began < 5
