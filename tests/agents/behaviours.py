"""What a scripted server does with a request, and scripts that choose it."""

from __future__ import annotations

import importlib
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

Json = dict[str, Any]


@dataclass(frozen=True)
class Text:
    """A reply with this content. `finish`: stop, length or content_filter; `delay` are seconds before it."""

    content: str
    finish: str = "stop"
    thinking: str = ""
    delay: float = 0.0


@dataclass(frozen=True)
class Schema:
    """An object that satisfies the schema of the request, with `values` in place of some of its fields."""

    seed: int = 0
    values: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Status:
    """A failure. `body` is sent as it is if it is text, as JSON otherwise; empty: what vLLM sends."""

    code: int
    retry_after: float | str | None = None
    body: Any = None


@dataclass(frozen=True)
class Hang:
    """Nothing for some seconds, then what follows, or an end of the connection."""

    seconds: float = 3600.0
    then: Behaviour | None = None


@dataclass(frozen=True)
class Reset:
    """The connection is reset (RST): before the reply, or in the middle of this one."""

    middle: str = ""


@dataclass(frozen=True)
class Truncate:
    """The first part of a reply, then an end of the connection; `clean`: of the message, as if it were whole."""

    content: str = "The first half of this is all that comes."
    clean: bool = False


@dataclass(frozen=True)
class Garbage:
    """Status 200 and no JSON."""

    body: str = '{"choices": [{"mess'


@dataclass(frozen=True)
class WrongSchema:
    """An object that no schema asks for."""


@dataclass(frozen=True)
class Refusal:
    """The model refuses, as OpenAI's models do."""

    text: str = "I can't help with that."


@dataclass(frozen=True)
class Endless:
    """Streams tokens whatever the limit is, until the client has gone; unstreamed it stops at the limit."""

    word: str = "and "
    pause: float = 0.001


@dataclass(frozen=True)
class Empty:
    """A reply without content."""


@dataclass(frozen=True)
class ToolCall:
    """A call of a tool that nobody offered."""

    name: str = "run_shell"
    arguments: str = '{"command": "ls"}'


Behaviour = (
    Text | Schema | Status | Hang | Reset | Truncate | Garbage | WrongSchema | Refusal | Endless | Empty | ToolCall
)
Script = Callable[[Json, int], Behaviour]  # (body of the chat request, how many came before it)


def sequence(*behaviours: Behaviour) -> Script:
    """One after the other; the last one for ever."""
    return lambda request, number: behaviours[min(number, len(behaviours) - 1)]


def schemas(seed: int = 0, **values: Any) -> Script:
    """A different fitting object for each request."""
    return lambda request, number: Schema(seed * 1_000_003 + number, values)


def by_name(scripts: Mapping[str, Script | Behaviour], otherwise: Script | Behaviour) -> Script:
    """By the name of the schema that a request asks for; a script's number still counts all requests."""

    def script(request: Json, number: int) -> Behaviour:
        found = scripts.get(schema_of(request)[0], otherwise)
        return found(request, number) if callable(found) else found

    return script


MISDEEDS: tuple[Behaviour, ...] = (
    Status(429, retry_after=0.05),
    Status(500),
    Status(503),
    Hang(3600.0),
    Reset(),
    Reset("cut in the middle"),
    Truncate(),
    Truncate(clean=True),
    Garbage(),
    WrongSchema(),
    Refusal(),
    Endless(),
    Empty(),
    ToolCall(),
    Text("I would rather answer in prose than as you asked."),
    Text('{"half": ', finish="length"),
    Text("", finish="content_filter"),
)


def hostile(seed: int, share: float, otherwise: Script, misdeeds: Sequence[Behaviour] = MISDEEDS) -> Script:
    """A random misdeed with the probability `share`; which requests meet it depends on seed and number alone."""

    def script(request: Json, number: int) -> Behaviour:
        rng = random.Random(f"{seed}:{number}")
        return rng.choice(misdeeds) if rng.random() < share else otherwise(request, number)

    return script


def schema_of(request: Json) -> tuple[str, Json | None]:
    """Name and schema that the reply shall have."""
    wanted = (request.get("response_format") or {}).get("json_schema") or {}
    return str(wanted.get("name", "")), wanted.get("schema")


def hostile_schemas(seed: int, share: float) -> Script:
    """Fitting objects, and misdeeds in their share."""
    return hostile(seed, share, schemas(seed))


def named_script(name: str, seed: int, share: float) -> Script:
    """`schemas`, `hostile`, or MODULE:NAME of a script; with @ before it, of a function of seed and share."""
    if name == "schemas":
        return schemas(seed)
    if name == "hostile":
        return hostile_schemas(seed, share)
    module, _, attribute = name.removeprefix("@").partition(":")
    found = getattr(importlib.import_module(module), attribute)
    script: Script = found(seed, share) if name.startswith("@") else found
    return script
