"""The language-model servers of a run: which should run, and which should end.

Each place of a server is held by one job after the other, `serve-<name>-<place>-<number>`. A job that dies is submitted
again under its key, like all work; one that nears its time limit gets a successor, and ends once that is ready. The
controller tells a server to end by a file, since a signal would reach the server's own processes too and cut replies.
"""

from __future__ import annotations

import contextlib
import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from asiarch_hpc.config import Config, ServerConfig, uses_agents
from asiarch_hpc.controller.state import Busy, RunState, WorkSpec
from asiarch_hpc.errors import RecordError
from asiarch_hpc.records import Service, from_json
from asiarch_hpc.store.files import read_json
from asiarch_hpc.store.layout import RunLayout


@dataclass(frozen=True, slots=True)
class Place:
    """One server that should always run; `holders` are its jobs under way, oldest first."""

    server: ServerConfig
    index: int
    holders: tuple[Busy, ...]
    last: int  # number of the newest job that ever held it, -1 for none

    def name(self, number: int) -> str:
        return f"{self.server.name}-{self.index}-{number:03d}"


def read_services(layout: RunLayout) -> dict[str, Service]:
    """What the servers' jobs say of themselves, by name; a damaged file says nothing."""
    found = {}
    if layout.services.is_dir():
        for path in sorted(layout.services.glob("*.json")):
            with contextlib.suppress(RecordError):
                service = from_json(Service, read_json(path), source=str(path))
                found[service.name] = service
    return found


def wanted_servers(state: RunState, config: Config, services: dict[str, Service], now: float) -> Iterator[WorkSpec]:
    """Servers to start: where none holds a place, and a successor where the holder's time runs out."""
    for place in places(state, config):
        holders = place.holders
        if state.outcomes.get(f"serve-{place.name(place.last)}") == "failed":
            continue  # given up; the user's next start tries it again
        if not holders or (len(holders) == 1 and now >= _successor_at(place, services)):
            yield _spec(place, place.last + 1, config)


def servers_to_end(state: RunState, config: Config, services: dict[str, Service]) -> list[str]:
    """Names of servers whose successor is ready."""
    ended = []
    for place in places(state, config):
        if len(place.holders) > 1 and _ready(place.holders[-1], services):
            ended += [service_name(busy) for busy in place.holders[:-1]]
    return ended


def all_servers(state: RunState) -> list[Busy]:
    """Jobs of servers under way."""
    return [busy for busy in state.busy.values() if busy.kind == "serve"]


def all_away(config: Config, services: dict[str, Service], now: float) -> bool:
    """Whether none of the servers that this run has to have is up."""
    if config.agents.endpoints or not config.agents.servers:
        return False
    chats = [s for s in services.values() if s.state == "ready" and not s.embeddings]
    return not any(now - service.seen < config.agents.health_s for service in chats)


def broken_server(state: RunState) -> str | None:
    """The key of a server's job that was given up, when no other server is left."""
    if all_servers(state):
        return None
    failed = (key for key, outcome in state.outcomes.items() if key.startswith("serve-") and outcome == "failed")
    return next(failed, None)


def places(state: RunState, config: Config) -> list[Place]:
    """Every server that the configuration asks for."""
    if not uses_agents(config) or config.agents.endpoints:
        return []
    found = []
    for server in config.agents.servers:
        for index in range(server.count):
            prefix = f"serve-{server.name}-{index}-"
            mine = re.compile(rf"{prefix}(\d+)")
            numbers = [int(match[1]) for key in state.submissions if (match := mine.fullmatch(key))]
            holders = sorted((b for b in all_servers(state) if mine.fullmatch(b.key)), key=lambda busy: busy.key)
            found.append(Place(server, index, tuple(holders), _unfinished(numbers, holders, prefix, state)))
    return found


def _unfinished(numbers: Sequence[int], holders: Sequence[Busy], prefix: str, state: RunState) -> int:
    """The newest number; one whose job died without an end is open again, so that its deaths are counted together."""
    last = max(numbers, default=-1)
    if last >= 0 and not holders and f"{prefix}{last:03d}" not in state.outcomes:
        return last - 1
    return last


def _successor_at(place: Place, services: dict[str, Service]) -> float:
    service = _service(place.holders[0], services)
    if service is None or not service.ends:
        return math.inf
    return service.ends - place.server.handover_s


def _ready(busy: Busy, services: dict[str, Service]) -> bool:
    service = _service(busy, services)
    return service is not None and service.state == "ready"


def _service(busy: Busy, services: dict[str, Service]) -> Service | None:
    """What a job's server says; a file that its predecessor left says nothing."""
    service = services.get(service_name(busy))
    return service if service is not None and service.job == busy.job else None


def service_name(busy: Busy) -> str:
    """The name that a server's job goes by in services/."""
    return busy.key.removeprefix("serve-")


def _spec(place: Place, number: int, config: Config) -> WorkSpec:
    name = place.name(number)
    minutes = place.server.timeout_min or config.executor.serve.timeout_min
    return WorkSpec(
        key=f"serve-{name}",
        kind="serve",
        function="jobs.serve:run",
        arguments={"server": place.server.name, "name": name, "minutes": minutes},
        label=f"{place.server.model} ({name})",
    )
