"""Records and their JSON form. `to_json` and `from_json` are inverse to each other."""

from __future__ import annotations

import dataclasses
import math
import types
import typing
from collections.abc import Hashable, Mapping
from functools import cache
from typing import Any, Literal, TypeVar

from asiarch_hpc.errors import RecordError

SCHEMA_VERSION = 1

Json = dict[str, Any]
R = TypeVar("R")


def to_json(record: Any) -> Json:
    """The JSON object of a record; tuples become lists."""
    data: Json = _plain(dataclasses.asdict(record))
    return data


def from_json(cls: type[R], data: Any, *, source: str = "record") -> R:
    """Builds a record of type `cls` from parsed JSON.

    Raises:
        RecordError: not an object, another schema version, missing or unknown fields, wrong types.
    """
    if not isinstance(data, dict):
        raise RecordError(f"{source}: found {type(data).__name__}, expected a JSON object ({cls.__name__})")
    hints = _hints(typing.cast(Any, cls))
    version = data.get("schema_version", SCHEMA_VERSION)
    if "schema_version" in hints and version != SCHEMA_VERSION:
        raise RecordError(
            f"{source}: schema_version {version!r}, expected {SCHEMA_VERSION}; "
            "it was written by another version of asiarch-hpc, use that one or `asiarch rebuild`"
        )
    unknown = sorted(set(data) - set(hints))
    if unknown:
        raise RecordError(f"{source}: unknown fields {unknown} for {cls.__name__}; expected {sorted(hints)}")
    required = {
        f.name
        for f in dataclasses.fields(typing.cast(Any, cls))
        if f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING
    }
    missing = sorted(required - set(data))
    if missing:
        raise RecordError(f"{source}: fields {missing} of {cls.__name__} are missing; the file is truncated or edited")
    return cls(**{name: _convert(hints[name], value, f"{source}: {name}") for name, value in data.items()})


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, tuple | list) else value


@cache
def _hints(cls: Hashable) -> dict[str, Any]:
    return typing.get_type_hints(typing.cast(type, cls))


def _convert(hint: Any, value: Any, where: str) -> Any:
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if hint is Any:
        return value
    if origin in (types.UnionType, typing.Union):
        if value is None and type(None) in args:
            return None
        return _convert(next(a for a in args if a is not type(None)), value, where)
    if origin is Literal:
        if value not in args:
            raise RecordError(f"{where}: found {value!r}, expected one of {list(args)}")
        return value
    if origin is tuple:
        if not isinstance(value, list):
            raise RecordError(f"{where}: found {type(value).__name__}, expected a list")
        return tuple(_convert(args[0], v, where) for v in value)
    if origin in (dict, Mapping) or (isinstance(origin, type) and issubclass(origin, Mapping)):
        if not isinstance(value, dict):
            raise RecordError(f"{where}: found {type(value).__name__}, expected an object")
        return {k: _convert(args[1], v, where) for k, v in value.items()}
    if dataclasses.is_dataclass(hint):
        return from_json(typing.cast(type, hint), value, source=where)
    if hint is float and type(value) in (int, float):
        if not math.isfinite(value):
            raise RecordError(f"{where}: found {value!r}, expected a finite number")
        return float(value)
    if type(value) is not hint:
        raise RecordError(f"{where}: found {value!r}, expected {getattr(hint, '__name__', hint)}")
    return value
