"""A server started by hand: slurm/vllm.sh, with a command in vLLM's place that shows what it was given.

This file is quick, and by its name the first of the quick ones: of parallel processes, the one with the long test
through Slurm takes a further file with it.
"""

from __future__ import annotations

import os
import re
import socket
import subprocess
from pathlib import Path

from tests.vllm.vllm_jobs import KEY, ROOT


def start(folder: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    command = folder / "vllm"
    command.write_text('#!/bin/bash\necho "$$ $@"\necho "key=${VLLM_API_KEY:-}"\n')
    command.chmod(0o755)
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("SLURM", "VLLM"))}
    environment = {**kept, "SLURM_JOB_ID": "4711", "VLLM": str(command), **variables}
    script = str(ROOT / "slurm/vllm.sh")
    return subprocess.run(["bash", script], env=environment, capture_output=True, text=True, check=False, timeout=60)


def test_it_prints_the_settings_and_becomes_vllm(tmp_path: Path) -> None:
    file = tmp_path / "key"
    file.write_text(KEY)
    file.chmod(0o600)
    done = start(
        tmp_path, MODEL="/models/Qwen3", KEY_FILE=str(file), SLURM_GPUS_ON_NODE="2", ARGS="--seed 1", DRAIN="60"
    )
    assert (done.returncode, done.stderr) == (0, "")
    settings, _, words, key = done.stdout.splitlines()
    found = re.fullmatch(
        r"agents\.endpoints=\[http://([\d.]+):(\d+)/v1\] agents\.model=Qwen3 agents\.api_key_file=(.*)", settings
    )
    assert found, settings
    host, port, path = found.groups()
    assert Path(path) == file.resolve()
    assert words.split()[1:] == [
        *("serve", "/models/Qwen3", "--served-model-name", "Qwen3", "--host", host, "--port", port),
        *("--max-model-len", "32768", "--tensor-parallel-size", "2", "--shutdown-timeout", "60", "--seed", "1"),
    ]
    assert key == f"key={KEY}"


def test_a_port_in_use_is_passed_over(tmp_path: Path) -> None:
    first = start(tmp_path, MODEL="m", DRAIN="0").stdout
    host, port = re.search(r"http://([\d.]+):(\d+)/", first).groups()  # type: ignore[union-attr]
    assert "--shutdown-timeout" not in first
    with socket.create_server((host, int(port))):
        assert f"http://{host}:{int(port) + 1}/v1" in start(tmp_path, MODEL="m").stdout


def test_what_is_missing_is_said(tmp_path: Path) -> None:
    assert "give the weights: MODEL=/path" in start(tmp_path).stderr
    file = tmp_path / "key"
    file.write_text(KEY)
    file.chmod(0o644)
    done = start(tmp_path, MODEL="m", KEY_FILE=str(file))
    assert done.returncode == 1
    assert "its mode is 644" in done.stderr
    assert KEY not in done.stdout + done.stderr
