"""Who answers: the run's servers, or the transcript of an earlier conversation.

A server that fails is left alone for a while and another one is asked; without any, a job waits. What a call cost and
how it failed is recorded for every try.
"""

from __future__ import annotations

import asyncio
import json
import math
import random
import urllib.error
import urllib.request
from collections.abc import Callable, Coroutine, Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

from openai import AsyncOpenAI, Timeout
from pydantic_ai.exceptions import (
    AgentRunError,
    ModelAPIError,
    ModelContextWindowExceededError,
    ModelHTTPError,
    UnexpectedModelBehavior,
)
from pydantic_ai.messages import ModelResponse, ThinkingPart
from pydantic_ai.models.openai import OpenAIChatModel
from pydantic_ai.providers.openai import OpenAIProvider
from pydantic_ai.settings import ModelSettings

from asiarch_hpc.agents.exchange import Exchange, Question
from asiarch_hpc.agents.llm import PROFILE
from asiarch_hpc.agents.prompt import Prompt
from asiarch_hpc.config import AgentsConfig
from asiarch_hpc.errors import AgentError, ConfigError, NoServerError, ServiceError, StoppedError

BYTES_PER_TOKEN = 3.0  # of the estimate without a tokenizer; English and code have more, so it errs to the safe side
TRUNCATED_TRIES = 2  # of a question whose reply runs to its limit of tokens
CONNECT_SECONDS = 10.0  # for a connection: a lost node never answers, and its server is listed for a while
AGAIN = (408, 409, 425, 429)  # statuses after which another try may help
LEAST_TOKENS = 16  # of a reply that is worth asking for
STOP_SECONDS = 0.5  # between two looks whether the job shall end
LOOK_SECONDS = 5.0  # between two looks for a server
AVOID_SECONDS = 30.0  # that a server which failed is left alone, where there is another


@dataclass(frozen=True, slots=True)
class Endpoint:
    """A server's address, up to and including /v1, and what it is known to serve (empty: it is asked)."""

    url: str
    models: tuple[str, ...] = ()


@dataclass
class Servers:
    """Implements `Speaker` over HTTP.

    `directory` lists the endpoints that are up now. `record` gets every try. `key` never appears in what is recorded.
    """

    config: AgentsConfig
    directory: Callable[[], Sequence[Endpoint]]
    record: Callable[[Exchange], None]
    key: str
    rng: random.Random
    clock: Callable[[], float]
    sleep: Callable[[float], Any] = asyncio.sleep
    stopped: Callable[[], bool] = lambda: False
    _avoid: dict[str, float] = field(default_factory=dict)
    _models: dict[str, tuple[str, ...]] = field(default_factory=dict)
    _clients: dict[tuple[str, str], OpenAIChatModel] = field(default_factory=dict)

    async def answer(self, question: Question, used: Callable[[Exchange], None]) -> Exchange:
        waited, truncated = 0.0, 0
        for attempt in range(self.config.retries + 1):
            question = self._bounded(question)
            began = self.clock()
            endpoint, model = await self._find(question.model)
            waited += self.clock() - began
            exchange, pause = await self._try(endpoint, model, question)
            exchange = replace(exchange, attempt=attempt, waited=round(waited, 3))
            used(exchange)
            if not exchange.error:
                self.record(exchange)
                return exchange
            truncated += exchange.cause == "reply.truncated"
            last = attempt == self.config.retries or truncated >= TRUNCATED_TRIES or pause is None
            self.record(replace(exchange, final=last))
            if last:
                raise _as_error(exchange)
            wait = self._backoff(attempt, pause or 0.0)
            self._models.pop(endpoint.url, None)  # it may come back as another one
            self._avoid[endpoint.url] = self.clock() + wait + AVOID_SECONDS
            await self.sleep(wait)
            self._check_stop()
            waited += wait
        raise AssertionError("the last try returns or raises")

    def _bounded(self, question: Question) -> Question:
        """The question within what the job has left of its time and tokens.

        Raises:
            AgentError: `time` or `budget`, when nothing is left for an answer.
        """
        left_s, prompt = question.left_s(), sum(estimate_tokens(m["content"]) for m in question.messages)
        if left_s <= 0:
            raise AgentError("time", f"{question.role}: the job's time is used up; raise executor.<kind>.timeout_min")
        left = question.left_tokens() - prompt
        if left < LEAST_TOKENS:
            raise AgentError(
                "budget",
                f"{question.role}: {question.left_tokens()} tokens are left to this job, its prompt has {prompt}; "
                f"raise agents.tokens_per_job={self.config.tokens_per_job}",
            )
        return replace(
            question,
            timeout_s=min(question.timeout_s, left_s),
            max_tokens=min(question.max_tokens, left),
        )

    def fits(self, prompt: Prompt, model: str, room: int) -> bool:
        return self.count(prompt.system + prompt.user, model) <= room

    def count(self, text: str, model: str) -> int:
        """Tokens of a text: by agents.tokenizer, else by a server, else estimated."""
        if self._tokenizer is not None:
            return len(self._tokenizer.encode(text, add_special_tokens=False).ids)
        for endpoint in self.directory():
            name = model or next(iter(self._serves(endpoint)), "")
            answer = self._get(endpoint.url.removesuffix("/v1") + "/tokenize", {"model": name, "prompt": text})
            if isinstance(answer, dict) and isinstance(answer.get("count"), int):
                return int(answer["count"])
        return estimate_tokens(text)

    async def close(self) -> None:
        for model in self._clients.values():
            await model.client.close()
        self._clients.clear()

    @cached_property
    def _tokenizer(self) -> Any:
        if not self.config.tokenizer:
            return None
        from tokenizers import Tokenizer

        return Tokenizer.from_file(self.config.tokenizer)

    async def _find(self, model: str) -> tuple[Endpoint, str]:
        """An endpoint that serves the model, and the model's name; waits while there is none."""
        deadline = self.clock() + self.config.wait_s
        while True:
            known = [(e, name) for e in self.directory() if (name := self._name(e, model))]
            fresh = [pair for pair in known if self._avoid.get(pair[0].url, -math.inf) <= self.clock()]
            if fresh or known:
                return self.rng.choice(fresh or known)
            self._check_stop()
            if self.clock() >= deadline:
                raise NoServerError(
                    f"no server of model {model or '(any)'} was up for agents.wait_s={self.config.wait_s:g} seconds; "
                    "look into the run's services/ and the logs of its serve jobs, or at agents.endpoints"
                )
            await self.sleep(LOOK_SECONDS)

    def _name(self, endpoint: Endpoint, model: str) -> str:
        serves = self._serves(endpoint)
        return model if model in serves else serves[0] if serves and not model else ""

    def _serves(self, endpoint: Endpoint) -> tuple[str, ...]:
        if endpoint.models:
            return endpoint.models
        if endpoint.url not in self._models:
            answer = self._get(endpoint.url + "/models")
            rows = answer.get("data", []) if isinstance(answer, dict) else []
            names = tuple(str(row["id"]) for row in rows if isinstance(row, dict) and "id" in row)
            if not names:
                return ()
            self._models[endpoint.url] = names
        return self._models[endpoint.url]

    def _get(self, url: str, body: Any = None) -> Any:
        """The JSON that a small request is answered with; None where it fails."""
        headers = {"Authorization": f"Bearer {self.key}"} if self.key else {}
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(url, data, {**headers, "Content-Type": "application/json"})
        try:
            with urllib.request.urlopen(request, timeout=10) as answer:
                return json.loads(answer.read())
        except (OSError, ValueError, urllib.error.URLError):
            return None

    async def _try(self, endpoint: Endpoint, model: str, question: Question) -> tuple[Exchange, float | None]:
        """One try; with the least pause before the next one, None where no further try can help."""
        began = self.clock()
        exchange = Exchange(
            role=question.role,
            model=model,
            endpoint=endpoint.url,
            messages=question.messages,
            temperature=question.temperature,
            max_tokens=question.max_tokens,
        )
        try:
            async with asyncio.timeout(question.timeout_s):
                response = await self._unless_stopped(self._request(self._client(endpoint.url, model), question))
        except StoppedError:
            raise
        except Exception as error:
            cause, text, pause = _classify(error, question.timeout_s)
            return self._failed(exchange, cause, text, began), pause
        exchange = replace(
            exchange,
            reply=self._clean(response.text or ""),
            thinking=self._clean("".join(p.content for p in response.parts if isinstance(p, ThinkingPart))),
            finish=response.finish_reason or "",
            tokens_in=response.usage.input_tokens or sum(estimate_tokens(m["content"]) for m in question.messages),
        )
        made = response.usage.output_tokens or estimate_tokens(exchange.reply + exchange.thinking)
        exchange = replace(exchange, tokens_out=made)
        if exchange.finish == "content_filter":
            return self._failed(exchange, "reply.refused", "the model refused to answer", began), None
        if exchange.finish == "length":
            text = f"the reply ran to its limit of {question.max_tokens} tokens"
            return self._failed(exchange, "reply.truncated", text, began), 0.0
        if not exchange.reply.strip():
            return self._failed(exchange, "reply.empty", "the reply is empty", began), 0.0
        return replace(exchange, seconds=round(self.clock() - began, 3)), 0.0

    async def _unless_stopped(self, answer: Coroutine[Any, Any, ModelResponse]) -> ModelResponse:
        """The answer, or StoppedError within a moment after the job was told to end."""
        task = asyncio.ensure_future(answer)
        try:
            while not task.done():
                await asyncio.wait({task}, timeout=STOP_SECONDS)
                self._check_stop()
            return task.result()
        finally:
            task.cancel()

    def _check_stop(self) -> None:
        if self.stopped():
            raise StoppedError("told to stop in the middle of a conversation, which begins anew in the next start")

    def _failed(self, exchange: Exchange, cause: str, text: str, began: float) -> Exchange:
        return replace(exchange, cause=cause, error=self._clean(text)[:2000], seconds=round(self.clock() - began, 3))

    def _clean(self, text: str) -> str:
        """Without the key, and without halves of surrogate pairs, which could be neither stored nor sent."""
        text = text.replace(self.key, "[key]") if self.key else text
        return text.encode(errors="replace").decode()

    async def _request(self, model: OpenAIChatModel, question: Question) -> ModelResponse:
        settings = ModelSettings(temperature=question.temperature, max_tokens=question.max_tokens)
        if not self.config.stream:
            return await model.request(question.history, settings, question.parameters)
        async with model.request_stream(question.history, settings, question.parameters) as stream:
            number, limit = 0, 2 * question.max_tokens + 64
            async for _ in stream:  # an event has at least one token, but for a few at a part's ends
                number += 1
                if number > limit:  # the server does not keep to the limit
                    return replace(stream.get(), finish_reason="length")
            response = stream.get()
        if response.finish_reason is None:
            raise UnexpectedModelBehavior("the stream ended in the middle of the reply")
        return response

    def _client(self, url: str, model: str) -> OpenAIChatModel:
        if (url, model) not in self._clients:
            timeout = Timeout(None, connect=CONNECT_SECONDS)
            client = AsyncOpenAI(base_url=url, api_key=self.key or "none", max_retries=0, timeout=timeout)
            provider = OpenAIProvider(openai_client=client)
            self._clients[url, model] = OpenAIChatModel(model, provider=provider, profile=PROFILE)
        return self._clients[url, model]

    def _backoff(self, attempt: int, least: float) -> float:
        wait: float = min(self.config.backoff_limit_s, self.config.backoff_s * 2.0**attempt)
        return max(min(least, self.config.wait_s), wait * (0.5 + self.rng.random() / 2))


def estimate_tokens(text: str) -> int:
    """Tokens of a text, rather too many than too few."""
    return math.ceil(len(text.encode()) / BYTES_PER_TOKEN)


def _as_error(exchange: Exchange) -> AgentError | ServiceError | ConfigError:
    """What the last failed try means: the user must act, the server is at fault, or the reply is; with its cause."""
    text = f"{exchange.role}: {exchange.error}"
    error: AgentError | ServiceError | ConfigError
    if exchange.cause in ("model.http_401", "model.http_402", "model.http_403"):
        error = ConfigError(f"{exchange.endpoint} refuses this run, look at agents.api_key_env: {text}")
    elif exchange.cause == "model.http_404":
        error = ConfigError(f"{exchange.endpoint} does not serve {exchange.model!r}, look at agents.model: {text}")
    elif exchange.cause.startswith("model.") and not _useless(exchange.cause):
        error = ServiceError(f"{text} (after the last try)")
    else:
        return AgentError(exchange.cause, text)
    vars(error)["cause"] = exchange.cause
    return error


def _useless(cause: str) -> bool:
    """Whether another try would meet the same status."""
    code = cause.removeprefix("model.http_")
    return code.isdigit() and int(code) < 500 and int(code) not in AGAIN


def _classify(error: Exception, timeout_s: float) -> tuple[str, str, float | None]:
    """Cause, text, and the least pause before another try (None: it would fail again)."""
    if isinstance(error, ModelContextWindowExceededError):
        return "context", f"the prompt is too long for the model: {error}", None
    if isinstance(error, ModelHTTPError):
        code = error.status_code
        text = f"status {code}: {error.body if error.body is not None else error}"
        if code in AGAIN or code >= 500:
            return f"model.http_{code}", text, error.retry_after or 0.0
        return f"model.http_{code}", text, None
    if isinstance(error, TimeoutError):
        return "model.timeout", f"no whole reply within {timeout_s:g} s", 0.0
    if isinstance(error, ModelAPIError | AgentRunError | OSError | ValueError):
        return "model.dropped", f"no whole reply: {type(error).__name__}: {error}", 0.0
    return "model.dropped", f"no whole reply: {error!r}", 0.0


class Transcript:
    """Implements `Speaker` with the replies of an earlier conversation, in their order."""

    def __init__(self, exchanges: Iterable[Exchange], record: Callable[[Exchange], None]) -> None:
        self._left = list(exchanges)
        self._record = record

    async def answer(self, question: Question, used: Callable[[Exchange], None]) -> Exchange:
        while self._left:
            exchange = self._left.pop(0)
            if list(exchange.messages) != list(question.messages) or exchange.role != question.role:
                raise AgentError(
                    "replay",
                    f"{question.role}: this conversation asks something else than the recorded one does at this place "
                    f"({exchange.role}); the code, the run's configuration or its files changed since",
                )
            self._record(exchange)
            used(exchange)
            if not exchange.error:
                return exchange
            if exchange.final:
                raise _as_error(exchange)
        raise AgentError("replay", f"{question.role}: the transcript has no further reply")

    def fits(self, prompt: Prompt, model: str, room: int) -> bool:
        """Whether this is the prompt that was sent: how much of it fitted was measured then.

        One with other instructions fits as it is, so that `answer` can say that the conversation is another.
        """
        asked = [{"role": "system", "content": prompt.system.strip()}, {"role": "user", "content": prompt.user}]
        sent = list(self._left[0].messages)[:2] if self._left else asked
        return sent == asked or sent[0] != asked[0]

    async def close(self) -> None:
        """There is nothing to end."""
