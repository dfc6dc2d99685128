"""JSON Schema as expressions.

What comes of a schema satisfies it; not all that satisfies it can come. Members of objects come in the order of the
schema, each at most once and spelled in one way. What cannot be kept to is refused by name: nothing is left out.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NoReturn
from urllib.parse import unquote

from npumatmul.files.reading import shown
from npumatmul.llm.constrain.expressions import Choice, Expression, Later, Sequence, bounded, one_of
from npumatmul.llm.constrain.integers import integers
from npumatmul.llm.constrain.json_values import JSONValues, spelled
from npumatmul.llm.constrain.strings import FORMATS, pattern

__all__ = ["json_grammar"]

TYPES = ("object", "array", "string", "integer", "number", "boolean", "null")
#: What says something to people or to other programs, and nothing of values.
NOTES = frozenset(
    {"$anchor", "$comment", "$defs", "$id", "$schema", "contentEncoding", "contentMediaType", "default", "definitions"}
    | {"deprecated", "description", "discriminator", "example", "examples", "readOnly", "title", "writeOnly"}
)
#: What each keyword is about.
ABOUT = {
    "properties": "object",
    "required": "object",
    "additionalProperties": "object",
    "items": "array",
    "prefixItems": "array",
    "minItems": "array",
    "maxItems": "array",
    "minLength": "string",
    "maxLength": "string",
    "pattern": "string",
    "format": "string",
    "minimum": "number",
    "maximum": "number",
    "exclusiveMinimum": "number",
    "exclusiveMaximum": "number",
}
WHOLE = ("$ref", "anyOf", "oneOf", "allOf", "enum", "const")
MOST_DEPTH = 64
MOST_PARTS = 20_000  # schemas in a schema
MOST_NAME = 200  # characters of the name of a property that others have to differ from
MOST_NAMES = 100_000  # characters of all of them
MOST_COUNT = 100_000  # of characters or items


def json_grammar(schema: object = None) -> Expression:
    """The texts that are JSON and satisfy a schema.

    Parameters
    ----------
    schema : object
        A JSON schema; None is any object.

    Returns
    -------
    Expression
        Their bytes, with or without space in front.

    Raises
    ------
    ValueError
        If the schema is none, nothing satisfies it, it is too large, or it has something that cannot be kept to.
    """
    with bounded("the schema is"):
        values = JSONValues()
        if schema is None:
            return Sequence(values.space, values.object)
        return Sequence(values.space, _Compiler(values, schema).compiled(schema, "#", 0))


class _Compiler:
    def __init__(self, values: JSONValues, root: object) -> None:
        self._values, self._root = values, root
        self._references: dict[str, Later] = {}
        self._parts = 0

    def compiled(self, schema: object, at: str, depth: int) -> Expression:
        """The values that satisfy a schema."""
        self._parts += 1
        if depth > MOST_DEPTH or self._parts > MOST_PARTS:
            raise ValueError(
                f"the schema is too large: at {at[:200]} it is deeper than {MOST_DEPTH}, or it has more "
                f"than {MOST_PARTS} parts"
            )
        if schema is True:
            return self._values.value
        if schema is False:
            return Choice()
        if not isinstance(schema, Mapping):
            _refuse(at, f"is {shown(schema)}, which is no schema: a schema is an object, true or false")
        keys = [key for key in schema if key not in NOTES]
        self._refuse_other_base(schema, at)
        for key in keys:
            if key not in ABOUT and key not in WHOLE and key != "type":
                if key == "uniqueItems" and schema[key] is False:
                    continue
                _refuse(at, f"has {key!r}, which answers cannot be kept to")
        for key in WHOLE:
            if key in keys:
                others = [each for each in keys if each != key and not (each == "type" and key in ("enum", "const"))]
                if others:
                    _refuse(at, f"has {others[0]!r} beside {key!r}; both together cannot be kept to")
                return self._whole(key, schema, at, depth)
        return Choice(*(self._typed(name, schema, at, depth) for name in self._types(schema, keys, at)))

    def _types(self, schema: Mapping[str, Any], keys: list[str], at: str) -> list[str]:
        """Which types a value may have; of a schema that says nothing of it, those that it says something about."""
        if "type" in schema:
            given = schema["type"]
            names = [given] if isinstance(given, str) else given
            if not isinstance(names, list) or not names or not all(name in TYPES for name in names):
                _refuse(at, f"has the type {shown(given)}; types are {', '.join(TYPES)}, or a list of some")
            return [str(name) for name in dict.fromkeys(names)]
        about = dict.fromkeys(ABOUT[key] for key in keys if key in ABOUT)
        return list(about) or ["any"]

    def _typed(self, name: str, schema: Mapping[str, Any], at: str, depth: int) -> Expression:
        values = self._values
        if name == "object":
            return self._object(schema, at, depth)
        if name == "array":
            return self._array(schema, at, depth)
        if name == "string":
            return self._string(schema, at)
        if name in ("integer", "number"):
            return self._number(name, schema, at)
        return {"boolean": values.boolean, "null": values.null, "any": values.value}[name]

    def _whole(self, key: str, schema: Mapping[str, Any], at: str, depth: int) -> Expression:
        value = schema[key]
        if key == "$ref":
            return self._reference(value, at, depth)
        if key in ("const", "enum"):
            if key == "enum" and not isinstance(value, list):
                _refuse(at, f"has an enum that is {shown(value)}, and no list")
            listed = [value] if key == "const" else value
            if "type" in schema:
                types = self._types(schema, [], at)
                listed = [each for each in listed if any(_is(each, name) for name in types)]
            try:
                return spelled(*listed)
            except ValueError as error:
                _refuse(at, f"has a value that cannot be written: {error}")
        if not isinstance(value, list) or not value:
            _refuse(at, f"has {key!r} without a list of schemas")
        if key == "allOf" and len(value) > 1:
            _refuse(at, "has 'allOf' with several schemas, which answers cannot be kept to; write them as one")
        if key == "oneOf" and len(value) > 1 and not self._disjoint(value):
            _refuse(
                at, "has 'oneOf' with schemas that one value may satisfy together; if any of them will do write 'anyOf'"
            )
        return Choice(*(self.compiled(each, f"{at}/{key}/{i}", depth + 1) for i, each in enumerate(value)))

    def _reference(self, target: object, at: str, depth: int) -> Expression:
        if not isinstance(target, str) or not (target == "#" or target.startswith("#/")):
            _refuse(
                at,
                f"refers to {shown(target)}; only references inside the schema, such as '#/$defs/name', are followed",
            )
        if target not in self._references:
            later = self._references[target] = Later()
            later.target = self.compiled(self._found(target, at), target, depth + 1)
        return self._references[target]

    def _found(self, target: str, at: str) -> object:
        found: object = self._root
        for part in target.split("/")[1:]:
            name = unquote(part).replace("~1", "/").replace("~0", "~")
            if isinstance(found, Mapping) and name in found:
                self._refuse_other_base(found, target)
                found = found[name]
            elif isinstance(found, list) and name.isdecimal() and int(name) < len(found):
                found = found[int(name)]
            else:
                _refuse(at, f"refers to {shown(target)}, which the schema does not have")
        return found

    def _refuse_other_base(self, schema: Mapping[str, Any], at: str) -> None:
        if schema is not self._root and isinstance(schema.get("$id"), str):
            _refuse(at, "has an '$id' of its own, which references in it count from; leave it out")

    def _disjoint(self, schemas: list[object]) -> bool:
        """Whether no value satisfies two of some schemas, as far as their types and constants tell."""
        seen: list[tuple[frozenset[str], dict[str, list[str]]]] = []
        for each in schemas:
            for _ in range(MOST_DEPTH):
                if isinstance(each, Mapping) and "$ref" in each and isinstance(each["$ref"], str):
                    each = self._found(each["$ref"], "#")
            if not isinstance(each, Mapping):
                return False
            types, constants = _kinds(each), _constants(each)
            for other_types, others in seen:
                if not types & other_types:
                    continue
                if not any(name in others and not set(others[name]) & set(some) for name, some in constants.items()):
                    return False
            seen.append((types, constants))
        return True

    def _object(self, schema: Mapping[str, Any], at: str, depth: int) -> Expression:
        values = self._values
        properties, required = schema.get("properties", {}), schema.get("required", [])
        if not isinstance(properties, Mapping):
            _refuse(at, f"has properties that are {shown(properties)}, and no object")
        if not isinstance(required, list) or not all(isinstance(name, str) for name in required):
            _refuse(at, f"requires {shown(required)}, which is no list of names")
        more = schema.get("additionalProperties", "properties" not in schema)
        wanted = {name: properties.get(name, more if "additionalProperties" in schema else True) for name in required}
        members: list[tuple[Expression, bool]] = []
        for name, each in {**properties, **wanted}.items():
            value = self.compiled(each, f"{at}/properties/{name}", depth + 1)
            try:
                members.append((values.member(spelled(name), value), name in required))
            except ValueError:
                _refuse(at, f"has a property called {shown(name)}, which is no text")
        extra: Expression | None = None
        if more is not False:
            value = self.compiled(more, f"{at}/additionalProperties", depth + 1)
            names = list({**properties, **wanted})
            if any(len(name) > MOST_NAME for name in names):
                _refuse(at, f"has further properties beside one whose name has more than {MOST_NAME} characters")
            if sum(map(len, names)) > MOST_NAMES:
                _refuse(at, f"has further properties beside names of more than {MOST_NAMES} characters in all")
            extra = values.member(values.key_but(names) if names else values.string, value)
        first, later = self._ends(extra)
        for member, needed in reversed(members):  # from the last one on: what follows a member is known by then
            after = Sequence(member, later)
            with_comma = Sequence(one_of(b","), after)
            first, later = (after, with_comma) if needed else (Choice(after, first), Choice(with_comma, later))
        return Sequence(one_of(b"{"), first, one_of(b"}"))

    def _ends(self, extra: Expression | None) -> tuple[Expression, Expression]:
        """What ends an object without a member so far, and one with some."""
        if extra is None:
            return self._values.space, Sequence()
        return self._values.listed(extra), self._values.repeated(extra)

    def _array(self, schema: Mapping[str, Any], at: str, depth: int) -> Expression:
        values = self._values
        prefix, items = schema.get("prefixItems", []), schema.get("items", True)
        if not isinstance(prefix, list):
            _refuse(at, f"has prefixItems that are {shown(prefix)}, and no list")
        if isinstance(items, list):
            _refuse(at, "has a list of items; since 2020 that is called 'prefixItems'")
        low, high = self._counts(schema, "minItems", "maxItems", at)
        if items is False:
            high = len(prefix) if high is None else min(high, len(prefix))
        if high is not None:
            if high < low:
                return Choice()
            prefix = prefix[:high]
        listed = [self.compiled(each, f"{at}/prefixItems/{i}", depth + 1) for i, each in enumerate(prefix)]
        item = self.compiled(items, f"{at}/items", depth + 1)
        if not listed:
            return values.array_of(item, low, high)
        item = Sequence(values.space, item, values.space)
        rest = values.repeated(item, max(low - len(listed), 0), None if high is None else high - len(listed))
        for i in reversed(range(len(listed))):
            some = Sequence(values.space, listed[i], values.space, rest)
            if i == 0:
                rest = some if low > 0 else Choice(values.space, some)
            else:
                rest = Sequence(one_of(b","), some) if i < low else Choice(Sequence(), Sequence(one_of(b","), some))
        return Sequence(one_of(b"["), rest, one_of(b"]"))

    def _string(self, schema: Mapping[str, Any], at: str) -> Expression:
        values = self._values
        limits = [key for key in ("minLength", "maxLength", "pattern", "format") if key in schema]
        if "pattern" in limits or "format" in limits:
            if len(limits) > 1:
                _refuse(at, f"has {limits[0]!r} beside {limits[1]!r}; both together cannot be kept to")
            if limits == ["format"]:
                if not isinstance(schema["format"], str) or schema["format"] not in FORMATS:
                    _refuse(
                        at,
                        f"has the format {shown(schema['format'])}; those that can be kept to are {', '.join(FORMATS)}",
                    )
                return values.quoted(pattern(FORMATS[schema["format"]], values))
            if not isinstance(schema["pattern"], str):
                _refuse(at, f"has a pattern that is {shown(schema['pattern'])}, and no text")
            try:
                return values.quoted(pattern(schema["pattern"], values))
            except ValueError as error:
                _refuse(at, f"has a pattern that {error}")
        low, high = self._counts(schema, "minLength", "maxLength", at)
        return values.string if (low, high) == (0, None) else values.string_of(low, high)

    def _number(self, name: str, schema: Mapping[str, Any], at: str) -> Expression:
        limits: dict[str, Any] = {}
        for key in ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"):
            if key in schema:
                value = schema[key]
                if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
                    _refuse(at, f"has {key!r} {shown(value)}, which is no number")
                limits[key] = value
        if name == "number":
            if limits == {"minimum": 0}:
                return self._values.unsigned
            if limits:
                _refuse(
                    at,
                    f"has {next(iter(limits))!r} for numbers with fractions; of those only a minimum of 0 can be "
                    "kept to, for the type 'integer' all limits can",
                )
            return self._values.number
        lows = [_ceiling(limits[key]) for key in ("minimum",) if key in limits]
        lows += [_floor(limits[key]) + 1 for key in ("exclusiveMinimum",) if key in limits]
        highs = [_floor(limits[key]) for key in ("maximum",) if key in limits]
        highs += [_ceiling(limits[key]) - 1 for key in ("exclusiveMaximum",) if key in limits]
        return integers(max(lows, default=None), min(highs, default=None))

    def _counts(self, schema: Mapping[str, Any], least: str, most: str, at: str) -> tuple[int, int | None]:
        found = []
        for key in (least, most):
            value = schema.get(key)
            if key in schema and (isinstance(value, bool) or not isinstance(value, int) or value < 0):
                _refuse(at, f"has {key!r} {shown(value)}, which is no count")
            if value is not None and value > MOST_COUNT:
                _refuse(at, f"has {key!r} {shown(value)}; counts up to {MOST_COUNT} can be kept to")
            found.append(value)
        low, high = found[0] or 0, found[1]
        if high is not None and high < low:
            _refuse(at, f"has {least!r} {low} and {most!r} {high}, which nothing satisfies")
        return low, high


def _refuse(at: str, what: str) -> NoReturn:
    raise ValueError(f"the schema at {at[:200]} {what}")


def _is(value: object, name: str) -> bool:
    if name in ("integer", "number"):
        whole = isinstance(value, int) or (isinstance(value, float) and value.is_integer())
        return not isinstance(value, bool) and (whole if name == "integer" else isinstance(value, (int, float)))
    kinds = {"object": Mapping, "array": list, "string": str, "boolean": bool, "null": type(None)}
    return isinstance(value, kinds[name])


def _kinds(schema: Mapping[str, Any]) -> frozenset[str]:
    """Types that a value of a schema may have."""
    if "const" in schema or "enum" in schema:
        listed = [schema["const"]] if "const" in schema else schema["enum"]
        found = {name for name in TYPES if isinstance(listed, list) and any(_is(each, name) for each in listed)}
    elif isinstance(schema.get("type"), str):
        found = {schema["type"]}
    elif isinstance(schema.get("type"), list):
        found = {each for each in schema["type"] if isinstance(each, str)}
    else:
        found = set(TYPES)
    return frozenset(found | {"number"} if "integer" in found else found)


def _constants(schema: Mapping[str, Any]) -> dict[str, list[str]]:
    """Members that an object of a schema has, with the texts that they may be."""
    properties, required = schema.get("properties"), schema.get("required")
    if not isinstance(properties, Mapping) or not isinstance(required, list):
        return {}
    found = {}
    for name, each in properties.items():
        if name in required and isinstance(each, Mapping):
            listed = [each["const"]] if "const" in each else each.get("enum")
            if isinstance(listed, list) and all(isinstance(value, str) for value in listed):
                found[name] = listed
    return found


def _floor(value: float) -> int:
    return int(value // 1)


def _ceiling(value: float) -> int:
    return -int(-value // 1)
