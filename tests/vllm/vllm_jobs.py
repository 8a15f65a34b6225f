"""A tiny model, a real vLLM on CPU that serves it, and serve jobs as processes of their own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
import urllib.request
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from asiarch_hpc.config import load_config, to_dict
from asiarch_hpc.records import Json, Service, from_json
from asiarch_hpc.store.files import read_json, write_json
from asiarch_hpc.store.layout import RunLayout
from tests.conftest import wait_for

ROOT = Path(__file__).resolve().parents[2]
ENVIRONMENT = ROOT / ".venv-vllm"
KEY = "sk-tests-only-0123456789"
READY_SECONDS = 240.0  # 20 alone on the machine
TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def vllm_command(core: int = -1) -> list[str]:
    """On one core, counted among ours: vLLM's threads otherwise spin on all, and starve what runs beside them."""
    return ["taskset", "-c", str(sorted(os.sched_getaffinity(0))[core]), str(ENVIRONMENT / "bin/vllm"), "serve"]


def make_model(folder: Path) -> Path:
    """A Qwen3 of 64 channels without weights (`--load-format dummy` draws them), and a tokenizer made here."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    trainer = trainers.BpeTrainer(
        vocab_size=512,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([(ROOT / "README.md").read_text()], trainer)
    folder.mkdir(parents=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    names = {"eos_token": special[2], "pad_token": special[0], "chat_template": TEMPLATE, "model_max_length": 8192}
    write_json(folder / "tokenizer_config.json", {"tokenizer_class": "PreTrainedTokenizerFast", **names})
    sizes = {
        "vocab_size": 512, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "head_dim": 32,
        "num_attention_heads": 2, "num_key_value_heads": 1, "max_position_embeddings": 8192,
    }  # fmt: skip
    kind = {"architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3", "torch_dtype": "float32"}
    ends = {"bos_token_id": 0, "eos_token_id": 2, "pad_token_id": 0, "tie_word_embeddings": False}
    write_json(folder / "config.json", {**kind, **sizes, **ends, "rms_norm_eps": 1e-6, "rope_theta": 10000.0})
    return folder


def cpu_server(model: Path, **changes: Any) -> Json:
    """An entry of agents.servers for the tiny model on CPU; changes go over it."""
    flags = ["--load-format", "dummy", "--dtype", "float32", "--enforce-eager", "--max-num-seqs", "16"]
    flags += ["--kv-cache-memory-bytes", "64M"]
    if not changes.get("embeddings"):
        # Random weights would answer with white space without an end.
        flags += ["--structured-outputs-config", '{"backend":"xgrammar","disable_any_whitespace":true}']
    variables = {"OMP_NUM_THREADS": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind", "VLLM_CPU_CI_ENV": "1"}
    return {
        "name": "main",
        "model": str(model),
        "served_name": "tiny",
        "gpus": 0,
        "context": 2048,
        "flags": flags,
        "command": vllm_command(),
        "environment": {**variables, "TORCHDYNAMO_DISABLE": "1"},
        "start_s": READY_SECONDS,
        **changes,
    }


def overrides(*servers: Json) -> list[str]:
    """Of a configuration whose agents use these servers; for `load_config` and for the command line."""
    return [f"agents.servers={json.dumps(servers)}", "agents.context=2048", "agents.backoff_s=0.1"]


def make_run(root: Path, *changes: str) -> RunLayout:
    """A run that has nothing but its configuration."""
    layout = RunLayout(root)
    write_json(layout.record, {"config": to_dict(load_config("smoke", changes))})
    return layout


def services(layout: RunLayout) -> list[Service]:
    paths = sorted(layout.services.glob("*.json")) if layout.services.is_dir() else []
    return [from_json(Service, read_json(path), source=str(path)) for path in paths]


def request(url: str, body: Json | None = None, key: str = KEY, seconds: float = 60.0) -> Any:
    """JSON for JSON; errors of HTTP raise."""
    data = None if body is None else json.dumps(body).encode()
    headers = {"Content-Type": "application/json", "Authorization": f"Bearer {key}"}
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(urllib.request.Request(url, data, headers), timeout=seconds) as answer:
        return json.loads(answer.read())


@dataclass
class ServeProcess:
    """A serve job that runs through jobs.entry.Entry, as a scheduler would run it."""

    layout: RunLayout
    name: str
    process: subprocess.Popen[bytes]
    log: Path

    @classmethod
    def start(
        cls, layout: RunLayout, name: str, *, server: int | str = 0, minutes: float = 0, **variables: str
    ) -> ServeProcess:
        entry = {
            "root": str(layout.root), "job": f"serve_{name}", "work": f"serve-{name}", "submission": 1,
            "function": "jobs.serve:run", "arguments": {"server": server, "name": name, "minutes": minutes},
        }  # fmt: skip
        code = "import json, sys; from jobs.entry import Entry; Entry(**json.loads(sys.argv[1]))()"
        log = layout.root / f"{name}.log"
        with log.open("wb") as output:
            process = subprocess.Popen(
                [sys.executable, "-c", code, json.dumps(entry)],
                cwd=ROOT,
                env={**os.environ, "ASIARCH_API_KEY": KEY, **variables},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
            )
        return cls(layout, name, process, log)

    def service(self) -> Service | None:
        path = self.layout.service(self.name)
        return from_json(Service, read_json(path), source=str(path)) if path.exists() else None

    def ready(self) -> Service:
        """Waits for the server."""

        def found() -> Service | None:
            assert self.process.poll() is None, self.log.read_text()[-6000:]
            service = self.service()
            return service if service and service.state == "ready" else None

        service: Service = wait_for(found, READY_SECONDS)
        return service

    def message(self, seconds: float = 90.0) -> Json:
        """What the job left in the inbox; waits for its end."""
        self.process.wait(seconds)
        found: Json = read_json(self.layout.message(f"serve_{self.name}", 0))
        return found

    def server_processes(self) -> list[int]:
        """vLLM's main process first, then the rest of its group."""
        return group_of(next(iter(children(self.process.pid))))

    def end(self) -> None:
        """At once, with all that belongs to it; the server notices the job's death and clears up, if it can."""
        groups = [pid for pid in children(self.process.pid) if _group(pid) == pid]
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        deadline = time.monotonic() + 10
        for group in groups:
            while any(alive(pid) for pid in group_of(group)) and time.monotonic() < deadline:
                time.sleep(0.1)
            _kill_group(group)


def children(pid: int) -> list[int]:
    try:
        return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except OSError:
        return []


def group_of(leader: int) -> list[int]:
    pids = (int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit())
    return sorted((pid for pid in pids if _group(pid) == leader), key=lambda pid: (pid != leader, pid))


def _group(pid: int) -> int:
    try:
        return os.getpgid(pid)
    except OSError:
        return 0


def _kill_group(leader: int) -> None:
    try:
        os.killpg(leader, 9)
    except OSError:
        return


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def command_lines(pids: Sequence[int]) -> Mapping[int, bytes]:
    return {pid: Path(f"/proc/{pid}/cmdline").read_bytes() for pid in pids}
