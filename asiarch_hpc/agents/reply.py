"""What a role must answer with, and how an answer is read where the server cannot hold a model to a schema."""

from __future__ import annotations

import json
import re
from bisect import bisect_right
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar, cast

from pydantic import BaseModel, ValidationError

T = TypeVar("T")
Json = dict[str, Any]

_FENCE = re.compile(r"[ \t]*(`{3,}|~{3,})[ \t]*([\w+-]*)[^`]*$")
_THOUGHT = re.compile(r"^.*?</think(?:ing)?>", re.DOTALL)
_TRAILING_COMMA = re.compile(r",(\s*[}\]])")


class ReplyError(Exception):
    """What is wrong with a reply, in words for the model that gave it."""


def _accept(found: Any) -> None:
    """Takes any reply."""


@dataclass(frozen=True)
class Reply(Generic[T]):
    """A kind of reply.

    `type` is a pydantic model; with `schema`, a JSON schema that is made for one question, replies are plain objects.
    `code` maps fields that hold program text to the language of the fenced block that carries them outside JSON.
    `check` raises ReplyError with what is to be repaired.
    """

    name: str
    type: type[T]
    code: Mapping[str, str] = field(default_factory=dict)
    check: Callable[[T], None] = _accept
    schema: Json | None = None

    def of(self, found: Any) -> T:
        """The reply from what the library returns."""
        return cast(T, dict(found) if self.schema is not None else found)

    def format(self, mode: str) -> str:
        """How to answer, for the prompt; `mode` is agents.reply."""
        fields = self._fields()
        plain = [f"- `{name}`: {text}" for name, text in fields.items() if mode == "schema" or name not in self.code]
        if mode == "schema":
            return "Answer with one JSON object and nothing else. Its fields:\n" + "\n".join(plain)
        lines = ["Answer with one fenced block ```json that holds an object with these fields:", *plain]
        for name, language in self.code.items():
            if name in fields:
                lines.append(f"and put `{name}` into a fenced block of its own, ```{language}: {fields[name]}")
        return "\n".join([*lines, "Nothing outside these blocks is read."])

    def _fields(self) -> dict[str, str]:
        if self.schema is not None:
            return {name: json.dumps(text) for name, text in self.schema.get("properties", {}).items()}
        assert issubclass(self.type, BaseModel)
        return {name: info.description or name for name, info in self.type.model_fields.items()}


def parse_blocks(text: str, reply: Reply[T]) -> Any:
    """Reads a reply of fenced blocks: thoughts before it, missing fences and trailing commas are forgiven.

    Raises:
        ReplyError: no object, or one that does not fit the reply's type.
    """
    text = _THOUGHT.sub("", text, count=1) if "</think" in text else text
    blocks, outside = _blocks(text.replace("\r\n", "\n"))
    data = _object(outside, blocks)
    for name, language in reply.code.items():
        found = [
            body for kind, body in blocks if kind == language or (language == "python" and kind in ("py", "python3"))
        ]
        if found and not data.get(name):
            data[name] = found[-1]
    if reply.schema is not None:
        return data
    assert issubclass(reply.type, BaseModel)
    try:
        return reply.type.model_validate(data)
    except ValidationError as error:
        problems = "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors())
        raise ReplyError(f"the reply does not fit: {problems}. {reply.format('blocks')}") from error


def _blocks(text: str) -> tuple[list[tuple[str, str]], str]:
    """Language and body of each closed fenced block, and what is outside of them; in one pass over the lines, since a
    model that repeats a fence for ever would keep a search for its end busy for minutes."""
    lines = text.split("\n")
    ends: dict[str, list[int]] = {}
    for number, line in enumerate(lines):
        ends.setdefault(line.strip(" \t"), []).append(number)
    blocks, outside, number = [], [], 0
    while number < len(lines):
        opening = _FENCE.match(lines[number])
        found = ends.get(opening[1], []) if opening else []
        later = bisect_right(found, number)
        if opening and later < len(found):
            body = "".join(line + "\n" for line in lines[number + 1 : found[later]])
            blocks.append((opening[2].lower(), body))
            number = found[later]
        else:
            outside.append(lines[number])
        number += 1
    return blocks, "\n".join(outside)


def _object(outside: str, blocks: list[tuple[str, str]]) -> Json:
    candidates = [body for language, body in blocks if language in ("json", "jsonc", "json5")]
    candidates += [body for language, body in blocks if language == "" and body.lstrip().startswith("{")]
    if "{" in outside:
        candidates.append(outside[outside.index("{") : outside.rfind("}") + 1])
    problem = "there is no JSON object in it"
    for candidate in candidates:
        for body in (candidate, _TRAILING_COMMA.sub(r"\1", candidate)):
            try:
                data = json.loads(body, strict=False)
                json.dumps(data, ensure_ascii=False).encode()
            except UnicodeEncodeError:
                problem = "its JSON has an escape of half a surrogate pair"
                continue
            except (ValueError, RecursionError) as error:
                problem = f"its JSON does not parse: {error}"
                continue
            if isinstance(data, dict):
                return data
            problem = f"its JSON is a {type(data).__name__}, not an object"
    if not candidates and blocks:
        return {}
    raise ReplyError(f"the reply cannot be read: {problem}")


def apply_diff(text: str, diff: str) -> str:
    """Applies SEARCH/REPLACE blocks; each SEARCH part must stand exactly once in the text.

        <<<<<<< SEARCH
        lines as they are
        =======
        lines as they shall be
        >>>>>>> REPLACE

    Raises:
        ReplyError: no block, or a part that is not there or is there several times.
    """
    pattern = re.compile(r"^<{5,} ?SEARCH[^\n]*\n(.*?)^={5,}[ \t]*\n(.*?)^>{5,} ?REPLACE", re.MULTILINE | re.DOTALL)
    changes = pattern.findall(diff.replace("\r\n", "\n") + "\n")
    if not changes:
        raise ReplyError(f"the diff holds no SEARCH/REPLACE block; the form is:\n{apply_diff.__doc__}")
    for number, (old, new) in enumerate(changes, 1):
        lines, wanted = text.split("\n"), old.split("\n")[:-1]
        places = _places(lines, wanted) or _places([x.rstrip() for x in lines], [x.rstrip() for x in wanted])
        if len(places) != 1 or not old.strip():
            raise ReplyError(
                f"SEARCH part {number} stands {len(places)} times in the parent's source, expected once; copy the "
                f"lines exactly, with enough of them to be unique:\n{old}"
            )
        text = "\n".join([*lines[: places[0]], *new.split("\n")[:-1], *lines[places[0] + len(wanted) :]])
    return text


def _places(lines: list[str], wanted: list[str]) -> list[int]:
    """Where whole lines stand, overlapping ones too."""
    return [i for i in range(len(lines) - len(wanted) + 1) if lines[i : i + len(wanted)] == wanted]
