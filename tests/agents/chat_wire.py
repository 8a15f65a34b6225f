"""Bodies of the answers of an OpenAI-compatible server."""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Iterator
from typing import Any

Json = dict[str, Any]
DIMENSIONS = 64  # of embeddings


def tokens(text: str) -> int:
    """How many tokens this server says that a text has."""
    return len(re.findall(r"\w+|[^\w\s]", text))


def embedding(text: str) -> list[float]:
    """A unit vector that depends on the words of a text, not on their order."""
    vector = [0.0] * DIMENSIONS
    for word in re.findall(r"\w+", text.lower()) or [""]:
        digest = hashlib.sha256(word.encode()).digest()
        vector[digest[0] % DIMENSIONS] += 1.0 if digest[1] % 2 else -1.0
        vector[digest[2] % DIMENSIONS] += 1.0 if digest[3] % 2 else -1.0
    norm = math.sqrt(sum(x * x for x in vector))
    return [x / norm for x in vector] if norm else [1.0, *vector[1:]]


def prompt_of(body: Json) -> str:
    return "\n".join(str(message.get("content", "")) for message in body.get("messages", []))


def limit_of(body: Json) -> int:
    return int(body.get("max_completion_tokens") or body.get("max_tokens") or 256)


def usage_of(body: Json, message: Json, finish: str) -> Json:
    made = tokens(json.dumps([v for v in message.values() if v])) if finish != "length" else limit_of(body)
    asked = tokens(prompt_of(body))
    return {"prompt_tokens": asked, "completion_tokens": made, "total_tokens": asked + made}


def completion(body: Json, message: Json, finish: str) -> Json:
    choice = {"index": 0, "message": {"role": "assistant", **message}, "finish_reason": finish, "logprobs": None}
    return {
        "id": "chatcmpl-1",
        "object": "chat.completion",
        "created": 1,
        "model": body.get("model"),
        "choices": [choice],
        "usage": usage_of(body, message, finish),
    }


def event_of(body: Json, choices: list[Json], usage: Json | None = None) -> str:
    kind = {"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 1, "model": body.get("model")}
    return f"data: {json.dumps({**kind, 'choices': choices, 'usage': usage})}\n\n"


def events_of(body: Json, message: Json, finish: str, chunk: int) -> Iterator[str]:
    yield event_of(body, [{"index": 0, "delta": {"role": "assistant", "content": ""}, "finish_reason": None}])
    for name, value in message.items():
        pieces: list[Any] = [value]
        if isinstance(value, str):
            pieces = [value[i : i + chunk] for i in range(0, len(value), chunk)]
        elif name == "tool_calls":
            pieces = [[{"index": i, **call} for i, call in enumerate(value)]]
        for piece in pieces:
            yield event_of(body, [{"index": 0, "delta": {name: piece}, "finish_reason": None}])
    yield event_of(body, [{"index": 0, "delta": {}, "finish_reason": finish}])
    if (body.get("stream_options") or {}).get("include_usage"):
        yield event_of(body, [], usage_of(body, message, finish))
    yield "data: [DONE]\n\n"
