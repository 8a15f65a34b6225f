"""Serve jobs with a real vLLM on CPU, from the start to the end, and the agents' way to it."""

from __future__ import annotations

import json
import os
import random
import re
import signal
import threading
import time
import urllib.error
import urllib.request
from typing import Any, Literal

import pytest
from pydantic import BaseModel, Field

from asiarch_hpc.agents.exchange import Exchange
from asiarch_hpc.agents.llm import LanguageModels, Spending
from asiarch_hpc.agents.prompt import Prompt
from asiarch_hpc.agents.reply import Reply
from asiarch_hpc.agents.speakers import Endpoint, Servers
from asiarch_hpc.config import from_dict
from asiarch_hpc.records import Json
from asiarch_hpc.store.files import read_json
from asiarch_hpc.store.layout import RunLayout
from jobs.serve import requests_under_way
from tests.conftest import wait_for
from tests.vllm.vllm_jobs import KEY, ServeProcess, alive, command_lines, request, services

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


class Verdict(BaseModel):
    """Every string has a pattern: random weights do not end one by themselves."""

    verdict: Literal["new", "known"]
    grade: int = Field(ge=1, le=10)
    reasons: list[Literal["gate", "memory", "decay"]] = Field(min_length=1, max_length=3)
    name: str = Field(pattern=r"^[a-z]{3,8}$")


def ask(url: str, words: str, **settings: Any) -> Json:
    """One chat reply."""
    body = {"model": "tiny", "messages": [{"role": "user", "content": words}], **settings}
    answer: Json = request(f"{url}/chat/completions", body)
    return answer


def test_a_server_announces_itself_and_stays_seen(chat: ServeProcess, run_with_servers: RunLayout) -> None:
    service = chat.ready()
    assert (service.name, service.server, service.model) == ("main-0-001", "main", "tiny")
    assert (service.job, service.state, service.embeddings) == ("serve_main-0-001", "ready", False)
    assert re.fullmatch(r"http://[\d.]+:\d+/v1", service.url)
    assert service.started <= service.seen <= time.time()
    assert service.ends == 0.0
    assert [row["id"] for row in request(f"{service.url}/models")["data"]] == ["tiny"]
    later = wait_for(lambda: (s := chat.service()) and s.seen > service.seen and s, 30)
    assert later.url == service.url
    assert service in services(run_with_servers) or later in services(run_with_servers)


def test_the_key_is_needed_and_shown_nowhere(chat: ServeProcess) -> None:
    service = chat.ready()
    with pytest.raises(urllib.error.HTTPError) as caught:
        request(f"{service.url}/models", key="another")
    assert caught.value.code == 401
    caught.value.close()
    shown = [*command_lines([chat.process.pid, *chat.server_processes()]).values(), chat.log.read_bytes()]
    shown += [chat.layout.service(chat.name).read_bytes(), chat.layout.record.read_bytes()]
    assert not [text for text in shown if KEY.encode() in text]


def test_slurms_warning_leaves_the_server_alive(chat: ServeProcess) -> None:
    service = chat.ready()
    for pid in chat.server_processes():
        os.kill(pid, signal.SIGUSR2)
    assert ask(service.url, "still there?", max_tokens=5)["usage"]["completion_tokens"] == 5


@pytest.mark.parametrize("stream", [True, False])
def test_an_agent_gets_a_reply_that_fits_its_schema(
    chat: ServeProcess, run_with_servers: RunLayout, stream: bool
) -> None:
    chat.ready()
    config = from_dict(read_json(run_with_servers.record)["config"], source="run.json").agents
    config.stream = stream
    exchanges: list[Exchange] = []

    def directory() -> list[Endpoint]:
        found = [service for service in services(run_with_servers) if service.state == "ready"]
        return [Endpoint(service.url, (service.model,)) for service in found if not service.embeddings]

    speaker = Servers(config, directory, exchanges.append, KEY, random.Random(0), time.monotonic)
    models = LanguageModels(config, speaker, random.Random(0), Spending(10_000))
    prompt = Prompt("You grade designs.", "Is a decaying gated memory new?")
    found = models.ask("summarizer", prompt, Reply("verdict", Verdict))
    models.close()
    assert isinstance(found, Verdict)
    assert len(exchanges) == 1
    assert json.loads(exchanges[0].reply) == found.model_dump()
    assert exchanges[0].tokens_out == models.spending.tokens - exchanges[0].tokens_in > 0
    assert exchanges[0].model == "tiny"
    assert speaker.count("Is a decaying gated memory new?", "tiny") < len("Is a decaying gated memory new?")


def test_embeddings_and_the_death_of_an_engine(started: dict[str, ServeProcess]) -> None:
    """The second server answers with vectors; then its engine is killed, as by a full memory, and the job says so."""
    job = started["embed"]
    service = job.ready()
    assert (service.model, service.embeddings) == ("tiny-embed", True)
    texts = ["a gate that forgets", "a gate that forgets", "softmax attention over all tokens"]
    rows = request(f"{service.url}/embeddings", {"model": service.model, "input": texts})["data"]
    vectors = [row["embedding"] for row in rows]
    assert {len(vector) for vector in vectors} == {64}
    likeness = [sum(a * b for a, b in zip(vectors[0], vector, strict=True)) for vector in vectors]
    assert likeness[:2] == pytest.approx([1, 1], abs=1e-3)
    assert likeness[2] < 0.999

    pids = job.server_processes()
    engine = next(pid for pid, words in command_lines(pids).items() if b"EngineCore" in words)
    os.kill(engine, signal.SIGKILL)
    message = job.message()
    assert (message["status"], message["cause"]) == ("error", "ServiceError")
    assert re.search(r"embed-0-001 on \S+ died: exit status \d+; its last words:\n", message["message"])
    assert "EngineDeadError" in message["message"]
    assert not job.layout.service(job.name).exists()
    wait_for(lambda: not [pid for pid in pids if alive(pid)], 20)


def test_a_server_that_is_killed_while_it_starts(run_with_servers: RunLayout) -> None:
    job = ServeProcess.start(run_with_servers, "embed-0-002", server="embed")
    try:
        wait_for(lambda: "non-default args" in job.log.read_text(), 120)
        service = job.service()
        assert service is not None
        assert service.state == "starting"
        pids = job.server_processes()
        os.kill(pids[0], signal.SIGKILL)
        message = job.message()
        assert "ended before it was ready: killed by SIGKILL; its last words:\n" in message["message"]
        assert "non-default args" in message["message"]
        assert not job.layout.service(job.name).exists()
        wait_for(lambda: not [pid for pid in pids if alive(pid)], 20)
    finally:
        job.end()


def test_a_reply_under_way_is_whole_when_its_server_drains(chat: ServeProcess, run_with_servers: RunLayout) -> None:
    leaving = ServeProcess.start(run_with_servers, "main-0-002", server="main", minutes=60)
    try:
        service = leaving.ready()
        assert 0 < service.ends - time.time() <= 3600
        assert {found.name for found in services(run_with_servers)} >= {"main-0-001", "main-0-002"}
        replies: list[Json] = []
        count = 1900
        settings = {"max_tokens": count, "min_tokens": count}
        thread = threading.Thread(target=lambda: replies.append(ask(service.url, "go on", **settings)))
        thread.start()
        wait_for(lambda: _running(service.url), 30)
        leaving.layout.drain(leaving.name).touch()
        wait_for(lambda: (now := leaving.service()) and now.state == "draining", 10)
        assert not replies
        message = leaving.message()
        thread.join(10)
        assert replies[0]["usage"]["completion_tokens"] == count
        assert (message["status"], message["payload"]["reason"]) == ("ok", "drained")
        assert 0 < message["payload"]["served_s"] < message["seconds"]
        assert [found.name for found in services(run_with_servers) if found.server == "main"] == ["main-0-001"]
        assert not leaving.layout.drain(leaving.name).exists()
    finally:
        leaving.end()


def _running(url: str) -> int:
    """Requests, by the server's own count."""
    with urllib.request.urlopen(url.removesuffix("/v1") + "/metrics", timeout=10) as answer:
        return requests_under_way(answer.read().decode()) or 0
