"""Schemas of all origins: what an answer can be, what is left out and named, and what a strict schema refuses."""

from __future__ import annotations

import json
import re
import time
from contextlib import suppress
from typing import Any

import jsonschema
import pytest

from byte_grammar import allows
from pocketvlm.errors import UnsupportedError
from pocketvlm.messages import ChatRequest
from pocketvlm.native.grammar import MAX_GRAMMAR
from pocketvlm.structured.pattern import translate
from pocketvlm.structured.schema import CompiledSchema, compile_schema
from pocketvlm.structured.tools import argument_schemas

Texts = list[str]


def check(schema: dict[str, Any], right: Texts, wrong: Texts, *left_out: str, **options: Any) -> None:
    compiled = compile_schema(schema, "s", **options)
    assert compiled.left_out == tuple(f"s.{path}" for path in left_out)
    assert [text for text in right if not allows(compiled, text)] == []
    assert [text for text in wrong if allows(compiled, text)] == []


def within(schema: Any) -> dict[str, Any]:
    return {"type": "object", "properties": {"x": schema}, "required": ["x"]}


# ---- what cannot be enforced

LEFT_OUT = [
    ({"type": "array", "items": {"type": "null"}, "uniqueItems": True}, "uniqueItems", "[null,null]", "[1]"),
    ({"not": {"type": "null"}}, "not", "null", "nul"),
    ({"oneOf": [{"type": "string"}, {"type": "string", "format": "uri"}]}, "oneOf", '"a"', "1"),
    ({"type": "string", "pattern": r"^(?!\.)[a-z]+$"}, "pattern", '"A"', "1"),
    ({"type": "string", "pattern": r"(a)\1"}, "pattern", '"A"', "1"),
    ({"type": "string", "pattern": "("}, "pattern", '"A"', "1"),
    ({"type": "array", "items": {"type": "null"}, "contains": {"const": 1}}, "contains", "[]", "[1]"),
    (
        {"type": "object", "properties": {"a": {"type": "null"}}, "dependentRequired": {"a": ["b"]}},
        "dependentRequired",
        '{"a":null}',
        '{"c":1}',
    ),
    ({"type": "object", "properties": {"a": {"type": "null"}}, "if": {}, "then": {"required": ["a"]}}, "if", "{}", "1"),
    (
        {"type": "object", "additionalProperties": {"type": "null"}, "minProperties": 2},
        "minProperties",
        "{}",
        '{"a":1}',
    ),
    (
        {"type": "object", "propertyNames": {"format": "email"}, "additionalProperties": {"type": "null"}},
        "propertyNames",
        '{"a":null}',
        '{"a":1}',
    ),
    ({"$ref": "https://example.com/schema"}, "$ref", "1", "x"),
    ({"$ref": "#/$defs/none"}, "$ref", "1", "x"),
    ({"$ref": "#/allOf/\u00b2", "allOf": [True]}, "$ref", "1", "x"),  # a digit to str.isdigit, and no number to int
    ({"$ref": "#/allOf/" + "1" * 5000, "allOf": [True]}, "$ref", "1", "x"),
    ({"type": "strin"}, "type", "1", "x"),
    ({"type": "string", "minLength": -1}, "minLength", '""', "1"),
    (
        {"type": "object", "properties": {"a": {"type": "null"}}, "required": ["b"], "additionalProperties": False},
        "required",
        '{"a":null}',
        '{"b":1}',
    ),
    ({"type": "integer", "enum": ["1", "2"]}, "enum", "3", '"1"'),
    ({"enum": []}, "enum", "1", "x"),
    ({"const": 2**53 + 1}, "const", "1", "x"),
    ({"type": "number", "multipleOf": 1e-20}, "multipleOf", "1.5", '"x"'),
]


@pytest.mark.parametrize(("schema", "keyword", "right", "wrong"), LEFT_OUT)
def test_left_out_and_named(schema: Any, keyword: str, right: str, wrong: str) -> None:
    """The rest of the schema stays in force."""
    check(within(schema), [f'{{"x":{right}}}'], [f'{{"x":{wrong}}}', "{}"], f"properties.x.{keyword}")
    with pytest.raises(UnsupportedError) as refused:
        compile_schema(within(schema), "tools.3.function.parameters", owner='the tool "other"', strict=True)
    assert refused.value.param == f"tools.3.function.parameters.properties.x.{keyword}"
    assert f'keyword {keyword} of the tool "other"' in refused.value.message


@pytest.mark.parametrize("name", ["path", "password", "binary", "regex", "uri-reference", "ipv4network", "zzz"])
def test_unknown_formats_are_annotations(name: str) -> None:
    for strict in (False, True):
        check(
            within({"type": "string", "format": name}), ['{"x":"."}'], ['{"x":1}'], "properties.x.format", strict=strict
        )
    check(within({"type": "integer", "format": name}), ['{"x":1}'], ['{"x":"."}'], strict=True)


@pytest.mark.parametrize(
    ("name", "right", "wrong"),
    [
        ("date", ["2024-02-29", "2000-02-29", "1999-12-31"], ["2023-02-29", "1900-02-29", "0000-01-01", "2024-13-01"]),
        ("time", ["23:59:59Z", "00:00:00.5+02:00"], ["23:59:60Z", "24:00:00Z", "00:00:00.1234567Z"]),
        ("date-time", ["2024-02-29T00:00:00Z"], ["2023-02-29T00:00:00Z", "2024-02-29"]),
        ("uuid", ["123e4567-e89b-12d3-a456-426614174000"], ["123e4567"]),
        ("uuid4", ["123e4567-e89b-42d3-a456-426614174000"], ["123e4567-e89b-12d3-a456-426614174000"]),
        ("email", ["a@b.de"], ["a"]),
        ("duration", ["P1Y2M3D", "PT5M", "P1DT12H", "P3W"], ["P", "PT", "P1D2Y", "PT" + "1" * 9 + "S"]),
        ("base64", ["", "aGk=", "aGk/+A=="], ["aGk", "aGl=", "-_=="]),
    ],
)
def test_known_formats(name: str, right: Texts, wrong: Texts) -> None:
    quoted = [[json.dumps(text) for text in texts] for texts in (right, wrong)]
    check({"type": "string", "format": name}, *quoted, strict=True)
    check({"type": "string", "format": name, "pattern": "^[^2]"}, [], [text for text in quoted[0] if text[1] == "2"])


# ---- what the compiler takes too long for


def part(**keywords: Any) -> dict[str, Any]:
    return within({"type": "integer", **keywords})


@pytest.mark.parametrize(
    ("schema", "path", "how"),
    [
        (part(multipleOf=10_007), "properties.x.multipleOf", "remainders$"),
        (part(multipleOf=10**400), "properties.x.multipleOf", "remainders$"),
        (within({"type": "number", "multipleOf": 1.0007}), "properties.x.multipleOf", "remainders$"),
        (
            part(multipleOf=97, allOf=[{"multipleOf": 89}, {"multipleOf": 2}]),
            "properties.x.multipleOf",
            "with the others",
        ),
        ({"allOf": [part(multipleOf=101), part(multipleOf=103)]}, "allOf.1.properties.x.multipleOf", "with the others"),
        (
            {**part(multipleOf=1.03), "$ref": "#/$defs/a", "$defs": {"a": part(multipleOf=101)}},
            "$defs.a.properties.x.multipleOf",
            "with the others",
        ),
    ],
)
def test_too_many_remainders(schema: dict[str, Any], path: str, how: str) -> None:
    """Strict or not; only the arguments of a tool do without."""
    for strict in (False, True):
        with pytest.raises(UnsupportedError, match=f"multipleOf of the schema .* over 10,000 .*{how}") as refused:
            compile_schema(schema, "s", strict=strict)
        assert refused.value.param == f"s.{path}"
    with pytest.raises(UnsupportedError, match='multipleOf of the tool "other"'):
        compile_schema(schema, "s", owner='the tool "other"', strict=True, leave_out_costly=True)
    check(schema, ['{"x":0}'], ['{"x":"0"}'], path, leave_out_costly=True)


def test_many_remainders_take_little_time() -> None:
    began = time.process_time()
    compile_schema({"prefixItems": [{"type": "integer", "multipleOf": 5000 + i} for i in range(2500)]}, "s")
    assert time.process_time() - began < 4


def test_remainders_that_are_few_enough() -> None:
    check(part(multipleOf=9973), ['{"x":19946}'], ['{"x":9974}'])
    check(within({"type": "number", "multipleOf": 0.0001}), ['{"x":1.0007}'], ['{"x":1.00071}'])
    check({"allOf": [part(multipleOf=300), part(multipleOf=2.5)]}, ['{"x":600}'], ['{"x":605}'])
    apart = {name: {"type": "integer", "multipleOf": n} for name, n in (("a", 101), ("b", 103))}
    check({"type": "object", "properties": apart, "required": ["a", "b"]}, ['{"a":101,"b":103}'], ['{"a":1,"b":103}'])


@pytest.mark.parametrize("count", [35, 36])
def test_counts_of_many_properties(count: int) -> None:
    """The compiler writes the object once for each of them."""
    schema = {"type": "object", "properties": {f"p{i}": {"type": "null"} for i in range(count)}}
    for key, wrong in (("minProperties", "{}"), ("maxProperties", '{"p1":null,"p2":null}')):
        compiled = compile_schema({**schema, key: 1}, "s")
        assert compiled.left_out == ((f"s.{key}",) if count > 35 else ())
        assert allows(compiled, '{"p2":null}') and allows(compiled, wrong) == (count > 35)


def test_many_patterns() -> None:
    named = {"type": "object", "patternProperties": {f"^p{i}_": {} for i in range(101)}}
    with pytest.raises(UnsupportedError, match="more than 100") as refused:
        compile_schema(named, "s")
    assert refused.value.param == "s.patternProperties"
    ahead = {"type": "string", "pattern": "^" + "(?=.*a)" * 9}
    check(ahead, ['"b"'], ["1"], "pattern")


# ---- oneOf


def kind(name: str, *, required: bool = True) -> dict[str, Any]:
    names = ["kind", "n"] if required else ["n"]
    tag = {"const": name} if required else {"const": name, "default": name}
    return {"type": "object", "properties": {"kind": tag, "n": {"type": "integer"}}, "required": names}


INNER = {"oneOf": [{"$ref": "#/$defs/C"}, {"$ref": "#/$defs/D"}]}


@pytest.mark.parametrize(
    "schema",
    [
        {"oneOf": [kind("cat"), kind("dog")]},
        INNER,
        {**INNER, "discriminator": {"propertyName": "kind", "mapping": {"cat": "#/$defs/C", "dog": "#/$defs/D"}}},
        {
            "oneOf": [{"$ref": "#/$defs/lazy cat"}, {"$ref": "#/$defs/lazy dog"}],
            "discriminator": {"propertyName": "kind"},
        },
        {"oneOf": [kind("cat", required=False), kind("dog", required=False)]},
        {
            "oneOf": [
                {"type": "null"},
                {"$ref": "#/$defs/C"},
                {"allOf": [{"$ref": "#/$defs/D"}], "description": "a dog"},
            ]
        },
        {"oneOf": [{"$ref": "#/$defs/inner"}, {"$ref": "#/$defs/bird"}]},
    ],
)
def test_one_of(schema: dict[str, Any]) -> None:
    """References are followed, and a tag is written even where it has a default: no value then fits two parts."""
    definitions = {
        "C": kind("cat"),
        "D": kind("dog"),
        "inner": INNER,
        "bird": kind("bird"),
        "lazy cat": kind("cat", required=False),
        "lazy dog": kind("dog", required=False),
    }
    right, wrong = (
        ['{"kind":"cat","n":1}', '{"kind":"dog","n":2}'],
        ['{"kind":"cow","n":1}', '{"n":1}', '{"kind":"cat"}'],
    )
    check({**schema, "$defs": definitions}, right, wrong, strict=True)
    for text in right:
        jsonschema.validate(json.loads(text), {**schema, "$defs": definitions})


def test_a_tree_of_alternatives() -> None:
    leaf = {"type": "object", "properties": {"kind": {"const": "leaf"}}}
    node = {"type": "object", "properties": {"kind": {"const": "node"}, "next": {"$ref": "#/$defs/any"}}}
    schema = {
        "$ref": "#/$defs/any",
        "$defs": {
            "any": {
                "oneOf": [{"$ref": "#/$defs/leaf"}, {"$ref": "#/$defs/node"}],
                "discriminator": {"propertyName": "kind"},
            },
            "leaf": leaf,
            "node": node,
        },
    }
    deep = '{"kind":"node","next":{"kind":"node","next":{"kind":"leaf"}}}'
    check(schema, ['{"kind":"leaf"}', deep], ['{"next":{"kind":"leaf"}}', deep.replace("leaf", "loaf")], strict=True)


# ---- answers that end

OPEN = {"type": "object", "properties": {"a": {"type": "null"}}}
NAMED = {"P": OPEN, "Q": {"type": "object", "properties": {"b": {"type": "null"}}, "required": ["b"]}}


@pytest.mark.parametrize(
    ("schema", "right", "wrong"),
    [
        (OPEN, ["{}", '{"a":null}'], ['{"b":1}', '{"a":null,"b":1}', '{"a":1}']),
        ({"properties": {"a": {"type": "null"}}}, ["{}"], ["1", '{"b":1}']),
        ({**OPEN, "additionalProperties": True}, ['{"b":1}'], ['{"a":1}']),
        ({**OPEN, "additionalProperties": {"type": "null"}}, ['{"b":null}'], ['{"b":1}']),
        ({"type": "object"}, ["{}", '{"b":[1]}'], ["1"]),
        ({"type": "object", "patternProperties": {"^b": {"type": "null"}}}, ['{"b1":null}'], ['{"a":null}']),
        (
            {"allOf": [{"$ref": "#/$defs/P"}, {"$ref": "#/$defs/Q"}]},
            ['{"a":null,"b":null}', '{"b":null}'],
            ['{"a":null}', '{"b":null,"c":1}', '{"a":1,"b":null}'],
        ),
        ({"description": "one", "allOf": [{"$ref": "#/$defs/P"}]}, ["{}", '{"a":null}'], ['{"b":1}']),
        ({"$ref": "#/$defs/P", "properties": {"c": {"type": "null"}}}, ['{"c":null,"a":null}', "{}"], ['{"b":1}']),
        (
            {"anyOf": [{"$ref": "#/$defs/P"}, {"$ref": "#/$defs/Q"}]},
            ['{"a":null}', '{"b":null}'],
            ['{"a":null,"b":null}'],
        ),
        ({**OPEN, "anyOf": [{"required": ["a"]}, {"required": ["b"]}]}, ['{"a":null}', '{"b":1}'], ["{}", '{"c":1}']),
        ({**OPEN, "allOf": [{"additionalProperties": {"type": "null"}}]}, ['{"b":null}'], ['{"b":1}']),
        ({**OPEN, "required": ["b"]}, ['{"b":1}'], ["{}", '{"b":1,"c":1}']),
        (
            {"allOf": [OPEN], "properties": {"b": {"type": "null"}}, "unevaluatedProperties": False},
            ['{"a":null}', '{"b":null}'],
            ['{"c":1}'],
        ),
        ({"type": "array", "prefixItems": [{"type": "null"}]}, ["[]", "[null]"], ["[null,1]"]),
    ],
)
def test_objects_have_the_properties_that_are_named(schema: dict[str, Any], right: Texts, wrong: Texts) -> None:
    check({**schema, "$defs": NAMED}, right, wrong, strict=True)


@pytest.mark.parametrize(
    ("schema", "right", "wrong"),
    [
        ({"type": "integer"}, ["0", "-5", "9007199254740991"], ["12345678901234567", "9007199254740992", "1.5"]),
        ({"type": ["integer", "null"]}, ["null", "-12"], ["1" * 17]),
        ({"type": "integer", "minimum": 10}, ["10", "9007199254740991"], ["9", "1" * 17]),
        ({"type": "integer", "maximum": 2**63 - 1}, ["1" * 18], ["1" * 19]),
        ({"type": "integer", "minimum": 2**53 + 1}, ["9007199254740994"], ["9007199254740992"]),
        ({"type": "number"}, ["1.5", "-0.123456789", "1234567890123456"], ["0.1234567891", "1" * 17]),
        ({"type": "number", "minimum": 0, "maximum": 1}, ["0.5", "0", "1", "0.333333333"], ["0.3333333333", "1.1"]),
        (
            {"type": "number", "exclusiveMinimum": 0, "exclusiveMaximum": 0.5},
            ["0.25", "0.499999999"],
            ["0", "0.0", "0.5"],
        ),
        ({"type": "number", "exclusiveMinimum": 8, "maximum": 8.5}, ["8.1", "8.5"], ["8", "8.0"]),
        (
            {"type": "number", "exclusiveMinimum": 0, "multipleOf": 0.25, "maximum": 1},
            ["0.25", "1"],
            ["0", "0.0", "0.3"],
        ),
        ({"type": "number", "exclusiveMinimum": 0, "maximum": 1e-11}, ["0.00000000001"], ["0", "0.0"]),
        ({"multipleOf": 5, "anyOf": [{"type": "number"}, {"type": "null"}]}, ["5", "null", "10"], ["1", "2.5"]),
        ({"enum": [2**53 + 1, 5]}, ["5"], ["9007199254740992", "9007199254740993"]),
    ],
)
def test_numbers_end_and_keep_to_their_bounds(schema: dict[str, Any], right: Texts, wrong: Texts) -> None:
    check(schema, right, wrong, strict=True)


def test_white_space() -> None:
    schema = {"type": "object", "properties": {"a": {"type": "array", "items": {"type": "integer"}}}, "required": ["a"]}
    compact = ['{"a":[1,2]}', '{"a": [1, 2]}']
    pretty = ['{ "a": [1] }', '{\n  "a": [\n    1\n  ]\n}']
    check(schema, compact, [*pretty, ' {"a":[]}', '{"a":  []}', '{"a" :[]}', '{"a":[1 ,2]}'])
    check(schema, [*compact, *pretty], ['{"a":\n\n[]}'], pretty=True)


# ---- schemas of other ages


@pytest.mark.parametrize(
    ("schema", "right", "wrong"),
    [
        (
            {"type": "object", "properties": {"a": {"type": "string"}}, "required": None},
            ["{}", '{"a":"x"}'],
            ['{"a":1}'],
        ),
        ({"type": "object", "properties": None}, ["{}"], ["1"]),
        (
            within({"type": "string", "enum": None, "pattern": None, "minLength": None, "format": None}),
            ['{"x":""}'],
            ["{}"],
        ),
        (within({"anyOf": [None, {"type": "null"}], "allOf": None}), ['{"x":null}'], ['{"x":1}']),
        (within(None), ['{"x":[]}'], ["{}"]),
        (within({"const": None}), ['{"x":null}'], ['{"x":1}']),
        (
            {"properties": {"a": {"type": "null", "required": True}, "b": {"type": "null", "required": False}}},
            ['{"a":null}'],
            ["{}", '{"b":null}'],
        ),
        (within({"type": "integer", "minimum": 0, "exclusiveMinimum": True}), ['{"x":1}'], ['{"x":0}']),
        (within({"type": "integer", "maximum": 0, "exclusiveMaximum": False}), ['{"x":0}'], ['{"x":1}']),
        (within({"type": "integer", "divisibleBy": 3}), ['{"x":6}'], ['{"x":7}']),
        (
            {"type": "OBJECT", "properties": {"x": {"type": "ARRAY", "items": {"type": "STRING"}, "minItems": "1"}}},
            ['{"x":["a"]}'],
            ['{"x":[]}', '{"x":"a"}'],
        ),
        (within({"type": "any"}), ['{"x":1}', '{"x":"a"}'], ["{}"]),
        (within({"type": "str"}), ['{"x":"a"}'], ['{"x":1}']),
        (within({"type": ["string", {"enum": [1]}]}), ['{"x":"a"}', '{"x":1}'], ['{"x":2}']),
        (within({"type": "string", "nullable": True}), ['{"x":"a"}', '{"x":null}'], ['{"x":1}']),
        (within({"type": "string", "enum": ["a"], "nullable": True}), ['{"x":"a"}', '{"x":null}'], ['{"x":"b"}']),
        (
            {**within({"$ref": "#/definitions/N", "nullable": True}), "definitions": {"N": {"type": "integer"}}},
            ['{"x":1}', '{"x":null}'],
            ['{"x":"b"}'],
        ),
        (
            within({"type": "array", "items": [{"type": "null"}], "additionalItems": False}),
            ['{"x":[null]}'],
            ['{"x":[1]}'],
        ),
        (
            {"$ref": "#/components/schemas/A", "components": {"schemas": {"A": within({"type": "null"})}}},
            ['{"x":null}'],
            ['{"x":1}', "1"],
        ),
        ({"$ref": "#anchor", "$defs": {"a": {"$anchor": "anchor", "type": "null"}}}, ["null"], ["1"]),
        (
            {
                "$id": "https://example.com/s",
                "$ref": "https://example.com/s#/$defs/a",
                "$defs": {"a": {"type": "null"}},
            },
            ["null"],
            ["1"],
        ),
        (
            {"type": "object", "propertyNames": {"format": "regex"}, "additionalProperties": {"type": "null"}},
            ['{"a":null}'],
            ['{"a":1}'],
        ),
        (
            {"type": "object", "propertyNames": {"enum": ["r", "g"]}, "additionalProperties": {"type": "null"}},
            ['{"r":null,"g":null}'],
            ['{"b":null}', '{"r":1}'],
        ),
        (
            {"type": "object", "propertyNames": {"pattern": "^r"}, "additionalProperties": {"type": "null"}},
            ['{"red":null}'],
            ['{"b":null}', '{"r":1}'],
        ),
        (
            {"type": "object", "propertyNames": {"maxLength": 2}, "additionalProperties": {"type": "null"}},
            ['{"re":null}'],
            ['{"red":null}'],
        ),
    ],
)
def test_other_ages(schema: dict[str, Any], right: Texts, wrong: Texts) -> None:
    check(schema, right, wrong, strict=True)


def test_arguments_are_objects() -> None:
    """Whatever the type of a tool's parameters says."""
    for given in ("object", ["object", "null"], None):
        check({"type": given, "properties": {}, "nullable": True}, ["{}"], ["null"], is_object=True, strict=True)
    check({"type": "string"}, ["{}"], ['"a"'], "type", is_object=True)


# ---- tools, and limits


@pytest.mark.parametrize(
    ("parameters", "right", "wrong", "left_out"),
    [
        (None, ["{}"], ['{"a":1}'], []),
        ({"type": "object"}, ["{}", '{"a":1}'], ["[]"], []),
        ({"enum": ["x" * 100] * 2000}, ['{"a":1}'], ["[]"], ["tools.0.function.parameters"]),
        ({"properties": {f"p{i}": {} for i in range(500)}}, ['{"a":1}'], ["[]"], ["tools.0.function.parameters"]),
    ],
)
def test_arguments_of_a_tool(parameters: Any, right: Texts, wrong: Texts, left_out: Texts) -> None:
    """What is too large to enforce affects its tool alone, and refuses a strict one."""
    function = {"name": "f", "parameters": parameters}
    request = ChatRequest.parse([{"role": "user", "content": "hi"}], tools=[{"type": "function", "function": function}])
    [rule], named = argument_schemas(request.tools or (), [0], pretty=False)
    compiled = CompiledSchema(rule.text, tuple(named))
    assert named == left_out
    assert all(allows(compiled, text) for text in right) and not any(allows(compiled, text) for text in wrong)
    if left_out:
        strict = ChatRequest.parse(
            [{"role": "user", "content": "hi"}], tools=[{"type": "function", "function": {**function, "strict": True}}]
        )
        with pytest.raises(UnsupportedError, match="supported"):
            argument_schemas(strict.tools or (), [0], pretty=False)


def test_many_large_tools() -> None:
    """Together they are too large: the largest accept any object."""
    names = [f"f{i}" for i in range(60)]
    functions = [{"name": name, "parameters": within({"enum": [f"{name} {i}" for i in range(600)]})} for name in names]
    functions.append({"name": "small", "parameters": within({"type": "null"})})
    tools = [{"type": "function", "function": function} for function in functions]
    request = ChatRequest.parse([{"role": "user", "content": "hi"}], tools=tools)
    rules, named = argument_schemas(request.tools or (), range(61), pretty=False)
    assert sum(len(rule.text) for rule in rules) < MAX_GRAMMAR
    assert 0 < len(named) < 60
    assert not allows(CompiledSchema(rules[-1].text, ()), '{"x":1}')


def test_many_small_tools_take_little_time() -> None:
    tools = [{"name": f"f{i}", "parameters": within({"not": {"type": "null"}})} for i in range(4000)]
    request = ChatRequest.parse([{"role": "user", "content": "hi"}], tools=tools)
    began = time.process_time()
    _, named = argument_schemas(request.tools or (), range(4000), pretty=False)
    assert len(named) == 4000
    assert time.process_time() - began < 4


def circle(i: int) -> dict[str, Any]:
    tagged = [{"type": "object", "properties": {f"t{i}": {"const": value}}} for value in (1, 2)]
    return {"oneOf": [*tagged, {"$ref": f"#/$defs/{(i + 1) % 60}"}, {"$ref": f"#/$defs/{(i + 7) % 60}"}]}


@pytest.mark.parametrize(
    "schema",
    [
        {"$ref": "#/$defs/a", "$defs": {"a": {"anyOf": [{"$ref": "#/$defs/a"}] * 200}}},
        {"$ref": "#/$defs/a", "$defs": {"a": {"oneOf": [{"$ref": "#/$defs/a"}] * 200}}},
        {"$ref": "#/$defs/0", "$defs": {str(i): circle(i) for i in range(60)}},
        {"properties": {"a": {"anyOf": [{}] * 30_000}}},
        {"anyOf": [{"$ref": f"#/anyOf/{i}"} for i in range(4000)]},
        {"oneOf": [{"const": f"v{i}"} for i in range(3000)]},
    ],
)
def test_the_work_is_limited(schema: dict[str, Any]) -> None:
    began = time.process_time()
    with suppress(UnsupportedError):
        compile_schema(schema, "s")
    assert time.process_time() - began < 5


# ---- patterns

SAMPLES = [
    "",
    '"',
    "\\",
    "a\\b",
    "[",
    "&",
    "a",
    "b",
    ",",
    "a{2",
    "ABC",
    "abc",
    "-",
    ".",
    "é",
    "/",
    "\n",
    "ab",
    "0",
    "_",
]


@pytest.mark.parametrize(
    "pattern",
    [
        '^[^"]*$',
        r"^[^\\]+$",
        r"^[^\"\\]*$",
        r"^[^a-z]$",
        "[[]",
        "^[a&&b]$",
        "[+--]",
        "a{2",
        r"\S",
        r"^\W$",
        r"^\D+$",
        ".",
        r"^[\d\-.]+$",
        r"^a|b$",
        "(?:^|,)a",
        "a(?:,|$)",
        r"[^\s]",
        "(?i)^abc$",
        "(?i:ABC)",
        "(?s)^.$",
        "(?P<n>a)b",
        r"^\x61b?$",
        r"^[^b]\\",
        "^/$",
        "^é$",
        "[!-~]",
        r"^[\]\[]$",
        "^(a|[^b])b?$",
        r"^(?=.*[a-z])(?=.*\d|.*b).{2,}$",
        "^(?!^[-+.]*$)[+-]?[0-9]*[.]?[0-9]*$",
        "",
        r"^(?:[^\n]|\n)$",
        r"\u0041",
        r"\Aab\Z",
    ],
)
@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_patterns_are_what_they_are_elsewhere(pattern: str) -> None:
    """Compared with Python's own regular expressions."""
    compiled = compile_schema({"type": "string", "pattern": pattern}, "s", strict=True)
    for text in SAMPLES:
        assert allows(compiled, json.dumps(text, ensure_ascii=False)) == bool(re.search(pattern, text)), text


@pytest.mark.parametrize(
    ("pattern", "wrong"),
    [
        (r"^\D$", "٣"),
        (r"^\W$", "é²"),
        (r"^\S$", "\ufeff\u0085"),
        (r"^\s$", "\ufeff"),
        (r"^\d$", "٣"),
        ("^.$", "\u2028\r"),
        (r"^[^\d]$", "٣"),
        (r"^[^\w]$", "é"),
    ],
)
def test_only_strings_that_fit_in_all_languages(pattern: str, wrong: str) -> None:
    compiled = compile_schema({"type": "string", "pattern": pattern}, "s", strict=True)
    assert not any(allows(compiled, json.dumps(char, ensure_ascii=False)) for char in wrong)


def test_keys_keep_to_their_pattern() -> None:
    check(
        {"patternProperties": {'^[^"]$': {"type": "null"}}},
        ['{"a":null}'],
        ['{"\\"":null}', '{"ab":null}'],
        strict=True,
    )


@pytest.mark.parametrize(
    "pattern",
    [
        "(",
        "a)",
        "[a",
        "[]",
        "*a",
        "a**",
        "a{2,1}",
        "a{,3}",
        "a++",
        r"\bx",
        r"\1",
        "(?=a)",
        "(?<!a)b",
        "a^b",
        "(a$)+",
        r"\q",
        "\\",
        "[b-a]",
        "(?m)^a",
        "(" * 60 + ")" * 60,
    ],
)
def test_patterns_that_cannot_be_enforced(pattern: str) -> None:
    with pytest.raises(ValueError, match=r"\w"):
        translate(pattern)


@pytest.mark.parametrize("pattern", ["^" * 100_000, "a" * 100_000, "$" * 100_000, "^a" + "b?" * 50_000 + "$"], ids=len)
def test_long_patterns_take_no_time(pattern: str) -> None:
    began = time.process_time()
    assert translate(pattern) == [pattern]
    assert time.process_time() - began < 5


def test_names_that_look_ahead_are_refused_in_words() -> None:
    with pytest.raises(UnsupportedError, match="look-around in names"):
        compile_schema({"patternProperties": {"^(?=a)b": {}}}, "s", strict=True)
