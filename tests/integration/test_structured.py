"""Answers of a given form: whatever iota, which never saw JSON, would rather say, what it says is valid."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from PIL import Image

from engine_seam import model_of, never_ending, template_form, vocabulary_of
from pocketvlm import VLM
from pocketvlm.errors import RequestError, UnsupportedError
from pocketvlm.native.grammar import Constraint, Matcher
from pocketvlm.structured.schema import compile_schema
from pocketvlm.structured.tool_call_format import HOLE, ToolCallFormat

HI = [{"role": "user", "content": "hi"}]
PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "pattern": "^[A-Z][a-z]{2,5}$"},
        "age": {"type": "integer", "minimum": 18, "maximum": 99},
        "tags": {"type": "array", "items": {"enum": ["a", "b", 3, None]}, "minItems": 1, "maxItems": 3},
        "at": {"$ref": "#/$defs/point"},
    },
    "required": ["name", "age", "tags", "at"],
    "additionalProperties": False,
    "$defs": {
        "point": {
            "type": "object",
            "properties": {"x": {"type": "number", "exclusiveMinimum": -1.5, "maximum": 2.25}},
            "required": ["x"],
            "patternProperties": {"^[pq]$": {"type": "boolean"}},
            "additionalProperties": False,
            "maxProperties": 3,
        }
    },
}


@pytest.fixture(scope="module")
def vlm(iota_bundle: Path) -> Iterator[VLM]:
    with VLM.load(iota_bundle, parallel=4, context_size=4096, threads=1) as loaded:
        yield loaded


def form(schema: Any, **fields: Any) -> dict[str, Any]:
    return {"type": "json_schema", "json_schema": {"name": "answer", "schema": schema, **fields}}


def tool(name: str = "look", **schema: Any) -> dict[str, Any]:
    given = {"type": "object", "properties": {"side": {"enum": ["left", "right"]}}, "required": ["side"]}
    return {
        "type": "function",
        "function": {"name": name, "parameters": schema or {**given, "additionalProperties": False}},
    }


# ---- schemas

NAMES = st.sampled_from(["a", "b", "long name", 'quo"te', "é", "back\\slash"])
PLAIN = st.one_of(
    st.just({"type": "boolean"}),
    st.just({"type": "null"}),
    st.just({"type": ["integer", "null"], "minimum": 0, "maximum": 9}),
    st.integers(0, 5).map(lambda n: {"type": "string", "maxLength": n}),
    st.integers(-50, 50).flatmap(
        lambda low: st.integers(0, 40).map(lambda more: {"type": "integer", "minimum": low, "maximum": low + more})
    ),
    st.integers(-50, 50).map(lambda low: {"type": "number", "exclusiveMinimum": low, "maximum": low + 1.5}),
    st.sampled_from(["^[0-9]{3}-[a-f]+x?$", "^(on|off)$", "^\\w{1,3}$", "a.b"]).map(
        lambda pattern: {"type": "string", "pattern": pattern, "maxLength": 9}
    ),
    st.lists(NAMES | st.integers(-3, 3) | st.none(), min_size=1, max_size=4).map(lambda values: {"enum": values}),
    st.sampled_from(["date", "uuid", "ipv4"]).map(lambda name: {"type": "string", "format": name}),
    st.just({"const": {"k": [1, "x"]}}),
    st.just({"$ref": "#/$defs/shared"}),
)


def objects(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    def made(properties: dict[str, Any], optional: set[str], more: Any) -> dict[str, Any]:
        required = [name for name in properties if name not in optional]
        extra = {"additionalProperties": False} if more is None else {"additionalProperties": more, "maxProperties": 4}
        if more is not None and required != list(properties):
            extra = {"additionalProperties": False}
        return {"type": "object", "properties": properties, "required": required, **extra}

    return st.builds(made, st.dictionaries(NAMES, inner, max_size=3), st.sets(NAMES, max_size=2), st.none() | inner)


NESTED = st.recursive(
    PLAIN,
    lambda inner: st.one_of(
        objects(inner),
        inner.map(lambda item: {"type": "array", "items": item, "maxItems": 2}),
        st.lists(inner, min_size=1, max_size=2).map(lambda items: {"anyOf": items}),
        st.lists(inner, min_size=1, max_size=2).map(
            lambda items: {"type": "array", "prefixItems": items, "items": False, "minItems": len(items)}
        ),
    ),
    max_leaves=5,
)


@settings(
    max_examples=25, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck), phases=[Phase.generate]
)
@given(st.lists(NESTED, min_size=4, max_size=4), st.integers(0, 99))
def test_any_schema(vlm: VLM, schemas: list[Any], seed: int) -> None:
    """Four at once; a picture or not; streamed or not."""

    def ask(i: int) -> str:
        schema = {**schemas[i], "$defs": {"shared": {"enum": ["s", 1.5, True]}}}
        sampling = {"seed": seed, "temperature": 0.0 if i == 0 else 1.8, "max_tokens": 200}
        choice = vlm.chat(HI, response_format=form(schema), **sampling).choices[0]
        if choice.finish_reason == "length":
            return "length"
        jsonschema.Draft202012Validator(schema).validate(json.loads(choice.message.content or ""))
        return "stop"

    with ThreadPoolExecutor(4) as pool:
        assert "stop" in list(pool.map(ask, range(4)))


@pytest.mark.parametrize("begun", ['{"name": "Al', '{\n  "name" : "Anna",\n  "age": 4', '{"name":"Bob",', "{", "[1"])
def test_a_begun_answer_goes_on(vlm: VLM, begun: str) -> None:
    messages = [*HI, {"role": "assistant", "content": begun}]
    schema = {
        **PERSON,
        "required": ["name", "age"],
        "properties": {k: PERSON["properties"][k] for k in ("name", "age")},
    }
    asked: Any = {"response_format": form(schema), "max_tokens": 100, "temperature": 1.5, "seed": 1}
    if begun == "[1":
        with pytest.raises(RequestError, match="does not begin an answer") as refused:
            vlm.chat(messages, **asked)
        assert refused.value.param == "messages"
        return
    answer = vlm.chat(messages, **asked)
    jsonschema.validate(json.loads(begun + answer.text), schema)
    assert vlm.conversation == [*HI, {"role": "assistant", "content": begun + answer.text}]


@pytest.mark.parametrize("explicit", [True, False])
def test_a_whole_answer_ends_at_once(vlm: VLM, explicit: bool) -> None:
    messages = [*HI, {"role": "assistant", "content": '{"name": "Anna"}'}]
    schema = {"type": "object", "properties": {"name": {"const": "Anna"}}, "required": ["name"]}
    fields: Any = {"continue_final_message": True} if explicit else {}
    closed = form({**schema, "additionalProperties": False})
    choice = vlm.chat(messages, response_format=closed, max_tokens=50, **fields).choices[0]
    assert (choice.message.content == "") == explicit and choice.finish_reason == "stop"


def test_person_with_a_picture(vlm: VLM) -> None:
    content = [{"type": "image", "image": Image.new("RGB", (64, 64), "red")}, {"type": "text", "text": "Who?"}]
    asked = [{"role": "user", "content": content}]
    for seed in range(2):
        sampling: Any = {"temperature": 1.5, "seed": seed, "max_tokens": 1000}
        answer = vlm.chat(asked, response_format=form(PERSON), **sampling)
        assert answer.choices[0].finish_reason == "stop"
        jsonschema.validate(json.loads(answer.text), PERSON)
        rewritten = {"type": "json_object", "value": PERSON}  # as huggingface_hub does
        chunks = list(vlm.stream(asked, response_format=rewritten, **sampling))
        assert "".join(chunk.text for chunk in chunks) == answer.text
        assert chunks[-1].choices[0].finish_reason == "stop"


def test_any_object(vlm: VLM) -> None:
    for fields in ({"type": "json_object"}, form(None)):
        answer = vlm.chat(HI, response_format=fields, json_whitespace="pretty", max_tokens=300)
        assert answer.choices[0].finish_reason == "stop"
        assert isinstance(json.loads(answer.text), dict)
    assert vlm.chat(HI, response_format={"type": "text"}).text == vlm.chat(HI).text


def test_cut_short(vlm: VLM) -> None:
    answer = vlm.chat(HI, response_format=form(PERSON), max_tokens=5)
    assert answer.choices[0].finish_reason == "length"


def test_a_stop_string_does_not_cut_it(vlm: VLM) -> None:
    schema = {"const": {"a": 1}}
    assert json.loads(vlm.chat(HI, response_format=form(schema), stop=["a", "}"]).text) == {"a": 1}


def test_one_spelling_of_a_name(vlm: VLM) -> None:
    """ "\\u0061" is "a", and would escape what the schema says of it."""
    model, vocabulary = model_of(vlm), vocabulary_of(vlm)
    schema = {"properties": {"a": {"type": "integer"}}, "additionalProperties": True}
    rule = compile_schema(schema, "schema", pretty=True).rule

    def fits(text: str) -> bool:
        matcher = Matcher(vocabulary, Constraint(f"start: {rule}", "schema"))
        for token in model.tokenize(text, special=False):
            logits = np.zeros(model.n_vocab, np.float32)
            matcher.restrict(logits)
            if not np.isfinite(logits[token]):
                return False
            matcher.accept(token)
        return matcher.complete

    assert fits('{"a":1}') and fits('{ "a": 1, "b": "x\\n" }')
    assert not fits('{"a":"x"}') and not fits('{"\\u0061":"x"}') and not fits('{"a":1,"a":"x"}')


def test_one_of_where_only_one_can_fit(vlm: VLM) -> None:
    kinds = [
        {
            "type": "object",
            "properties": {"kind": {"const": name}, "n": {"enum": [i]}},
            "required": ["kind", "n"],
            "additionalProperties": False,
        }
        for i, name in enumerate(["cat", "dog"])
    ]
    schema = {"oneOf": kinds}
    jsonschema.validate(json.loads(vlm.chat(HI, response_format=form(schema), max_tokens=200).text), schema)


# ---- refusals


def deep(levels: int) -> dict[str, Any]:
    schema: dict[str, Any] = {"type": "string"}
    for _ in range(levels):
        schema = {"properties": {"a": schema}}
    return schema


def chain(length: int) -> dict[str, Any]:
    links = {f"a{i}": {"$ref": f"#/$defs/a{i + 1}"} for i in range(length)}
    return {"$ref": "#/$defs/a0", "$defs": {**links, f"a{length}": {"type": "string"}}}


@pytest.mark.parametrize(
    ("schema", "path", "told"),
    [
        ({"properties": {"a": {"not": {}}}}, "properties.a.not", "not"),
        ({"anyOf": [{"type": "string"}, {"uniqueItems": True}]}, "anyOf.1.uniqueItems", "uniqueItems"),
        ({"$ref": "file:///etc/passwd"}, "$ref", "ref"),
        ({"$ref": "#"}, "", "no text matches"),
        ({"type": "string", "pattern": "(?=a)b"}, "pattern", "look-around"),
        ({"type": "string", "pattern": "(" * 3000 + ")" * 3000}, "pattern", "nest"),
        ({"type": "integer", "minimum": 5, "maximum": 1}, "", "minimum"),
        ({"properties": {"a": 5}}, "properties.a", "schema"),
        ({"enum": ["x" * 10] * 20_000}, "", "characters"),
        ({"properties": {f"p{i}": {} for i in range(3000)}}, "properties", "properties"),
        (deep(100), "", "deep"),
        (chain(3000), "", "deep"),
        ({"allOf": [{"anyOf": [{"properties": {f"a{i}{j}": {}}} for j in range(4)]} for i in range(10)]}, "", "large"),
    ],
)
def test_refused(vlm: VLM, schema: Any, path: str, told: str) -> None:
    began = time.process_time()
    with pytest.raises(RequestError, match=told) as refused:
        vlm.chat(HI, response_format=form(schema, strict=True), max_tokens=5)
    param = "response_format.json_schema.schema"
    assert refused.value.param == (f"{param}.{path}" if path else param)
    assert time.process_time() - began < 5
    assert "llguidance" not in str(refused.value) and "%json" not in str(refused.value)
    assert vlm.chat(HI).text == "Show me a picture."


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "string", "pattern": "^(a+)+(b+)+$"},
        {"type": "string", "pattern": "(a|aa|b)*c.{200}"},
        {"type": "string", "pattern": "(.*a.{18}){3}"},
        {"type": "string", "pattern": "^((a{1,1000}){1,1000}){1,1000}$"},
        {"type": "string", "minLength": 10**6},
        {"type": "array", "items": {}, "minItems": 10**6},
        {"enum": [f"v{i}" for i in range(5000)]},
        {"$ref": "#/$defs/n", "$defs": {"n": {"properties": {"next": {"$ref": "#/$defs/n"}}, "required": ["next"]}}},
        deep(25),
        chain(200),
    ],
)
def test_hostile_but_bounded(vlm: VLM, schema: Any) -> None:
    """They may fail, as a request's own error; and others go on."""
    began = time.process_time()
    try:
        vlm.chat(HI, response_format=form(schema), max_tokens=60, temperature=1.9, seed=1)
    except UnsupportedError as error:
        assert error.param
    assert time.process_time() - began < 10
    assert vlm.chat(HI).text == "Show me a picture."


# ---- tools


def test_tools_reach_the_model(vlm: VLM) -> None:
    plain = vlm.chat(HI, max_tokens=1).usage.prompt_tokens
    shown = vlm.chat(HI, tools=[tool()], max_tokens=1).usage.prompt_tokens
    assert shown > plain + 50
    assert (
        vlm.chat(HI, tools=[tool()], tool_prompt="Use them well, and often:", max_tokens=1).usage.prompt_tokens != shown
    )
    assert vlm.chat(HI, tools=[tool()], tool_choice="none").text == vlm.chat(HI).text


@pytest.mark.parametrize(
    "choice", ["required", {"function": {"name": "look"}}, {"type": "function", "function": {"name": "look"}}]
)
def test_forced(vlm: VLM, choice: Any) -> None:
    tools = [tool("other", type="object", properties={"n": {"type": "integer", "maximum": 9, "minimum": 1}}), tool()]
    tools[0]["function"]["parameters"]["additionalProperties"] = False
    validators = {t["function"]["name"]: t["function"]["parameters"] for t in tools}
    for seed, parallel in enumerate((True, False, None)):
        fields: Any = {"tools": tools, "tool_choice": choice, "parallel_tool_calls": parallel}
        fields |= {"seed": seed, "temperature": 1.5, "max_tokens": 900}
        answer = vlm.chat(HI, **fields).choices[0]
        assert answer.finish_reason == "tool_calls"
        assert answer.message.content is None
        calls = answer.message.tool_calls
        assert calls and (parallel is not False or len(calls) == 1)
        for call in calls:
            jsonschema.validate(json.loads(call.function.arguments), validators[call.function.name])
            assert isinstance(choice, str) or call.function.name == "look"
        assert len({call.id for call in calls}) == len(calls)
        streamed: dict[int, list[str]] = {}
        for chunk in vlm.stream(HI, **fields):
            for part in chunk.choices[0].delta.tool_calls or ():
                if part.function.name:
                    assert part.id
                    streamed[part.index] = [part.function.name, ""]
                streamed[part.index][1] += part.function.arguments
        assert list(streamed.values()) == [[call.function.name, call.function.arguments] for call in calls]


def test_auto(vlm: VLM) -> None:
    """The model decides. Told by a bias to begin the call, iota is held to it; the rest is the grammar's."""
    assert vlm.chat(HI, tools=[tool()], max_tokens=5).choices[0].message.tool_calls is None
    begin = model_of(vlm).tokenize("<tool_call>", special=False)
    fields: Any = {"tools": [tool()], "logit_bias": dict.fromkeys(begin, 60), "max_tokens": 300}
    for seed in range(4):
        choice = vlm.chat(HI, temperature=2.0, seed=seed, **fields).choices[0]
        if calls := choice.message.tool_calls:
            assert choice.message.content is None
            if choice.finish_reason == "tool_calls":
                assert all(json.loads(call.function.arguments)["side"] in ("left", "right") for call in calls)


def marked(vlm: VLM) -> ToolCallFormat:
    """A form with control tokens and ids, as some models have it."""
    texts = "<row_1_col_1>", "<row_1_col_2>"
    return ToolCallFormat(
        f'{texts[0]}[{{"name": "',
        '", "arguments": ',
        f', "id": "{HOLE}"}}, {{"name": "',
        f', "id": "{HOLE}"}}]{texts[1]}',
        mark=texts[0],
        controls={text: vlm.info.control_tokens[text] for text in texts},
    )


FORMS: dict[str, Callable[[VLM], ToolCallFormat]] = {
    "marked": marked,
    "bare": lambda _: ToolCallFormat('{"name": "', '", "parameters": ', None, "}", '{"name": "', anywhere=False),
    "tagged": lambda _: ToolCallFormat("<function=", ">", "</function><function=", "</function>", "<function="),
}


@pytest.mark.parametrize("name", FORMS)
def test_the_models_own_form(vlm: VLM, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    form = FORMS[name](vlm)
    template_form(monkeypatch, vlm, form)
    tools, validator = [tool("other"), tool()], tool()["function"]["parameters"]
    fields: Any = {"tools": tools, "temperature": 1.5, "max_tokens": 300}
    for seed, bias in enumerate([{}, never_ending(vlm)]):
        choice = vlm.chat(HI, tool_choice="required", seed=seed, logit_bias=bias, **fields).choices[0]
        assert choice.message.content is None
        calls = choice.message.tool_calls or ()
        assert len(calls) == 1 if form.gap is None else len(calls) > 1 or not bias
        for call in calls[: -1 if choice.finish_reason == "length" else None]:
            jsonschema.validate(json.loads(call.function.arguments), validator)
    # The model decides; a bias makes it begin a call.
    begin = [form.controls[form.mark]] if form.controls else model_of(vlm).tokenize(form.mark, special=False)
    begun = [vlm.chat(HI, seed=seed, logit_bias=dict.fromkeys(begin, 40), **fields).choices[0] for seed in range(4)]
    assert name != "marked" or all(choice.message.tool_calls for choice in begun)
    for choice in begun:
        for call in (choice.message.tool_calls or ()) if choice.finish_reason == "tool_calls" else ():
            jsonschema.validate(json.loads(call.function.arguments), validator)
    assert vlm.chat(HI, tools=tools).text == vlm.chat(HI, tools=tools, tool_choice="auto").text


def test_tool_results_go_back(vlm: VLM) -> None:
    call = {"id": "c1", "type": "function", "function": {"name": "look", "arguments": '{"side": "left"}'}}
    turn = [*HI, {"role": "assistant", "content": None, "tool_calls": [call]}]
    before = vlm.chat([*turn, {"role": "user", "content": "so?"}], max_tokens=1).usage.prompt_tokens
    results = [{"role": "tool", "tool_call_id": "c1", "content": "nothing there"}] * 2
    assert vlm.chat([*turn, *results], tools=[tool()], max_tokens=1).usage.prompt_tokens > before


def test_foreign_tools(vlm: VLM) -> None:
    """What cannot be enforced is named; the rest holds. A strict tool is refused."""
    other = tool("b", type="object", properties={"x": {"type": "integer", "not": {"const": 1}}}, required=["x"])
    for choice, named in (("required", ["tools.1.function.parameters.properties.x.not"]), ("none", None)):
        answer = vlm.chat(HI, tools=[tool(), other], tool_choice=choice, max_tokens=300)
        assert answer.not_enforced == named
    chunks = list(vlm.stream(HI, tools=[tool(), other], max_tokens=300))
    assert [chunk.not_enforced for chunk in chunks if chunk.not_enforced] == [
        ["tools.1.function.parameters.properties.x.not"]
    ]
    with pytest.raises(UnsupportedError, match='keyword not of the tool "b"') as refused:
        strict = {"type": "function", "function": {**other["function"], "strict": True}}
        vlm.chat(HI, tools=[tool(), strict], max_tokens=1)
    assert refused.value.param == "tools.1.function.parameters.properties.x.not"


def test_a_tool_that_cannot_be_compiled(vlm: VLM) -> None:
    """The patterns of keys overlap, which only the compiler sees: others are not affected."""
    other = tool("b", type="object", patternProperties={"^a": {"type": "null"}, "b$": {"type": "string"}})
    fields: Any = {"max_tokens": 300, "temperature": 1.5, "seed": 1}
    [call] = (
        vlm.chat(HI, tools=[other, tool()], tool_choice=named("look"), **fields).choices[0].message.tool_calls or ()
    )
    assert json.loads(call.function.arguments)["side"] in ("left", "right")
    [call] = vlm.chat(HI, tools=[other, tool()], tool_choice=named("b"), **fields).choices[0].message.tool_calls or ()
    assert call.function.arguments.startswith("{")
    strict = {"type": "function", "function": {**other["function"], "strict": True}}
    with pytest.raises(UnsupportedError, match="disjoint") as refused:
        vlm.chat(HI, tools=[tool(), strict], tool_choice="required", **fields)
    assert refused.value.param == "tools.1.function.parameters"


def named(name: str) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name}}


def test_json_is_compact_or_pretty(vlm: VLM) -> None:
    fields: Any = {"response_format": form(PERSON), "max_tokens": 900, "temperature": 1.9, "seed": 3}
    assert not re.search(r"\s", re.sub("(?<=[:,]) ", "", vlm.chat(HI, **fields).text))
    pretty = vlm.chat(HI, json_whitespace="pretty", **fields).text
    jsonschema.validate(json.loads(pretty), PERSON)
    assert "\n" in pretty


# ---- many


def test_many_at_once(vlm: VLM) -> None:
    def ask(seed: int) -> None:
        if seed % 4 == 3:
            assert vlm.chat(HI).text == "Show me a picture."
            return
        answer = vlm.chat(HI, response_format=form(PERSON), temperature=1.5, seed=seed, max_tokens=800)
        jsonschema.validate(json.loads(answer.text), PERSON)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(ask, range(24)))


def test_in_a_process_of_its_own(iota_bundle: Path) -> None:
    with VLM.load(iota_bundle, supervised=True, parallel=2, context_size=1024, threads=1) as vlm:
        answer = vlm.chat(HI, response_format=form(PERSON), max_tokens=800)
        jsonschema.validate(json.loads(answer.text), PERSON)
        with pytest.raises(UnsupportedError) as refused:
            vlm.chat(HI, response_format=form({"type": "integer", "minimum": 5, "maximum": 1}))
        assert refused.value.param == "response_format.json_schema.schema"
        stream = vlm.stream(HI, response_format=form(PERSON))
        next(stream)
        stream.close()
        assert vlm.chat(HI).text == "Show me a picture."
