"""Language models over scripted servers, with a clock that only sleeping moves."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest
from pydantic import BaseModel, Field

from asiarch_hpc.agents.exchange import Exchange
from asiarch_hpc.agents.llm import LanguageModels, Spending
from asiarch_hpc.agents.prompt import Prompt
from asiarch_hpc.agents.reply import Reply, ReplyError
from asiarch_hpc.agents.speakers import Endpoint, Servers
from asiarch_hpc.config import AgentsConfig
from asiarch_hpc.errors import AgentError, ConfigError, ServiceError
from tests.agents.behaviours import Text
from tests.agents.scripted_server import ScriptedServer

KEY = "sk-secret-0123456789"


class Opinion(BaseModel):
    """What the tests ask for."""

    score: int = Field(ge=1, le=10, description="from 1 to 10")
    name: str = Field(pattern=r"^[a-z][a-z0-9_]{2,47}$", description="a name in snake_case")
    source: str = Field(default="", description="program text")


def known(opinion: Opinion) -> None:
    if opinion.name == "delta_net":
        raise ReplyError("the name delta_net is taken")


PROMPT = Prompt("You judge designs.\n", "Judge this one.\n")
OPINION = Reply("Opinion", Opinion, code={"source": "python"}, check=known)
GOOD = Text('{"score": 7, "name": "gated_mix", "source": "x = 1"}')
ANSWER = Opinion(score=7, name="gated_mix", source="x = 1")
BLOCKS = 'Here it is.\n\n```json\n{"score": 7, "name": "gated_mix"}\n```\n\n```python\nx = 1\n```\n'


@dataclass
class Clock:
    """Seconds that pass only while somebody sleeps."""

    now: float = 1000.0
    sleeps: list[float] = field(default_factory=list)

    def __call__(self) -> float:
        return self.now

    async def sleep(self, seconds: float) -> None:
        self.sleeps.append(seconds)
        self.now += seconds


@dataclass
class Talk:
    """What a test asks with, and what came of it."""

    models: LanguageModels
    speaker: Servers
    clock: Clock
    exchanges: list[Exchange]

    @property
    def causes(self) -> list[str]:
        return [exchange.cause for exchange in self.exchanges]


def talk_to(*servers: ScriptedServer, seed: int = 0, key: str = "", timeout_s: float = 20.0, **values: Any) -> Talk:
    config = AgentsConfig(**values)
    config.roles.judge.timeout_s = timeout_s
    clock, exchanges = Clock(), list[Exchange]()
    speaker = Servers(
        config=config,
        directory=lambda: [Endpoint(server.url) for server in servers if server.healthy],
        record=exchanges.append,
        key=key,
        rng=random.Random(seed),
        clock=clock,
        sleep=clock.sleep,
    )
    models = LanguageModels(config, speaker, random.Random(seed), Spending(config.tokens_per_job))
    return Talk(models, speaker, clock, exchanges)


Connect = Callable[..., Talk]


FAILURES = (AgentError, ServiceError, ConfigError)


def failure(one: Talk, role: str = "judge") -> Any:
    """The error of a question: a reply's, a server's, or the user's; each with its `cause`."""
    with pytest.raises(FAILURES) as found:
        one.models.ask(role, PROMPT, OPINION)
    return found.value


@pytest.fixture
def talk() -> Iterator[Callable[..., Talk]]:
    """Makes a Talk with some servers and agents.* values; its connections end with the test."""
    made: list[Talk] = []

    def make(*servers: ScriptedServer, **values: Any) -> Talk:
        made.append(talk_to(*servers, **values))
        return made[-1]

    yield make
    for one in made:
        one.models.close()
