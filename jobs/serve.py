"""Job `serve`: one vLLM server for the run's agents, from its start to the last reply.

The server's process belongs to this one: it is watched, its address stands in `services/<name>.json` while it answers,
and it ends with the job. A server that is to end is announced as draining first, so that agents choose another one,
and goes when the replies under way are whole.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import re
import signal
import socket
import subprocess
import threading
import time
import urllib.request
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NoReturn

from asiarch_hpc.agents.key import read_key
from asiarch_hpc.config import ServerConfig, from_dict
from asiarch_hpc.errors import ConfigError, RecordError, ServiceError, StoreError
from asiarch_hpc.processes import signal_name
from asiarch_hpc.records import Json, Service, from_json, to_json
from asiarch_hpc.store.files import read_json, write_json
from asiarch_hpc.store.layout import RunLayout
from jobs.entry import Attempt

LOOK_SECONDS = 0.5  # between two looks at the process, the drain file and the clock
SEEN_SECONDS = 5.0  # between two times that a healthy server is noted as seen
ANSWER_SECONDS = 10.0  # longest wait for an answer to one look
LULL_SECONDS = 3.0  # without a request before a draining server goes: an agent may have chosen it just before
STOP_SECONDS = 15.0  # from SIGTERM to SIGKILL
SWEEP_SECONDS = 2.0  # likewise, for what outlives the main process
LAST_SECONDS = 10.0  # before the time limit in which nothing of the server's may be left
STARTS = 3  # when another process took the port in between

_LIBC = ctypes.CDLL(None)
_PR_SET_PDEATHSIG = 1
_BUSY = re.compile(r"^vllm:num_requests_(?:running|waiting)(?:\{.*\})? +([0-9.eE+]+)\s*$", re.MULTILINE)
_LOOKS = re.compile(rb'"GET /(health|metrics|v1/models) HTTP')  # this job's own, many in a day
_PORT_TAKEN = re.compile(r"address already in use", re.IGNORECASE)
_PREFIX = re.compile(r"^(\([^)]*\) )?[A-Z]+ \d\d-\d\d [\d:]+ \[[^]]*\] ?")  # of vLLM's log


def run(attempt: Attempt, arguments: Json) -> Json:
    """Serves until it is told to end; returns the payload of the job's message.

    `arguments`: `server`, index or name in agents.servers; `name` of the service; `minutes` of the time limit, 0 for
    none.

    Raises:
        ConfigError: no such server, no such command, or an unusable key.
        ServiceError: the server did not start, died, or answers no more; the message has its last words.
    """
    return ServeJob(attempt, arguments).run()


def choose_server(servers: Sequence[ServerConfig], which: int | str) -> ServerConfig:
    """The server with this name or index.

    Raises:
        ConfigError: there is none.
    """
    for index, server in enumerate(servers):
        if which in (index, server.name):
            return server
    raise ConfigError(f"agents.servers: {which!r} was asked for, found {[server.name for server in servers]}")


def command_line(server: ServerConfig, host: str, port: int) -> list[str]:
    """vLLM's command line; the configured flags come last, so that they win."""
    words = [*server.command, server.model, "--served-model-name", server.served_name or server.name]
    words += ["--host", host, "--port", str(port), "--max-model-len", str(server.context)]
    parallel = server.tensor_parallel or server.gpus
    if parallel > 1:
        words += ["--tensor-parallel-size", str(parallel)]
    if server.quantization:
        words += ["--quantization", server.quantization]
    if server.embeddings:
        words += ["--runner", "pooling"]
    return [*words, *server.flags]


def environment(server: ServerConfig, key: str, inherited: Mapping[str, str]) -> dict[str, str]:
    """vLLM's environment. The key goes here: a command line can be read by everybody on the node."""
    quiet = {"VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1"}
    if Path(server.model).exists():
        quiet["HF_HUB_OFFLINE"] = "1"
    found = {**quiet, **inherited, **server.environment}
    found.pop("VLLM_API_KEY", None)  # the agents would not know it
    return {**found, "VLLM_API_KEY": key} if key else found


def requests_under_way(metrics: str) -> int | None:
    """Requests that run or wait, by the text of /metrics; None where it does not say."""
    counts = [float(count) for count in _BUSY.findall(metrics)]
    return round(sum(counts)) if counts else None


def last_words(lines: Iterable[str]) -> str:
    """Of a log: the errors that it names, whose cause vLLM prints long before its end, and its last lines."""
    bare = [text for line in lines if (text := _PREFIX.sub("", line).rstrip())]
    named = [text for text in bare[:-12] if re.match(r"[\w.]*(Error|Exception)\b", text.strip())]
    return "\n".join(text[:300] for text in [*dict.fromkeys(named[-6:]), *bare[-12:]])


def addresses() -> Iterator[str]:
    """What other nodes may reach this one by, best first."""
    with contextlib.suppress(OSError):
        for *_, address in socket.getaddrinfo(socket.gethostname(), None, socket.AF_INET, socket.SOCK_STREAM):
            if not str(address[0]).startswith("127."):
                yield str(address[0])
    with contextlib.suppress(OSError), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect(("192.0.2.1", 9))  # sends nothing; the system chooses the address of the default route
        yield str(probe.getsockname()[0])
    yield "127.0.0.1"


def free_port() -> tuple[str, int]:
    """An address of this node, and a port that is free there."""
    for address in addresses():
        with contextlib.suppress(OSError), socket.socket() as probe:
            probe.bind((address, 0))
            return address, int(probe.getsockname()[1])
    raise ServiceError(f"{socket.gethostname()}: no address of this node takes a listening socket")


def _become_server() -> None:
    """In the child. Slurm sends its warning to every process of a job, but it is for the job to act on it; and a job
    that is killed must not leave its server on the GPUs."""
    signal.signal(signal.SIGUSR2, signal.SIG_IGN)
    _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


class ServerProcess:
    """vLLM in a process group of its own. Its log passes into the job's; the last of it is kept."""

    def __init__(self, words: Sequence[str], variables: Mapping[str, str]) -> None:
        try:
            self._process = subprocess.Popen(
                words,
                env=variables,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                preexec_fn=_become_server,
            )
        except OSError as error:
            raise ConfigError(
                f"agents.servers: {words[0]} does not start on {socket.gethostname()}: {error}; expected vLLM's "
                "command, as a path or on PATH, in `command`"
            ) from error
        self._swept = False
        self.lines: deque[str] = deque(maxlen=500)
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def ended(self) -> bool:
        return self._process.poll() is not None

    def obituary(self) -> str:
        """How it ended, or that it lives, and its last words."""
        self._reader.join(1.0 if self.ended() else 0.0)
        code = self._process.poll()
        how = "it lives"
        if code is not None:
            how = f"exit status {code}" if code >= 0 else f"killed by {signal_name(-code)}"
        return f"{how}; its last words:\n{last_words(self.lines)}"

    def stop(self) -> None:
        """Asks it to end, waits, and kills what is left of its group."""
        if self._swept:
            return
        self._swept = True
        if not self.ended():
            self._process.terminate()  # the main process alone: it ends the others in order
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(STOP_SECONDS)
        # Killed at once, Python's own helper could not remove the shared memory of the others.
        for number, seconds in ((signal.SIGTERM, SWEEP_SECONDS), (signal.SIGKILL, 0.0)):
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, number)
                deadline = time.monotonic() + seconds
                while time.monotonic() < deadline:
                    os.killpg(self._process.pid, 0)
                    time.sleep(0.05)
        self._process.wait()
        self._reader.join(5.0)

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if _LOOKS.search(line):
                continue
            self.lines.append(line.decode("utf-8", "replace").rstrip())
            with contextlib.suppress(OSError):  # a full disk must not block the server
                os.write(1, line)


class ServeJob:
    """One execution of the job."""

    def __init__(self, attempt: Attempt, arguments: Json) -> None:
        layout = attempt.layout
        config = from_dict(read_json(layout.record)["config"], source=str(layout.record)).agents
        self._attempt = attempt
        self._server = choose_server(config.servers, arguments["server"])
        self._key = read_key(config, os.environ)
        self._patience = 2 * config.health_s
        self._process: ServerProcess | None = None
        now, minutes = time.time(), float(arguments.get("minutes") or 0.0)
        self._service = Service(
            name=str(arguments["name"]),
            server=self._server.name,
            url="",
            model=self._server.served_name or self._server.name,
            job=attempt.job,
            host=socket.gethostname(),
            state="starting",
            started=now,
            seen=0.0,
            ends=now + 60 * minutes if minutes > 0 else 0.0,
            embeddings=self._server.embeddings,
            scheduler_id=_scheduler_id(os.environ),
        )

    def run(self) -> Json:
        served = 0.0
        try:
            reason = self._start()
            if not reason:
                ready = time.monotonic()
                reason = self._watch()
                served = time.monotonic() - ready
                self._drain(reason)
            assert self._process is not None
            self._process.stop()
        finally:
            if self._process is not None:
                self._process.stop()
            withdraw(self._attempt.layout, self._service)
        print(f"{self._service.name}: ended ({reason}) after {served:.0f} s of service", flush=True)
        return {"served_s": round(served, 3), "reason": reason}

    def _start(self) -> str:
        """Starts the server and waits until it is ready; a reason where it is to end before."""
        if not self._key:
            print("the server asks for no key: everybody who reaches its port may use it", flush=True)
        deadline = time.monotonic() + self._server.start_s
        for number in range(1, STARTS + 1):
            process = self._launch()
            while not process.ended():
                if reason := self._told():
                    return reason
                if self._ready():
                    now = time.time()
                    print(f"{self._service.name}: ready after {now - self._service.started:.0f} s", flush=True)
                    self._write(state="ready", seen=now)
                    return ""
                if time.monotonic() > deadline:
                    self._fail(f"was not ready within start_s={self._server.start_s:g} seconds")
                time.sleep(LOOK_SECONDS)
            if reason := self._told_after_all():
                return reason
            process.stop()
            if number == STARTS or not any(_PORT_TAKEN.search(line) for line in process.lines):
                break
        self._fail("ended before it was ready")

    def _launch(self) -> ServerProcess:
        host, port = free_port()
        words = command_line(self._server, host, port)
        self._write(url=f"http://{host}:{port}/v1")
        print(f"{self._service.name}: {json.dumps(words)}", flush=True)
        self._process = ServerProcess(words, environment(self._server, self._key, os.environ))
        return self._process

    def _watch(self) -> str:
        """Notes the server as seen while it answers, until it is to end; says why it is."""
        seen, problem = time.monotonic(), "no answer to /health"
        while not (reason := self._told()):
            try:
                if self._get("/health") is not None:
                    self._write(seen=time.time())
                    seen = time.monotonic()
            except StoreError as error:
                problem = str(error)
            if time.monotonic() - seen > self._patience:
                self._fail(f"was not seen for {self._patience:g} seconds ({problem})")
            pause = time.monotonic() + SEEN_SECONDS
            while time.monotonic() < pause and not self._told():
                if self._process is not None and self._process.ended():
                    if reason := self._told_after_all():
                        return reason
                    self._fail("died")
                time.sleep(LOOK_SECONDS)
        return reason

    def _told(self) -> str:
        """Why the server is to end; empty while it is not."""
        if self._attempt.layout.drain(self._service.name).exists():
            return "drained"
        if self._attempt.should_stop():
            return "told to stop"
        last = self._service.ends - LAST_SECONDS - STOP_SECONDS - self._server.drain_s
        return "time limit" if self._service.ends and time.time() >= last else ""

    def _told_after_all(self) -> str:
        """The same for a server that ended: Slurm's SIGTERM goes to all processes of a job, to it perhaps first."""
        time.sleep(LOOK_SECONDS)
        return self._told()

    def _drain(self, reason: str) -> None:
        """Waits for the replies under way."""
        assert self._process is not None
        with contextlib.suppress(StoreError):  # without the word agents notice by `seen`, or by the error
            self._write(state="draining")
        left = self._server.drain_s
        if self._service.ends:
            left = min(left, self._service.ends - LAST_SECONDS - STOP_SECONDS - time.time())
        print(f"{self._service.name}: {reason}; up to {max(left, 0):.0f} s for what is under way", flush=True)
        deadline, lull = time.monotonic() + left, time.monotonic() + LULL_SECONDS
        while (now := time.monotonic()) < deadline and not self._process.ended():
            if requests_under_way((self._get("/metrics") or b"").decode("utf-8", "replace")) != 0:
                lull = now + LULL_SECONDS
            elif now >= lull:
                return
            time.sleep(LOOK_SECONDS)

    def _ready(self) -> bool:
        if self._get("/health") is None:
            return False
        with contextlib.suppress(ValueError, KeyError, TypeError):
            rows = json.loads(self._get("/v1/models") or b"")["data"]
            return any(row["id"] == self._service.model for row in rows)
        return False

    def _get(self, path: str) -> bytes | None:
        """What the server answers; None for an error or nothing. Never by way of a proxy."""
        request = urllib.request.Request(self._service.url.removesuffix("/v1") + path)
        if self._key:
            request.add_header("Authorization", f"Bearer {self._key}")
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        try:
            with opener.open(request, timeout=ANSWER_SECONDS) as answer:
                return bytes(answer.read()) if answer.status == 200 else None
        except (OSError, ValueError):
            return None

    def _write(self, **changes: Any) -> None:
        self._attempt.check_current()
        self._service = replace(self._service, **changes)
        write_json(self._attempt.layout.service(self._service.name), to_json(self._service))

    def _fail(self, what: str) -> NoReturn:
        assert self._process is not None
        raise ServiceError(f"{self._service.name} on {self._service.host} {what}: {self._process.obituary()}")


def withdraw(layout: RunLayout, service: Service) -> None:
    """Removes a server's files, unless they are a later attempt's by now."""
    path = layout.service(service.name)
    with contextlib.suppress(OSError):
        try:
            found = from_json(Service, read_json(path), source=str(path)) if path.exists() else service
        except RecordError:
            found = service
        if (found.url, found.started) == (service.url, service.started):
            path.unlink(missing_ok=True)
            layout.drain(service.name).unlink(missing_ok=True)


def _scheduler_id(environ: Mapping[str, str]) -> str:
    array, task = environ.get("SLURM_ARRAY_JOB_ID"), environ.get("SLURM_ARRAY_TASK_ID")
    if array and task:
        return f"{array}_{task}"
    return environ.get("SLURM_JOB_ID") or environ.get("SUBMITIT_LOCAL_JOB_ID", "")
