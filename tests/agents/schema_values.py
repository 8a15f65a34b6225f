"""A value that satisfies a JSON schema, drawn with a generator of random numbers: what constrained decoding gives."""

from __future__ import annotations

import math
import random
import re
import string
from re import _constants, _parser  # type: ignore[attr-defined]
from typing import Any

Json = dict[str, Any]
DEEP = 6  # levels, below which the alternative that ends soonest is taken
TRIES = 200
WORDS = [
    "gated",
    "delta",
    "linear",
    "attention",
    "mixes",
    "tokens",
    "causally",
    "with",
    "decaying",
    "state",
    "convolution",
]
ALPHABET = string.ascii_letters + string.digits + " _-.,"


def value_of(schema: Json, rng: random.Random) -> Any:
    """Any value of a schema; all required fields of objects and half of the others."""
    return _value(schema, rng, schema, 0)


def _value(schema: Any, rng: random.Random, root: Json, depth: int) -> Any:
    if not isinstance(schema, dict):
        return None
    schema = _resolved(schema, root)
    if "const" in schema:
        return schema["const"]
    if "enum" in schema:
        return rng.choice(schema["enum"])
    options = schema.get("anyOf") or schema.get("oneOf")
    if options:
        rest = {k: v for k, v in schema.items() if k not in ("anyOf", "oneOf", "discriminator")}
        if depth >= DEEP:
            options = [min(options, key=lambda option: _height(option, root, ()))]
        return _value({**rest, **_resolved(rng.choice(options), root)}, rng, root, depth + 1)
    kind = schema.get("type", "object" if "properties" in schema else "string")
    if isinstance(kind, list):
        kind = rng.choice(kind)
    match kind:
        case "object":
            return _object(schema, rng, root, depth)
        case "array":
            return _array(schema, rng, root, depth)
        case "string":
            return _string(schema, rng)
        case "boolean":
            return rng.random() < 0.5
        case "null":
            return None
        case "integer" | "number":
            return _number(schema, kind, rng)
    raise ValueError(f"no value of type {kind!r} is known")


def _resolved(schema: Json, root: Json) -> Json:
    while "$ref" in schema:
        found: Any = root
        for name in schema["$ref"].removeprefix("#").strip("/").split("/"):
            found = found[name.replace("~1", "/").replace("~0", "~")] if name else found
        schema = {**found, **{k: v for k, v in schema.items() if k != "$ref"}}
    for part in schema.get("allOf", []):
        schema = {**schema, **_resolved(part, root)}
    return schema


def _height(schema: Any, root: Json, seen: tuple[str, ...]) -> float:
    """Levels of the smallest value, infinite for one that only ever leads back to itself."""
    if not isinstance(schema, dict):
        return 0
    if schema.get("$ref") in seen:
        return math.inf
    seen = (*seen, schema["$ref"]) if "$ref" in schema else seen
    schema = _resolved(schema, root)
    if "const" in schema or "enum" in schema:
        return 0
    if options := schema.get("anyOf") or schema.get("oneOf"):
        return 1 + min(_height(option, root, seen) for option in options)
    parts = [v for k, v in schema.get("properties", {}).items() if k in schema.get("required", [])]
    if schema.get("minItems"):
        parts.append(schema.get("items"))
    return 1 + max((_height(part, root, seen) for part in parts), default=0)


def _object(schema: Json, rng: random.Random, root: Json, depth: int) -> Json:
    required = schema.get("required", [])
    found = {
        name: _value(part, rng, root, depth + 1)
        for name, part in schema.get("properties", {}).items()
        if name in required or (depth < DEEP and rng.random() < 0.5)
    }
    more = schema.get("additionalProperties")
    for number in range(schema.get("minProperties", 0) - len(found)):
        found[f"{rng.choice(WORDS)}_{number}"] = _value(more, rng, root, depth + 1)
    return found


def _array(schema: Json, rng: random.Random, root: Json, depth: int) -> list[Any]:
    first = [_value(part, rng, root, depth + 1) for part in schema.get("prefixItems", [])]
    least = schema.get("minItems", 0)
    most = least if depth >= DEEP else schema.get("maxItems", max(least, 1) + 2)
    count = rng.randint(least, max(least, min(most, least + 4))) - len(first)
    if "items" not in schema and first:
        return first
    if not schema.get("uniqueItems"):
        return first + [_value(schema.get("items", {}), rng, root, depth + 1) for _ in range(count)]
    for _ in range(TRIES):
        if count <= 0:
            break
        value = _value(schema.get("items", {}), rng, root, depth + 1)
        if value not in first:
            first.append(value)
            count -= 1
    return first


def _number(schema: Json, kind: str, rng: random.Random) -> float:
    low = schema.get("minimum", schema.get("exclusiveMinimum"))
    high = schema.get("maximum", schema.get("exclusiveMaximum"))
    low = (high - 10 if high is not None else 0) if low is None else low
    high = low + 10 if high is None else high
    step = schema.get("multipleOf", 1 if kind == "integer" else None)
    for _ in range(TRIES):
        number: float
        if step:
            number = rng.randint(math.ceil(low / step), math.floor(high / step)) * step
        else:
            number = round(rng.uniform(low, high), 3)
        if low <= number <= high and number not in (schema.get("exclusiveMinimum"), schema.get("exclusiveMaximum")):
            return number
    raise ValueError(f"no number found for {schema}")


def _string(schema: Json, rng: random.Random) -> str:
    least, most = schema.get("minLength", 0), schema.get("maxLength", 10_000)
    if "pattern" in schema:
        for _ in range(TRIES):
            text = _match(_parser.parse(schema["pattern"]), rng)
            if least <= len(text) <= most and re.search(schema["pattern"], text):
                return text
        raise ValueError(f"no string found for {schema}")
    text = " ".join(rng.choice(WORDS) for _ in range(rng.randint(3, 12)))
    while len(text) < least:
        text += " " + rng.choice(WORDS)
    return text[:most] if len(text[:most].strip()) == len(text[:most]) else text[:most].strip() + "s"


def _match(parts: Any, rng: random.Random) -> str:
    return "".join(_piece(kind, value, rng) for kind, value in parts)


def _piece(kind: Any, value: Any, rng: random.Random) -> str:
    if kind is _constants.LITERAL:
        return chr(value)
    if kind is _constants.ANY:
        return rng.choice(ALPHABET)
    if kind is _constants.NOT_LITERAL:
        return rng.choice([c for c in ALPHABET if c != chr(value)])
    if kind is _constants.IN:
        return rng.choice(_characters(value))
    if kind in (_constants.MAX_REPEAT, _constants.MIN_REPEAT):
        least, most, parts = value
        times = rng.randint(least, least + 8 if most is _constants.MAXREPEAT else min(int(most), least + 24))
        return "".join(_match(parts, rng) for _ in range(times))
    if kind is _constants.SUBPATTERN:
        return _match(value[-1], rng)
    if kind is _constants.BRANCH:
        return _match(rng.choice(value[1]), rng)
    if kind in (_constants.AT, _constants.ASSERT_NOT, _constants.ASSERT):
        return ""
    raise ValueError(f"patterns with {kind} are not supported")


def _characters(members: Any) -> list[str]:
    found: set[str] = set()
    for kind, value in members:
        if kind is _constants.LITERAL:
            found.add(chr(value))
        elif kind is _constants.RANGE:
            found.update(map(chr, range(value[0], min(value[1], value[0] + 200) + 1)))
        elif kind is _constants.CATEGORY:
            test = {"DIGIT": r"\d", "SPACE": r"\s", "WORD": r"\w"}[str(value).rsplit("_", 1)[-1]]
            found.update(c for c in ALPHABET if bool(re.match(test, c)) != ("NOT" in str(value)))
    if members[0][0] is _constants.NEGATE:
        return [c for c in ALPHABET if c not in found]
    return sorted(found)
