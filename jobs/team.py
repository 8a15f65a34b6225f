"""What an agent job works with: language models, found and recorded, and the embedder that texts are compared by."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import json
import math
import os
import random
import time
import urllib.parse
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from asiarch_hpc.agents.exchange import Exchange
from asiarch_hpc.agents.key import read_key
from asiarch_hpc.agents.llm import LanguageModels, Speaker, Spending
from asiarch_hpc.agents.speakers import Endpoint, Servers
from asiarch_hpc.config import AgentsConfig, Config
from asiarch_hpc.errors import NoServerError, RecordError
from asiarch_hpc.knowledge.embedding import Embedder, embedder_of
from asiarch_hpc.records import JobKind, Json, Service, from_json
from asiarch_hpc.store.files import read_json
from asiarch_hpc.store.layout import RunLayout
from jobs.entry import Attempt
from jobs.workspace import Workspace

LAST_SECONDS = 10.0  # of a job: to write what it has


@dataclass
class Team:
    """The language models of one job. `rows` are its exchanges so far, as `agents.jsonl` keeps them."""

    models: LanguageModels
    embedder: Embedder
    rows: list[Json]
    note: Callable[[Json], None]

    def begin(self, known: Iterable[str], assessed: Iterable[str]) -> None:
        """Notes what the run held when the job began, so that a replay sees the same.

        Args:
            known: ids of all designs.
            assessed: ids of designs that the job reads, with an assessment.
        """
        self.note({"known": sorted(known), "assessed": sorted(assessed)})

    @property
    def spending(self) -> Spending:
        return self.models.spending


@contextlib.contextmanager
def open_team(
    space: Workspace,
    attempt: Attempt,
    *,
    kind: JobKind,
    tokens: int,
    seed: str,
    speaker: Callable[..., Speaker] | None = None,
) -> Iterator[Team]:
    """A team for one job; what it cost is noted on an error that ends the job.

    Args:
        kind: of the job; the conversation ends before its time limit, since it would begin anew after that.
        tokens: that the run's budget has left; 0 for no budget.
        seed: of everything that is drawn.
        speaker: makes whoever answers instead of the run's servers, from a callback that records exchanges.

    Raises:
        ConfigError: the API key's file is open to others.
    """
    agents = space.config.agents
    rows: list[Json] = []
    path = attempt.layout.transcript(f"{attempt.work}.{attempt.token}")
    rng = random.Random(seed)
    with contextlib.ExitStack() as stack:
        write = stack.enter_context(_lines(path)) if speaker is None else None

        def note(content: Json) -> None:
            row = {"work": attempt.work, "token": attempt.token, **content}
            rows.append(row)
            if write is not None:
                write(row)

        def record(exchange: Exchange) -> None:
            note(_plain(exchange))

        key = "" if speaker is not None else read_key(agents, os.environ)
        directory = server_directory(attempt.layout, agents)
        models = LanguageModels(
            config=agents,
            speaker=speaker(record)
            if speaker is not None
            else Servers(
                config=agents,
                directory=lambda: directory(embeddings=False),
                record=record,
                key=key,
                rng=rng,
                clock=time.monotonic,
                sleep=asyncio.sleep,
                stopped=attempt.should_stop,
            ),
            rng=rng,
            spending=Spending(
                min(agents.tokens_per_job, tokens) if tokens else agents.tokens_per_job,
                _time_left(space.config, kind) if speaker is None else lambda: math.inf,
            ),
        )
        stack.callback(models.close)
        embedder = embedder_of(agents.embedding, url=lambda: _one(directory(embeddings=True)), key=key)
        try:
            yield Team(models, embedder, rows, note)
        except Exception as error:
            vars(error)["tokens"] = models.spending.tokens  # the job's message tells what it cost
            raise


def _time_left(config: Config, kind: JobKind) -> Callable[[], float]:
    """Seconds that a job of this kind has left for its conversation, from now on."""
    minutes = getattr(config.executor, kind).timeout_min
    warning = min(config.executor.signal_seconds, minutes * 20)  # as the schedulers have it
    end = time.monotonic() + minutes * 60 - warning - LAST_SECONDS
    return lambda: end - time.monotonic()


def server_directory(layout: RunLayout, agents: AgentsConfig) -> Callable[..., list[Endpoint]]:
    """Where servers are now: those of the configuration, or those of the run that were seen lately."""

    def directory(*, embeddings: bool) -> list[Endpoint]:
        if agents.endpoints:
            return [Endpoint(url.rstrip("/")) for url in agents.endpoints]
        found = []
        for path in sorted(layout.services.glob("*.json")):
            with contextlib.suppress(RecordError):
                service = from_json(Service, read_json(path), source=str(path))
                fresh = time.time() - service.seen < agents.health_s
                if service.state == "ready" and fresh and service.embeddings == embeddings:
                    _past_proxies(service.url)
                    found.append(Endpoint(service.url, (service.model,)))
        return found

    return directory


def _past_proxies(url: str) -> None:
    """A server of the run is on the cluster itself, where a proxy that the site sets for the internet is no help."""
    host = urllib.parse.urlsplit(url).hostname or ""
    for name in ("no_proxy", "NO_PROXY"):
        hosts = [word for word in os.environ.get(name, "").split(",") if word]
        if host not in hosts:
            os.environ[name] = ",".join([*hosts, host])


def _one(endpoints: Sequence[Endpoint]) -> str:
    if not endpoints:
        raise NoServerError("no server of embeddings is up; look into the run's services/, or at agents.endpoints")
    return endpoints[0].url


@contextlib.contextmanager
def _lines(path: Path) -> Iterator[Callable[[Json], None]]:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8") as file:

        def write(row: Json) -> None:
            file.write(json.dumps(row, ensure_ascii=False) + "\n")
            file.flush()

        yield write


def _plain(exchange: Exchange) -> Json:
    row = dataclasses.asdict(exchange)
    row["messages"] = [dict(message) for message in exchange.messages]
    return row
