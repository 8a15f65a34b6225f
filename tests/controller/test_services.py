"""Which servers should run and which should end; pure functions of the state, the services' files and the clock."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from asiarch_hpc.config import Config, load_config
from asiarch_hpc.controller import services
from asiarch_hpc.controller.state import Event, RunState
from asiarch_hpc.records import Service, to_json
from asiarch_hpc.store.files import write_json
from asiarch_hpc.store.layout import RunLayout


def config(count: int = 1, **server: Any) -> Config:
    entry = {"name": "main", "model": "m", "handover_s": 100.0, "drain_s": 10.0, "count": count, **server}
    return load_config("smoke", ["proposer=llm", f"agents.servers=[{entry}]", "executor.serve.timeout_min=10"])


def service(number: int, state: Any = "ready", ends: float = 1000.0, index: int = 0) -> Service:
    """As the job of that number says it: the first submission of a Life is t1, the second t2."""
    return Service(
        name=f"main-{index}-{number:03d}", server="main", url="http://n1:1/v1", model="main", job=f"t{number + 1}_0",
        host="n1", state=state, started=0.0, seen=0.0, ends=ends,
    )  # fmt: skip


class Life:
    """A state that lives through events."""

    def __init__(self, config: Config) -> None:
        self.config = config
        self.state = RunState(config.search)
        self._tags = 0

    def apply(self, **event: Any) -> None:
        stamped: Event = {"time": 0.0, **event}
        self.state.apply(stamped)

    def start(self, *known: Service, now: float = 0.0) -> list[str]:
        """Submits what is wanted; the keys."""
        specs = list(services.wanted_servers(self.state, self.config, {s.name: s for s in known}, now))
        for spec in specs:
            self._tags += 1
            self.apply(event="intent", tag=f"t{self._tags}", works=[spec.to_json()])
        return [spec.key for spec in specs]

    def to_end(self, *known: Service) -> list[str]:
        return services.servers_to_end(self.state, self.config, {s.name: s for s in known})


def test_every_place_gets_one_server() -> None:
    life = Life(config(count=2))
    assert life.start() == ["serve-main-0-000", "serve-main-1-000"]
    assert life.start() == []
    assert life.start(service(0), now=500.0) == []


def test_a_server_that_dies_is_started_again_under_its_key() -> None:
    life = Life(config())
    life.start()
    life.apply(event="lost", key="serve-main-0-000", interrupted=False, detail="killed")
    assert life.start() == ["serve-main-0-000"]
    assert life.state.losses["serve-main-0-000"] == 1


def test_a_successor_is_started_before_the_time_limit_and_takes_over_when_ready() -> None:
    life = Life(config())
    life.start()
    assert life.start(service(0), now=899.0) == []
    assert life.start(service(0), now=900.0) == ["serve-main-0-001"]
    assert life.start(service(0), service(1, "starting"), now=950.0) == []
    assert life.to_end(service(0), service(1, "starting")) == []
    assert life.to_end(service(0), service(1, ends=2000.0)) == ["main-0-000"]
    life.apply(event="served", key="serve-main-0-000", reason="drained", seconds=950.0)
    assert life.start(service(1, ends=2000.0), now=1000.0) == []


def test_one_that_ended_is_followed_by_the_next_number() -> None:
    life = Life(config())
    life.start()
    life.apply(event="served", key="serve-main-0-000", reason="time limit", seconds=1.0)
    assert life.start() == ["serve-main-0-001"]


def test_a_server_that_cannot_be_kept_running_is_named() -> None:
    life = Life(config())
    life.start()
    assert services.broken_server(life.state) is None
    place = {"slot": None, "attempt": None, "experiment": None, "trial": None}
    life.apply(event="gave_up", key="serve-main-0-000", stage="job", cause="job lost", message="m", **place)
    assert services.broken_server(life.state) == "serve-main-0-000"


@pytest.mark.parametrize("changes", [["agents.endpoints=[http://h/v1]"], []])
def test_a_run_without_servers_of_its_own_starts_none(changes: list[str]) -> None:
    plain = load_config("smoke", ["proposer=llm", *changes] if changes else [])
    assert list(services.wanted_servers(RunState(plain.search), plain, {}, 0.0)) == []


def test_a_damaged_file_says_nothing(tmp_path: Path) -> None:
    layout = RunLayout(tmp_path)
    write_json(layout.service("main-0-000"), to_json(service(0)))
    layout.service("main-0-001").write_text("{")
    assert services.read_services(layout) == {"main-0-000": service(0)}
    assert services.read_services(RunLayout(tmp_path / "none")) == {}


def test_a_file_that_a_dead_job_left_decides_nothing() -> None:
    life = Life(config())
    life.start()
    life.apply(event="lost", key="serve-main-0-000", interrupted=False, detail="killed")
    life.start(service(0), now=990.0)
    assert life.start(service(0), now=990.0) == []  # of the job before: its time limit is not that of this one


def test_names_that_begin_alike_are_told_apart() -> None:
    entries = [{"name": name, "model": "m", "handover_s": 100.0, "drain_s": 10.0} for name in ("main", "main-0")]
    both = load_config("smoke", ["proposer=llm", f"agents.servers={entries}", "executor.serve.timeout_min=10"])
    life = Life(both)
    assert life.start() == ["serve-main-0-000", "serve-main-0-0-000"]
    assert life.start() == []


def test_a_server_that_was_given_up_waits_for_the_users_next_start() -> None:
    life = Life(config())
    life.start()
    place = {"slot": None, "attempt": None, "experiment": None, "trial": None}
    life.apply(event="gave_up", key="serve-main-0-000", stage="job", cause="job lost", message="m", **place)
    assert life.start() == []
    life.apply(event="start", host="h", pid=1, scheduler="local", uid="u", config={})
    assert services.broken_server(life.state) is None
    assert life.start() == ["serve-main-0-000"]


def test_all_are_away_until_one_that_chats_was_seen_lately() -> None:
    one = config()
    assert services.all_away(one, {}, 0.0)
    assert not services.all_away(one, {"main-0-000": service(0)}, 59.0)
    assert services.all_away(one, {"main-0-000": service(0)}, 61.0)
    assert services.all_away(one, {"main-0-000": service(0, "draining")}, 1.0)
    assert not services.all_away(load_config("smoke", ["proposer=llm", "agents.endpoints=[http://h/v1]"]), {}, 0.0)
