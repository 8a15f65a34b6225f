"""What the tests with a real vLLM share; `make test-vllm` installs it, without it they skip."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from asiarch_hpc.records import Json
from asiarch_hpc.store.layout import RunLayout
from tests.vllm.vllm_jobs import ENVIRONMENT, ServeProcess, cpu_server, make_model, make_run, overrides, vllm_command


@pytest.fixture(scope="session")
def vllm() -> None:
    if not (ENVIRONMENT / "ready").exists():
        pytest.skip("no vLLM: `make test-vllm` installs one (2 GB)")


@pytest.fixture(scope="session")
def model_folder(vllm: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model that vLLM takes."""
    return make_model(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture(scope="session")
def server(model_folder: Path) -> Callable[..., Json]:
    """Entries of agents.servers for that model; see `cpu_server`."""

    def entry(**changes: Any) -> Json:
        return cpu_server(model_folder, **changes)

    return entry


@pytest.fixture(scope="session")
def run_with_servers(server: Callable[..., Json], tmp_path_factory: pytest.TempPathFactory) -> RunLayout:
    """A run whose agents have the servers `main` (chat) and `embed`; one reply is short."""
    embed = server(name="embed", served_name="tiny-embed", embeddings=True, command=vllm_command(0))
    short = "agents.roles.summarizer.max_tokens=200"
    return make_run(tmp_path_factory.mktemp("results") / "served", *overrides(server(), embed), short)


@pytest.fixture(scope="session")
def started(run_with_servers: RunLayout) -> Iterator[dict[str, ServeProcess]]:
    """Both of them, starting together, since most of a start is reading files."""
    found = {name: ServeProcess.start(run_with_servers, f"{name}-0-001", server=name) for name in ("main", "embed")}
    yield found
    for job in found.values():
        job.end()


@pytest.fixture
def chat(started: dict[str, ServeProcess]) -> ServeProcess:
    """The chat server that all tests share, ready; leave it as it is."""
    started["main"].ready()
    return started["main"]
