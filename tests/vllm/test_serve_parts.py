"""The serve job without vLLM: its pure parts, and what a real server cannot show quickly, with one that pretends."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from asiarch_hpc.config import ServerConfig
from asiarch_hpc.errors import ConfigError
from asiarch_hpc.records import Json, Service, to_json
from asiarch_hpc.store.files import write_json
from asiarch_hpc.store.layout import RunLayout
from jobs import serve
from tests.conftest import wait_for
from tests.vllm.vllm_jobs import KEY, ServeProcess, alive, make_run, overrides

FAKE = Path(__file__).with_name("fake_server.py")


def test_the_command_line() -> None:
    server = ServerConfig(
        name="main", model="/m/Qwen", gpus=4, context=4096, quantization="fp8", flags=["--max-model-len", "8192"]
    )
    words = serve.command_line(server, "10.0.0.7", 8123)
    assert words == [
        *("vllm", "serve", "/m/Qwen", "--served-model-name", "main", "--host", "10.0.0.7", "--port", "8123"),
        *("--max-model-len", "4096", "--tensor-parallel-size", "4", "--quantization", "fp8"),
        *("--max-model-len", "8192"),
    ]
    embeddings = replace(server, embeddings=True, served_name="e5", tensor_parallel=1, quantization="", flags=[])
    assert serve.command_line(embeddings, "::", 1)[2:] == [
        *("/m/Qwen", "--served-model-name", "e5", "--host", "::", "--port", "1", "--max-model-len", "4096"),
        *("--runner", "pooling"),
    ]


def test_the_environment_holds_the_key_of_the_run_alone(tmp_path: Path) -> None:
    server = ServerConfig(model=str(tmp_path), environment={"DO_NOT_TRACK": "0", "A": "2"})
    found = serve.environment(server, KEY, {"A": "1", "B": "1", "VLLM_API_KEY": "another"})
    assert found == {
        "VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "0", "HF_HUB_OFFLINE": "1", "A": "2", "B": "1", "VLLM_API_KEY": KEY,
    }  # fmt: skip
    assert "VLLM_API_KEY" not in serve.environment(server, "", {"VLLM_API_KEY": "another"})
    assert "HF_HUB_OFFLINE" not in serve.environment(ServerConfig(model="Qwen/Qwen3-8B"), "", {})


def test_requests_under_way() -> None:
    metrics = """# HELP vllm:num_requests_running Number of requests in model execution batches.
# TYPE vllm:num_requests_running gauge
vllm:num_requests_running{engine="0",model_name="tiny"} 3.0
vllm:num_requests_running{engine="1",model_name="tiny"} 1.0
vllm:num_requests_waiting{engine="0",model_name="tiny"} 2e+00
vllm:num_requests_waiting_by_reason{engine="0",model_name="tiny",reason="capacity"} 2.0
"""
    assert serve.requests_under_way(metrics) == 6
    assert serve.requests_under_way("vllm:num_requests_running 0.0\n") == 0
    assert serve.requests_under_way("") is None


def test_last_words_name_the_cause_that_stands_far_above() -> None:
    prefix = "(EngineCore pid=7) ERROR 11-26 12:55:00 [core.py:1512] "
    log = [f"{prefix}  File a.py", f"{prefix}RuntimeError: out of luck", f"{prefix}RuntimeError: out of luck"]
    words = serve.last_words([*log, *(f"[shutdown] step {number}" for number in range(40))]).splitlines()
    assert words == ["RuntimeError: out of luck", *(f"[shutdown] step {number}" for number in range(28, 40))]
    assert serve.last_words(["", "ValueError: short log"]) == "ValueError: short log"


def test_servers_are_chosen_by_name_or_index() -> None:
    servers = [ServerConfig(name="main"), ServerConfig(name="embed")]
    assert serve.choose_server(servers, "embed") is serve.choose_server(servers, 1) is servers[1]
    with pytest.raises(ConfigError, match=r"'judge' was asked for, found \['main', 'embed'\]"):
        serve.choose_server(servers, "judge")


def test_an_address_of_this_node_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    assert all(0 < port < 65536 for port in (serve.free_port()[1] for _ in range(5)))

    def unresolved(*args: Any) -> Any:
        raise OSError("n1: name or service not known")

    monkeypatch.setattr(serve.socket, "getaddrinfo", unresolved)
    assert list(serve.addresses())[-1] == "127.0.0.1"
    # An address from a stale /etc/hosts is not taken.
    monkeypatch.setattr(serve.socket, "getaddrinfo", lambda *_: [(0, 0, 0, "", ("192.0.2.77", 0))])
    assert next(serve.addresses()) == "192.0.2.77"
    assert serve.free_port()[0] != "192.0.2.77"


def test_only_its_own_files_are_withdrawn(tmp_path: Path) -> None:
    layout = RunLayout(tmp_path)
    mine = Service(
        name="a", server="main", url="http://h:1/v1", model="m", job="j", host="h", state="ready", started=1.0, seen=1.0
    )
    later = replace(mine, url="http://h:2/v1", started=2.0)
    write_json(layout.service("a"), to_json(later))
    layout.drain("a").touch()
    serve.withdraw(layout, mine)
    assert layout.service("a").exists()
    assert layout.drain("a").exists()
    serve.withdraw(layout, later)
    assert list(layout.services.iterdir()) == []
    layout.service("a").write_text("{")
    serve.withdraw(layout, mine)
    serve.withdraw(layout, mine)
    assert list(layout.services.iterdir()) == []


def fake(folder: Path, mode: str, **changes: Any) -> Json:
    folder.mkdir(parents=True)
    return {
        "name": "main", "model": str(folder), "gpus": 0, "command": [sys.executable, str(FAKE)],
        "flags": ["--fake", mode], "start_s": 60.0, "drain_s": 20.0, **changes,
    }  # fmt: skip


@contextmanager
def job(tmp_path: Path, mode: str, *settings: str, minutes: float = 0, **changes: Any) -> Iterator[ServeProcess]:
    layout = make_run(tmp_path / "run", *overrides(fake(tmp_path / "model", mode, **changes)), *settings)
    process = ServeProcess.start(layout, "main-0-001", server="main", minutes=minutes)
    try:
        yield process
    finally:
        process.end()


def test_the_first_port_was_taken(tmp_path: Path) -> None:
    with job(tmp_path, "taken") as running:
        assert running.ready().url.endswith("/v1")
        assert "address already in use" in running.log.read_text()


def test_one_that_never_gets_ready_is_given_up(tmp_path: Path) -> None:
    with job(tmp_path, "mute", start_s=1.0) as running:
        message = running.message()
        assert (message["status"], message["cause"]) == ("error", "ServiceError")
        assert "was not ready within start_s=1 seconds: it lives; its last words:\nserving as" in message["message"]
        assert not list(running.layout.services.iterdir())


def test_one_that_hangs_is_given_up_and_killed(tmp_path: Path) -> None:
    with job(tmp_path, "hang", "agents.health_s=1") as running:
        running.ready()
        (tmp_path / "model/hang").touch()
        message = running.message()
        assert "was not seen for 2 seconds (no answer to /health)" in message["message"]
        assert not running.service()


def test_an_unknown_command_is_the_users_to_repair(tmp_path: Path) -> None:
    with job(tmp_path, "", command=["vllm-that-is-not-there", "serve"]) as running:
        message = running.message()
        assert message["status"] == "fatal"
        assert "vllm-that-is-not-there does not start on" in message["message"]


def test_slurms_warning_drains_and_does_not_kill(tmp_path: Path) -> None:
    """Slurm sends it to every process of the job."""
    with job(tmp_path, "slow") as running:
        running.ready()
        for pid in [*running.server_processes(), running.process.pid]:
            os.kill(pid, signal.SIGUSR2)
        began = time.monotonic()
        wait_for(lambda: (service := running.service()) and service.state == "draining", 10)
        message = running.message()
        assert message["status"] == "ok"
        assert message["payload"]["reason"] == "told to stop"
        assert time.monotonic() - began > 1 + serve.LULL_SECONDS - 0.5
        assert not list(running.layout.services.iterdir())


def test_a_cancelled_job_ends_in_order(tmp_path: Path) -> None:
    with job(tmp_path, "") as running:
        running.ready()
        for pid in [*running.server_processes(), running.process.pid]:
            os.kill(pid, signal.SIGTERM)
        assert running.message()["payload"]["reason"] == "told to stop"
        assert not list(running.layout.services.iterdir())


def test_it_ends_before_its_time_limit(tmp_path: Path) -> None:
    minutes = (serve.LAST_SECONDS + serve.STOP_SECONDS + 1 + 6) / 60
    with job(tmp_path, "", minutes=minutes, drain_s=1.0) as running:
        assert running.ready().ends == pytest.approx(time.time() + 60 * minutes, abs=30)
        assert running.message()["payload"]["reason"] == "time limit"


def test_what_does_not_end_is_killed(tmp_path: Path) -> None:
    with job(tmp_path, "worker") as running:
        running.ready()
        worker = int((tmp_path / "model/worker").read_text())
        running.layout.drain(running.name).touch()
        assert running.message()["payload"]["reason"] == "drained"
        wait_for(lambda: not alive(worker), 10)


def test_the_server_ends_with_a_killed_job(tmp_path: Path) -> None:
    with job(tmp_path, "") as running:
        running.ready()
        server = running.server_processes()[0]
        running.process.kill()
        wait_for(lambda: not alive(server), 10)


def test_whoever_was_replaced_ends_and_leaves_the_files_of_the_other(tmp_path: Path) -> None:
    with job(tmp_path, "") as running:
        first = running.ready()
        # The job has noted it as seen, and does nothing for the next five seconds: no write of its own is under way.
        service = wait_for(lambda: (now := running.service()) and now.seen > first.seen and now, 30)
        server = running.server_processes()[0]
        other = replace(service, url="http://127.0.0.1:9/v1", started=service.started + 1)
        (running.layout.attempts(f"serve-{running.name}") / "002.000").touch()
        write_json(running.layout.service(running.name), to_json(other))
        running.process.wait(60)
        assert running.service() == other
        assert not alive(server)
        assert not running.layout.message(f"serve_{running.name}", 0).exists()
