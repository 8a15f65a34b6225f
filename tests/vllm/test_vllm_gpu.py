"""Serve jobs with vLLM proper on a GPU: `VLLM_COMMAND="vllm serve" make test-vllm-gpu`. The weights are random."""

from __future__ import annotations

import json
import os
import random
import shlex
import subprocess
import time
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from asiarch_hpc.agents.exchange import Exchange
from asiarch_hpc.agents.llm import LanguageModels, Spending
from asiarch_hpc.agents.prompt import Prompt
from asiarch_hpc.agents.reply import Reply
from asiarch_hpc.agents.speakers import Endpoint, Servers
from asiarch_hpc.config import from_dict
from asiarch_hpc.records import Json, Service
from asiarch_hpc.store.files import read_json, write_json
from asiarch_hpc.store.layout import RunLayout
from jobs.serve import requests_under_way
from tests.conftest import wait_for
from tests.vllm.test_vllm_serve import Verdict
from tests.vllm.vllm_jobs import KEY, ServeProcess, make_model, make_run, overrides, request, services

COMMAND = shlex.split(os.environ.get("VLLM_COMMAND", ""))
START_SECONDS = 600.0  # the large model is compiled first
REQUESTS = 32
REPLY = 256  # tokens
# Qwen3-8B's.
LARGE = {
    "vocab_size": 151936, "hidden_size": 4096, "intermediate_size": 12288, "num_hidden_layers": 36, "head_dim": 128,
    "num_attention_heads": 32, "num_key_value_heads": 8, "torch_dtype": "bfloat16",
}  # fmt: skip
FLAGS = {"tiny": ["--enforce-eager", "--kv-cache-memory-bytes", "1G"], "large": []}

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.sandboxed,
    pytest.mark.slow,
    pytest.mark.timeout(1200),
    pytest.mark.skipif(not COMMAND, reason="no command of a vLLM for GPUs in $VLLM_COMMAND"),
]


@dataclass
class Table:
    """What was measured, by model."""

    head: str = ""
    rows: dict[str, dict[str, str]] = field(default_factory=dict)

    def text(self) -> str:
        keys = list(dict.fromkeys(key for row in self.rows.values() for key in row))
        lines = [["", *self.rows], *([key, *(row.get(key, "") for row in self.rows.values())] for key in keys)]
        widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
        return "\n".join([self.head, *("  ".join(map(str.ljust, line, widths)).rstrip() for line in lines)])


@pytest.fixture(scope="module")
def table(request: pytest.FixtureRequest) -> Iterator[Table]:
    """Shown when all tests of this module are over."""
    found = Table()
    yield found
    if found.rows:
        with request.config.pluginmanager.getplugin("capturemanager").global_and_fixture_disabled():
            print(f"\n\n{found.text()}")


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("models")
    return {"tiny": make_model(folder / "tiny"), "large": make_large(folder / "large")}


@pytest.fixture(scope="module")
def layout(models: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> RunLayout:
    """A run with the servers `tiny`, `large` and `embed`."""
    servers = [gpu_server(name, folder) for name, folder in models.items()]
    servers.append(gpu_server("embed", models["tiny"], embeddings=True))
    short = "agents.roles.summarizer.max_tokens=200"
    return make_run(tmp_path_factory.mktemp("results") / "served", *overrides(*servers), short)


@pytest.fixture
def start(
    layout: RunLayout, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[[str], tuple[ServeProcess, Service, float]]]:
    """Starts a serve job and waits for its server; also returns the seconds that this took."""
    monkeypatch.delenv("VLLM_COMMAND")  # vLLM warns of variables with its prefix that it does not know
    jobs: list[ServeProcess] = []

    def started(name: str) -> tuple[ServeProcess, Service, float]:
        began = time.monotonic()
        job = ServeProcess.start(layout, f"{name}-0-001", server=name)
        jobs.append(job)

        def ready() -> Service | None:
            assert job.process.poll() is None, job.log.read_text()[-6000:]
            service = job.service()
            return service if service and service.state == "ready" else None

        return job, wait_for(ready, START_SECONDS), time.monotonic() - began

    yield started
    for job in jobs:
        job.end()


def make_large(folder: Path) -> Path:
    """The tiny model at a realistic size, its vocabulary filled up with tokens that no text has."""
    make_model(folder)
    write_json(folder / "config.json", {**read_json(folder / "config.json"), **LARGE})
    tokenizer = read_json(folder / "tokenizer.json")
    vocabulary = tokenizer["model"]["vocab"]
    vocabulary.update({f"t{number}": number for number in range(len(vocabulary), int(LARGE["vocab_size"]))})
    write_json(folder / "tokenizer.json", tokenizer)
    return folder


def gpu_server(name: str, model: Path, **changes: Any) -> Json:
    """An entry of agents.servers."""
    flags = ["--load-format", "dummy", "--dtype", "bfloat16", *FLAGS.get(name, FLAGS["tiny"])]
    if not changes.get("embeddings"):
        # Random weights would answer with white space without an end.
        flags += ["--structured-outputs-config", '{"backend":"xgrammar","disable_any_whitespace":true}']
    return {
        "name": name,
        "model": str(model),
        "gpus": 1,
        "context": 8192,
        "flags": flags,
        "command": COMMAND,
        "start_s": START_SECONDS,
        "drain_s": 60.0,
        **changes,
    }


def ask(service: Service, rng: random.Random, tokens: int, characters: int = 2000) -> Json:
    """A reply of exactly so many tokens to a text that no other question begins with."""
    words = "".join(rng.choices("abcdefghijklmnopqrstuvwxyz ", k=characters))
    body = {"model": service.model, "messages": [{"role": "user", "content": words}]}
    fixed = {"max_tokens": tokens, "min_tokens": tokens, "ignore_eos": True}
    answer: Json = request(f"{service.url}/chat/completions", {**body, **fixed}, seconds=300.0)
    assert answer["usage"]["completion_tokens"] == tokens
    return answer


def speed(service: Service, requests: int, seed: str) -> tuple[float, float]:
    """Tokens of replies per second over so many requests at once, their prompts included, and tokens of a prompt."""
    sources = [random.Random(f"{seed} {number}") for number in range(requests)]
    began = time.monotonic()
    with ThreadPoolExecutor(requests) as pool:
        answers = list(pool.map(lambda rng: ask(service, rng, REPLY), sources))
    seconds = time.monotonic() - began
    return requests * REPLY / seconds, sum(answer["usage"]["prompt_tokens"] for answer in answers) / requests


def grade(layout: RunLayout, stream: bool) -> Exchange:
    """Asks as the agents do for a reply within a schema."""
    config = from_dict(read_json(layout.record)["config"], source="run.json").agents
    config.stream = stream
    exchanges: list[Exchange] = []

    def directory() -> list[Endpoint]:
        found = [service for service in services(layout) if service.state == "ready" and not service.embeddings]
        return [Endpoint(service.url, (service.model,)) for service in found]

    speaker = Servers(config, directory, exchanges.append, KEY, random.Random(0), time.monotonic)
    models = LanguageModels(config, speaker, random.Random(0), Spending(10_000))
    prompt = Prompt("You grade designs.", "Is a decaying gated memory new?")
    found = models.ask("summarizer", prompt, Reply("verdict", Verdict))
    models.close()
    assert isinstance(found, Verdict)
    assert [json.loads(exchange.reply) for exchange in exchanges] == [found.model_dump()]
    assert exchanges[0].tokens_out > 0
    return exchanges[0]


def running(service: Service) -> int:
    """Requests, by the server's own count."""
    with urllib.request.urlopen(service.url.removesuffix("/v1") + "/metrics", timeout=10) as answer:
        return requests_under_way(answer.read().decode()) or 0


def device() -> str:
    words = ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"]
    return subprocess.run(words, capture_output=True, text=True, check=True).stdout.splitlines()[0]


@pytest.mark.parametrize("name", ["tiny", "large"])
def test_a_chat_server_from_its_start_to_its_last_reply(
    name: str, layout: RunLayout, start: Callable[[str], tuple[ServeProcess, Service, float]], table: Table
) -> None:
    job, service, seconds = start(name)
    version = request(service.url.removesuffix("/v1") + "/version")["version"]
    table.head = f"{device()}, vLLM {version}"
    row = table.rows.setdefault(name, {})
    row["ready after"] = f"{seconds:.0f} s"

    for stream in (True, False):
        grade(layout, stream)
    exchange = grade(layout, stream=True)
    row["reply within a schema"] = f"{exchange.seconds:.2f} s, {exchange.tokens_out} tokens"

    speed(service, REQUESTS, "warm")  # the first time kernels are still made
    for count in (1, REQUESTS):
        rate, prompt = speed(service, count, f"{count}")
        row[f"tokens/s, {count} at once" if count > 1 else "tokens/s, one request"] = f"{rate:,.0f}"
    row["tokens of a prompt and a reply"] = f"{prompt:,.0f} and {REPLY}"

    with ThreadPoolExecutor(1) as pool:
        reply = pool.submit(ask, service, random.Random("drain"), 2000)
        wait_for(lambda: running(service), 30)
        job.layout.drain(job.name).touch()
        wait_for(lambda: (now := job.service()) and now.state == "draining", 10)
        assert not reply.done()
        message = job.message()
        reply.result(10)
    assert (message["status"], message["payload"]["reason"]) == ("ok", "drained")
    assert not job.layout.service(job.name).exists()
    row["reply under way when it drains"] = "whole"


def test_an_embedding_server(start: Callable[[str], tuple[ServeProcess, Service, float]], table: Table) -> None:
    job, service, seconds = start("embed")
    assert service.embeddings
    texts = ["a gate that forgets", "a gate that forgets", "softmax attention over all tokens"]
    rows = request(f"{service.url}/embeddings", {"model": service.model, "input": texts})["data"]
    vectors = [row["embedding"] for row in rows]
    assert {len(vector) for vector in vectors} == {64}
    likeness = [sum(a * b for a, b in zip(vectors[0], vector, strict=True)) for vector in vectors]
    assert likeness[:2] == pytest.approx([1, 1], abs=1e-2)
    assert likeness[2] < 0.999
    table.rows["embeddings"] = {"ready after": f"{seconds:.0f} s"}
    job.layout.drain(job.name).touch()
    assert job.message()["payload"]["reason"] == "drained"
