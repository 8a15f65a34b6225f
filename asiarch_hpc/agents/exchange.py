"""One question to a model and its reply, as `agents.jsonl` keeps them."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from pydantic_ai.messages import ModelMessage, ModelRequest, RetryFeedbackPart, SystemPromptPart, UserPromptPart
from pydantic_ai.models import ModelRequestParameters

Message = Mapping[str, str]  # role and content


@dataclass(frozen=True, kw_only=True, slots=True)
class Question:
    """What a model is asked. `messages` is the conversation as text, `history` the same in pydantic-ai's parts."""

    role: str
    model: str
    messages: Sequence[Message]
    temperature: float
    max_tokens: int
    timeout_s: float
    parameters: ModelRequestParameters
    history: list[ModelMessage]
    left_s: Callable[[], float] = lambda: math.inf  # that the job has; asked before every try
    left_tokens: Callable[[], int] = lambda: sys.maxsize


@dataclass(frozen=True, kw_only=True, slots=True)
class Exchange:
    """One try at a question; with `error` there is no reply, and `final` says that no further try was made.

    `waited` are seconds spent on looking for a server and on backing off, `overhead` those of this program around the
    request.
    """

    role: str
    model: str
    endpoint: str
    messages: Sequence[Message]
    reply: str = ""
    thinking: str = ""
    finish: str = ""
    temperature: float = 0.0
    max_tokens: int = 0
    tokens_in: int = 0
    tokens_out: int = 0
    seconds: float = 0.0
    waited: float = 0.0
    attempt: int = 0
    error: str = ""
    cause: str = ""
    final: bool = True


def plain_messages(messages: Sequence[ModelMessage], instructions: str | None) -> list[Message]:
    """A conversation as plain text: system, user, assistant and what was sent back for repair."""
    found: list[Message] = [{"role": "system", "content": instructions}] if instructions else []
    for message in messages:
        if isinstance(message, ModelRequest):
            for part in message.parts:
                if isinstance(part, SystemPromptPart):
                    found.append({"role": "system", "content": part.content})
                elif isinstance(part, UserPromptPart):
                    found.append({"role": "user", "content": str(part.content)})
                elif isinstance(part, RetryFeedbackPart):
                    found.append({"role": "user", "content": part.model_response()})
        else:
            found.append({"role": "assistant", "content": message.text or ""})
    return found
