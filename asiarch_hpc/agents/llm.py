"""Questions to language models: one typed answer each, over any OpenAI-compatible server.

pydantic-ai makes the conversation: it asks, checks the reply against its type, and sends what is wrong back, a bounded
number of times. This module decides which server and model answer, tries again what the network or the server
spoiled, keeps the budgets, and records every exchange. Who asks for what is in the modules of the roles.
"""

from __future__ import annotations

import asyncio
import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from pydantic_ai import Agent, ModelRetry, NativeOutput, StructuredDict, TextOutput, UsageLimits
from pydantic_ai.exceptions import (
    AgentRunError,
    ContentFilterError,
    ModelContextWindowExceededError,
    UnexpectedModelBehavior,
    UsageLimitExceeded,
)
from pydantic_ai.messages import ModelMessage, ModelResponse, TextPart, ThinkingPart
from pydantic_ai.models.function import AgentInfo, FunctionModel
from pydantic_ai.profiles.openai import OpenAIModelProfile
from pydantic_ai.usage import RequestUsage

from asiarch_hpc.agents.exchange import Exchange, Question, plain_messages
from asiarch_hpc.agents.prompt import Prompt
from asiarch_hpc.agents.reply import Reply, ReplyError, T, parse_blocks
from asiarch_hpc.config import AgentsConfig, RoleConfig
from asiarch_hpc.errors import AgentError

PROFILE = OpenAIModelProfile(
    supports_json_schema_output=True,
    supports_json_object_output=True,
    default_structured_output_mode="native",
    openai_chat_streaming_requires_finish_reason=True,  # a stream that ends without one was cut
    openai_supports_strict_tool_definition=True,
)


class Speaker(Protocol):
    """Whoever answers: servers, or the transcript of an earlier conversation."""

    async def answer(self, question: Question, used: Callable[[Exchange], None]) -> Exchange:
        """One reply; `used` gets every try, since failed ones cost tokens too.

        Raises:
            AgentError: no reply will come.
            ServiceError: no server is up.
        """

    def fits(self, prompt: Prompt, model: str, room: int) -> bool:
        """Whether a prompt has at most `room` tokens."""

    async def close(self) -> None:
        """Ends the connections."""


@dataclass(slots=True)
class Spending:
    """What a job has used so far, and may use. Seconds are those of waiting for models; `left_s` tells how long the job
    still has."""

    limit: int
    left_s: Callable[[], float] = lambda: math.inf
    tokens: int = 0
    calls: int = 0
    seconds: float = 0.0

    @property
    def left(self) -> int:
        return max(0, self.limit - self.tokens)

    def add(self, exchange: Exchange) -> None:
        self.tokens += exchange.tokens_in + exchange.tokens_out
        self.calls += 1
        self.seconds += exchange.seconds


@dataclass(slots=True)
class LanguageModels:
    """All that the roles need of language models. `rng` draws each role's model."""

    config: AgentsConfig
    speaker: Speaker
    rng: random.Random
    spending: Spending
    _runner: asyncio.Runner = field(default_factory=asyncio.Runner)

    def ask(self, role: str, prompt: Prompt, reply: Reply[T]) -> T:
        """One answer of the reply's type.

        Raises:
            AgentError: `reply.invalid` after the last repair, `reply.refused`, `reply.truncated`, `context`,
                `budget`, or a cause of the speaker's.
            ServiceError: no server is up.
        """
        settings: RoleConfig = getattr(self.config.roles, role)
        model = self._draw(settings)

        async def speak(messages: list[ModelMessage], info: AgentInfo) -> ModelResponse:
            return await self._speak(role, model, settings, messages, info)

        agent: Agent[object, Any] = Agent(
            FunctionModel(speak, model_name=model or "default", profile=PROFILE),
            output_type=self._output(reply),
            instructions=prompt.system,
            retries={"output": self.config.repairs},
        )
        agent.output_validator(lambda found: _checked(reply, found))
        limits = UsageLimits(request_limit=self.config.repairs + 1, total_tokens_limit=None)
        try:
            result = self._runner.run(agent.run(prompt.user, usage_limits=limits))
        except AgentRunError as error:
            raise _as_agent_error(role, error) from error
        return reply.of(result.output)

    def fitted(self, role: str, render: Callable[[int], Prompt], steps: Sequence[str]) -> Prompt:
        """The fullest prompt that the role's context has room for: `render(n)` leaves out the first n of `steps`.

        Raises:
            AgentError: even without all of them it does not fit.
        """
        settings: RoleConfig = getattr(self.config.roles, role)
        room = self.config.context - settings.max_tokens
        for number in range(len(steps) + 1):
            prompt = render(number)
            if self.speaker.fits(prompt, next(iter(settings.models), self.config.model), room):
                return prompt
        raise AgentError(
            "context",
            f"{role}: the prompt has more than {room} tokens even without {', '.join(steps) or 'anything optional'}; "
            "raise agents.context and the server's context, or lower the role's max_tokens",
        )

    def close(self) -> None:
        try:
            self._runner.run(self.speaker.close())
        finally:
            self._runner.close()

    def _draw(self, settings: RoleConfig) -> str:
        if not settings.models:
            return self.config.model
        return self.rng.choices(list(settings.models), list(settings.models.values()))[0]

    def _output(self, reply: Reply[T]) -> Any:
        if self.config.reply == "blocks":

            def parse(text: str) -> Any:
                try:
                    return parse_blocks(text, reply)
                except ReplyError as error:
                    raise ModelRetry(str(error)) from error

            return TextOutput(parse)
        if reply.schema is not None:
            return NativeOutput(StructuredDict(reply.schema, name=reply.name), name=reply.name, strict=True)
        return NativeOutput(reply.type, name=reply.name, strict=True)

    async def _speak(
        self, role: str, model: str, settings: RoleConfig, messages: list[ModelMessage], info: AgentInfo
    ) -> ModelResponse:
        messages = [messages[0], *messages[-2:]] if len(messages) > 3 else messages  # earlier repairs say no more
        question = Question(
            role=role,
            model=model,
            messages=plain_messages(messages, info.instructions),
            temperature=settings.temperature,
            max_tokens=settings.max_tokens,
            timeout_s=settings.timeout_s,
            parameters=info.model_request_parameters,
            history=messages,
            left_s=self.spending.left_s,
            left_tokens=lambda: self.spending.left,
        )
        exchange = await self.speaker.answer(question, self.spending.add)
        usage = RequestUsage(input_tokens=exchange.tokens_in, output_tokens=exchange.tokens_out)
        parts = [ThinkingPart(exchange.thinking)] if exchange.thinking else []
        return ModelResponse(parts=[*parts, TextPart(exchange.reply)], usage=usage, model_name=exchange.model)


def _checked(reply: Reply[T], found: Any) -> Any:
    """Passes what the reply's own check passes, and sends the rest back."""
    try:
        reply.check(reply.of(found))
    except ReplyError as error:
        raise ModelRetry(str(error)) from error
    return found


def _as_agent_error(role: str, error: AgentRunError) -> AgentError:
    if isinstance(error, ContentFilterError):
        return AgentError("reply.refused", f"{role}: the model refused: {error}")
    if isinstance(error, ModelContextWindowExceededError):
        return AgentError("context", f"{role}: the prompt is too long for the model: {error}")
    if isinstance(error, UsageLimitExceeded):
        return AgentError("reply.invalid", f"{role}: {error}")
    if isinstance(error, UnexpectedModelBehavior):
        reason = error.__cause__ or error
        return AgentError("reply.invalid", f"{role}: no valid reply after all repairs: {reason}"[:2000])
    return AgentError("model.error", f"{role}: {error}"[:2000])
