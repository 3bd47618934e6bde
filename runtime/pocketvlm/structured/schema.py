"""JSON Schema -> grammar. Pure.

The compiler, llguidance, has a schema's keywords enforced token by token. It lacks some, and takes others too loosely.
So a schema is rewritten: into keywords and values that are enforced exactly, or more narrowly. What cannot be enforced
is left out and named, or refused where the caller asked for a strict schema.

Narrower than it says on purpose, against answers without an end: objects have only the properties that the schema
names, whole numbers have at most 16 digits, and other numbers 9 decimals, unless the schema itself says otherwise.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

from pocketvlm.errors import UnsupportedError, shortened
from pocketvlm.structured.alternatives import exclude_each_other, find_tag, is_tagged
from pocketvlm.structured.dialects import NULLABLE, Schema, is_required_by_draft_3, modern, type_names
from pocketvlm.structured.formats import COMPILED, OF_NUMBERS, PATTERNS
from pocketvlm.structured.numbers import MAX_REMAINDERS, Multiple, bounds, representable
from pocketvlm.structured.objects import (
    MAX_PATTERN_PROPERTIES,
    MAX_PROPERTIES,
    close,
    close_unevaluated,
    property_counts,
    write_names,
)
from pocketvlm.structured.pattern import translate
from pocketvlm.structured.references import References

Tags: TypeAlias = "tuple[str, ...]"

MAX_SCHEMA = 1 << 17  # characters
MAX_PARTS = 20_000  # schemas within it, each counted where it is used
MAX_DEPTH = 500  # levels, with those behind references: the compiler recurses on the process's stack
# A space behind colon and comma: with none, models that were trained with it answer worse.
_COMPACT = {"whitespace_flexible": False, "key_separator": ": ?", "item_separator": ", ?"}
# Where a caller asks for readable JSON, also a line break and indentation, anywhere.
_PRETTY = {"whitespace_pattern": r"( |\n {0,16}|\n\t{0,8})"}
# Each string has one spelling: otherwise a property that the schema restricts could come in another one, "\u0061" for
# "a", as one that it does not restrict.
_ESCAPES = {"json_allowed_escapes": '"\\bfnrt'}
_COMBINATIONS = ("$ref", "allOf", "anyOf", "oneOf")
_OF_OBJECTS = frozenset(
    "properties patternProperties additionalProperties propertyNames required minProperties maxProperties "
    "unevaluatedProperties dependentSchemas dependentRequired dependencies if then else".split()
)
_OF_TYPES = {
    "object": frozenset("properties patternProperties additionalProperties propertyNames required".split()),
    "array": frozenset("items prefixItems minItems maxItems uniqueItems contains".split()),
    "string": frozenset("pattern minLength maxLength".split()),
    "number": frozenset("minimum maximum exclusiveMinimum exclusiveMaximum multipleOf".split()),
}
# Keywords that restrict values and that the compiler does not know, with values that restrict nothing.
_UNKNOWN: dict[str, tuple[Any, ...]] = {
    "not": (False,),
    "if": (),
    "contains": (),
    "uniqueItems": (False,),
    "dependencies": ({},),
    "dependentRequired": ({},),
    "dependentSchemas": ({},),
    "unevaluatedItems": (True, {}),
    "unevaluatedProperties": (True, {}),
    "$dynamicRef": (),
    "$recursiveRef": (),
    "extends": ({},),
    "disallow": ((), []),
}


# What messages may name: words of JSON Schema, none of a client.
KEYWORDS = (
    frozenset(_UNKNOWN) | _OF_OBJECTS | frozenset().union(*_OF_TYPES.values()) | {"type", "format", "enum", "const"}
)
KEYWORDS |= frozenset(_COMBINATIONS)


@dataclass(frozen=True)
class CompiledSchema:
    """`rule` is the right side of a rule in llguidance's Lark. `left_out` are paths of keywords it does not enforce."""

    rule: str
    left_out: tuple[str, ...]


def compile_schema(
    schema: Mapping[str, Any],
    param: str,
    *,
    owner: str = "the schema",
    strict: bool = False,
    pretty: bool = False,
    is_object: bool = False,
    leave_out_costly: bool = False,
) -> CompiledSchema:
    """Compile a schema, whose path in the request is `param`, and of which errors speak as `owner`.

    `strict` refuses what cannot be enforced. What would cost the compiler too much is refused, too, unless
    `leave_out_costly`. `is_object`: the values are objects, whatever the schema says.
    Raises UnsupportedError with the path of a keyword.
    """
    text = json.dumps(schema)
    if len(text) > MAX_SCHEMA:
        raise UnsupportedError(f"the schema has {len(text):,} characters; at most {MAX_SCHEMA:,} are supported", param)
    rewriter = _Rewriter(schema, param, owner, strict=strict, refuse_costly=strict or not leave_out_costly)
    rewriter.check_depth()
    rewritten = rewriter.rewrite(is_object=is_object)
    options = {**(_PRETTY if pretty else _COMPACT), **_ESCAPES}
    return CompiledSchema("%json " + json.dumps({**rewritten, "x-guidance": options}), tuple(rewriter.left_out))


@dataclass(frozen=True)
class _Definition:
    name: str
    target: Any
    path: str
    is_open: bool
    tags: Tags


class _Rewriter:
    """Rewrites one schema. Each schema that is referred to becomes a definition, written once for each use of it."""

    def __init__(self, root: Mapping[str, Any], param: str, owner: str, *, strict: bool, refuse_costly: bool) -> None:
        self._root, self._param, self._owner = root, param, owner
        self._strict, self._refuse_costly = strict, refuse_costly
        self._references = References(root)
        self._definitions: dict[tuple[int, bool, Tags], _Definition] = {}
        self._pending: list[_Definition] = []
        self._count = 0
        self._multiple = Multiple(1, 0)  # of all numbers so far
        self.left_out: dict[str, None] = {}  # paths in order

    def rewrite(self, *, is_object: bool) -> Schema:
        root: Mapping[str, Any] = self._root
        if is_object and self._references.types(root) != {"object"}:
            if "object" not in (self._references.types(root) or {"object"}):
                self._leave_out(self._param, "type", "tools take objects")
            root = {key: value for key, value in root.items() if key not in NULLABLE} | {"type": "object"}
        result = self._schema(root, self._param, is_open=False)
        definitions = {}
        while self._pending:  # references nest without Python's stack
            todo = self._pending.pop()
            definitions[todo.name] = self._schema(todo.target, todo.path, is_open=todo.is_open, tags=todo.tags)
        result = result if isinstance(result, dict) else {"allOf": [result]}
        return {**result, "$defs": definitions} if definitions else result

    def check_depth(self) -> None:
        """Raises UnsupportedError."""
        if (depth := self._references.depth(MAX_DEPTH)) > MAX_DEPTH:
            raise UnsupportedError(
                f"the schema is too deep: {depth:,} levels with references; at most {MAX_DEPTH} are supported",
                self._param,
            )

    def _leave_out(self, path: str, keyword: str | None, reason: str = "", *, annotation: bool = False) -> None:
        """Note that a keyword is not enforced. An `annotation` need not be, even in a strict schema."""
        full = f"{path}.{keyword}" if keyword else path
        if self._strict and not annotation:
            what = f"the keyword {shortened(keyword)}" if keyword else "a part"
            raise UnsupportedError(
                f"{what} of {self._owner} cannot be enforced{f' ({shortened(reason)})' if reason else ''}; "
                "leave it out, or send it without strict: true",
                full,
            )
        self.left_out[full] = None

    def _leave_out_costly(self, path: str, keyword: str, reason: str) -> None:
        """Note that a keyword is not enforced because the compiler would take too long; or refuse it."""
        full = f"{path}.{keyword}"
        if self._refuse_costly:
            raise UnsupportedError(f"the keyword {keyword} of {self._owner} cannot be enforced: {reason}", full)
        self.left_out[full] = None

    def _schema(self, value: Any, path: str, *, is_open: bool, tags: Tags = ()) -> Any:
        """Return a schema in the compiler's keywords.

        `is_open`: others apply to the same value, so it must not exclude properties that it does not name. `tags`:
        properties that the value, an object, has in any case.
        """
        self._count += 1
        if self._count > MAX_PARTS:
            raise UnsupportedError(f"the schema is too large: it has over {MAX_PARTS:,} parts", self._param)
        if value is None or isinstance(value, bool):
            return value is not False
        if not isinstance(value, Mapping):
            self._leave_out(path, None, "it is not a schema")
            return True
        schema = modern(value, lambda keyword: self._leave_out(path, keyword, "it has no meaning"))
        self._require_by_draft_3(schema)
        if not write_names(schema, self._references):
            self._leave_out(path, "propertyNames")
        combinations = [key for key in _COMBINATIONS if key in schema]
        own = (_OF_OBJECTS | _OF_TYPES["number"]) & set(schema)
        passes_on = len(combinations) == 1 and not own and len(schema.get("allOf", "1")) == 1
        if tags and not passes_on:
            schema["required"] = list(dict.fromkeys([*schema.get("required", ()), *tags]))
            schema.setdefault("type", "object")
        if not is_open:
            self._infer_type(schema)
        self._leave_out_unknown(schema, path)
        result: Schema = {}
        if not passes_on and not is_open:
            close(schema, self._references)
        if not combinations:
            self._forget_impossible(schema, path)
        inner_open = is_open if passes_on else True
        inner_tags = tags if passes_on else ()
        names = schema.get("type")
        types = None if names is None else {names} if isinstance(names, str) else set(names)
        plain = not is_open and not combinations
        for key in schema:
            here = f"{path}.{key}"
            if key == "$ref":
                self._reference(schema[key], path, result, is_open=inner_open, tags=inner_tags)
            elif key in ("allOf", "anyOf"):
                parts = [
                    self._schema(part, f"{here}.{i}", is_open=inner_open, tags=inner_tags)
                    for i, part in enumerate(schema[key])
                ]
                if key == "anyOf":
                    _add_any(result, parts)
                else:
                    result[key] = [*result.get(key, ()), *parts]
            elif key == "oneOf":
                _add_any(result, self._one_of(schema, path, is_open=inner_open, tags=inner_tags))
            elif key in ("const", "enum"):
                self._constants(key, schema, types, path, result)
            elif key in ("properties", "patternProperties"):
                result[key] = self._property_map(key, schema[key], here)
            elif key in ("additionalProperties", "items"):
                result[key] = self._schema(schema[key], here, is_open=False)
            elif key == "prefixItems":
                result[key] = [self._schema(part, f"{here}.{i}", is_open=False) for i, part in enumerate(schema[key])]
                if plain and "items" not in schema:
                    result["items"] = False
            elif key == "pattern":
                self._pattern(schema[key], path, result)
            elif key == "format":
                self._format(schema[key], types, path, result)
            elif key in ("type", "required", "minLength", "maxLength", "minItems", "maxItems"):
                result[key] = schema[key]
        if types is None or types & {"integer", "number"}:
            self._limit_multiple(schema, path)
            result |= bounds(schema, types, plain=plain, leave_out=lambda key: self._leave_out(path, key))
        if types is None or "object" in types:
            result |= property_counts(schema, result, plain=plain, leave_out=lambda key: self._leave_out(path, key))
        return result

    def _limit_multiple(self, schema: Schema, path: str) -> None:
        """Leave out `multipleOf` where the compiler's automaton would be too large.

        Several may apply to one number where schemas are combined, so their least common multiple is limited.
        """
        multiple = Multiple.of(schema["multipleOf"]) if "multipleOf" in schema else None
        if multiple is None:
            return
        common = self._multiple.common(multiple)
        if common.divisor <= MAX_REMAINDERS:
            self._multiple = common
            return
        alone = multiple.divisor > MAX_REMAINDERS
        if alone or self._references.combines:
            reason = f"it has over {MAX_REMAINDERS:,} remainders{'' if alone else ' together with the others'}"
            self._leave_out_costly(path, "multipleOf", reason)
            del schema["multipleOf"]

    def _require_by_draft_3(self, schema: Schema) -> None:
        names = [name for name, part in schema.get("properties", {}).items() if is_required_by_draft_3(part)]
        if names:
            schema["required"] = list(dict.fromkeys([*schema.get("required", ()), *names]))

    def _forget_impossible(self, schema: Schema, path: str) -> None:
        """Require no property that the same schema excludes: most often a name that is misspelt."""
        if schema.get("additionalProperties") is False and "patternProperties" not in schema:
            possible = [name for name in schema.get("required", ()) if name in schema.get("properties", {})]
            if len(possible) < len(schema.get("required", ())):
                self._leave_out(path, "required", "it names properties that are not there")
                schema["required"] = possible

    def _infer_type(self, schema: Schema) -> None:
        """Add the type that the other keywords are about: they say nothing of values of other types."""
        if {"type", "const", "enum", "$ref", "allOf", "anyOf", "oneOf", "not", "if"} & set(schema):
            return
        about = [name for name, keywords in _OF_TYPES.items() if keywords & set(schema)]
        if schema.get("format") in COMPILED | set(PATTERNS):
            about.append("string")
        if len(set(about)) == 1:
            schema["type"] = about[0]

    def _leave_out_unknown(self, schema: Schema, path: str) -> None:
        for key in [key for key in schema if key in _UNKNOWN]:
            value = schema[key]
            trivial = value in _UNKNOWN[key]
            trivial |= key == "if" and not {"then", "else"} & set(schema)
            trivial |= key == "uniqueItems" and schema.get("maxItems", 2) < 2
            trivial |= key == "unevaluatedItems" and "items" in schema
            if key == "unevaluatedItems" and value is False and not set(_COMBINATIONS) & set(schema):
                schema["items"], trivial = False, True
            if key == "unevaluatedProperties" and value is False:
                trivial = close_unevaluated(schema, self._references)
            if not trivial:
                self._leave_out(path, key)

    def _reference(self, reference: str, path: str, result: Schema, *, is_open: bool, tags: Tags) -> None:
        try:
            target = self._references.resolve(reference)
        except LookupError:
            self._leave_out(path, "$ref", "it refers to nothing within the schema")
            return
        if isinstance(target, bool):
            result.setdefault("allOf", []).append(target)
            return
        if self._references.types(target) == {"object"}:
            tags = tuple(tag for tag in tags if not self._references.requires(target, tag))
        key = id(target), is_open, tags
        if key not in self._definitions:
            steps = [self._param, *reference.lstrip("#/").split("/")]
            definition = _Definition(f"d{len(self._definitions)}", target, ".".join(steps), is_open, tags)
            self._definitions[key] = definition
            self._pending.append(definition)
        result["$ref"] = f"#/$defs/{self._definitions[key].name}"

    def _one_of(self, schema: Schema, path: str, *, is_open: bool, tags: Tags) -> list[Any]:
        parts = schema["oneOf"]
        tag = find_tag(parts, schema, self._references)
        if not exclude_each_other(parts, tag, self._references):
            self._leave_out(path, "oneOf", "several of its parts may fit; use anyOf")
        result = []
        for i, part in enumerate(parts):
            is_one = tag is not None and is_tagged(part, self._references)
            more = (*tags, tag) if is_one and tag is not None and tag not in tags else tags
            result.append(self._schema(part, f"{path}.oneOf.{i}", is_open=is_open, tags=more))
        return result

    def _constants(self, key: str, schema: Schema, types: set[str] | None, path: str, result: Schema) -> None:
        given = [schema[key]] if key == "const" else schema[key]
        values = [value for value in given if representable(value) and (types is None or type_names(value) & types)]
        if not values:
            self._leave_out(path, key, "its values are of another type, or whole numbers of more than 53 bits")
        else:
            result[key] = values[0] if key == "const" else values

    def _property_map(self, key: str, value: Mapping[str, Any], path: str) -> Schema:
        most = MAX_PROPERTIES if key == "properties" else MAX_PATTERN_PROPERTIES
        if len(value) > most:
            raise UnsupportedError(f"more than {most} properties are not supported", path)
        result: Schema = {}
        for name, part in value.items():
            written = name
            if key == "patternProperties":
                try:
                    written, *conditions = translate(name)
                    if conditions:
                        raise ValueError("look-around in names is not supported")
                except ValueError as error:
                    self._leave_out(path, name, str(error))
                    continue
            result[written] = self._schema(part, f"{path}.{name}", is_open=False)
        return result

    def _pattern(self, pattern: str, path: str, result: Schema) -> None:
        try:
            for part in translate(pattern):
                _add_pattern(part, result)
        except ValueError as error:
            self._leave_out(path, "pattern", str(error))

    def _format(self, name: str, types: set[str] | None, path: str, result: Schema) -> None:
        if types is not None and "string" not in types:
            return
        if name in PATTERNS:
            _add_pattern(PATTERNS[name], result)
        elif name in COMPILED:
            result["format"] = name
        elif name not in OF_NUMBERS:
            self._leave_out(path, "format", annotation=True)


def _add_any(result: Schema, parts: list[Any]) -> None:
    if "anyOf" in result:
        result.setdefault("allOf", []).append({"anyOf": parts})
    else:
        result["anyOf"] = parts


def _add_pattern(pattern: str, result: Schema) -> None:
    if "pattern" in result:
        result.setdefault("allOf", []).append({"pattern": pattern})
    else:
        result["pattern"] = pattern
