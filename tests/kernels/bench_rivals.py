"""Rivals are timed in a process of their own, which can be ended: some tune or compile for minutes, some crash.

The process reads one question a line and answers on a pipe of its own, so that nothing that is printed gets between.
"""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import IO, Any

from tests.kernels.bench_case import Case, Draw, Times, disagreement, first_line, free, measure
from tests.kernels.side_by_side import compiled_side_by_side

END_SECONDS = 30.0
# How much further from our results than ours may be from float64's: rivals round in places of their own.
AGREEMENT = 3.0
ROOT = Path(__file__).resolve().parent.parent.parent


class Rivals:
    """The process, started when it is first asked and again after it has been ended."""

    def __init__(self, command: Sequence[str] = (sys.executable, "-m", "tests.kernels.bench_rivals")) -> None:
        self.command = command
        self.process: subprocess.Popen[str] | None = None
        self.answers = -1
        self.log: IO[str] | None = None

    def ask(self, case: str, rival: str, *, seed: int, seconds: float) -> Times | str:
        """Times of a rival, or why there are none; a start of the process is within its seconds."""
        end = time.monotonic() + seconds
        try:
            if self.process is None:
                self._start()
                self._answer(end)
            assert self.process is not None
            assert self.process.stdin is not None
            print(json.dumps([case, rival, seed]), file=self.process.stdin, flush=True)
            answer = self._answer(end)
        except TimeoutError:
            self.stop()
            return f"no result within {seconds:.3g} s"
        except (BrokenPipeError, EOFError):
            return self._end()
        return answer["refusal"] if "refusal" in answer else Times(**answer)

    def stop(self) -> None:
        """Ends the process and what it started, by the id of its group."""
        if self.process is None:
            return
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        assert self.process.stdin is not None
        with suppress(BrokenPipeError):
            self.process.stdin.close()
        os.close(self.answers)
        assert self.log is not None
        self.log.close()
        self.process = None

    def _start(self) -> None:
        self.answers, theirs = os.pipe()
        self.log = tempfile.TemporaryFile("w+", errors="replace")  # noqa: SIM115
        self.process = subprocess.Popen(
            [*self.command, str(theirs)], cwd=ROOT, stdin=subprocess.PIPE, stdout=self.log, stderr=self.log, text=True,
            pass_fds=(theirs,), start_new_session=True,
        )  # fmt: skip
        os.close(theirs)

    def _answer(self, end: float) -> dict[str, Any]:
        """Raises TimeoutError, and EOFError where the process has ended."""
        text = b""
        while not text.endswith(b"\n"):
            ready, _, _ = select.select([self.answers], [], [], max(0.0, end - time.monotonic()))
            if not ready:
                raise TimeoutError
            more = os.read(self.answers, 65536)
            if not more:
                raise EOFError
            text += more
        answer: dict[str, Any] = json.loads(text)
        return answer

    def _end(self) -> str:
        """Of a process that is ending by itself."""
        assert self.process is not None
        assert self.log is not None
        with suppress(subprocess.TimeoutExpired):
            self.process.wait(END_SECONDS)
        status = self.process.returncode
        self.log.seek(0)
        lines = self.log.read().strip().splitlines() or [""]
        self.stop()
        return f"its process ended with status {status}: {lines[-1][:80]}".replace("|", "/")


def answer(case: Case, rival: str, seed: int) -> dict[str, Any]:
    import torch

    try:
        way = {**case.own, **case.rivals}[rival]()
        draw = Draw.from_seed(seed, "cuda")
        apart = disagreement(case, way, case.operands(draw, case.batch))
        if not apart < AGREEMENT:
            return {"refusal": f"differs from ours by {apart * max(case.tolerances):.1e}"}
        free()
        return asdict(measure(case, way, draw))
    except Exception as failure:
        return {"refusal": first_line(failure)}
    finally:
        torch._dynamo.reset()
        free()


def main() -> None:
    from tests.kernels.bench import all_cases

    cases = {case.name: case for case in all_cases()}
    with os.fdopen(int(sys.argv[1]), "w") as answers, compiled_side_by_side():
        print(json.dumps({}), file=answers, flush=True)
        for line in sys.stdin:
            name, rival, seed = json.loads(line)
            print(json.dumps(answer(cases[name], rival, seed)), file=answers, flush=True)


if __name__ == "__main__":
    main()
