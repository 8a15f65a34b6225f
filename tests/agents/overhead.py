"""What a call costs besides the model: `python -m tests.agents.overhead [CALLS]` prints median and maximum."""

from __future__ import annotations

import statistics
import sys
import time

from pydantic import BaseModel, Field

from asiarch_hpc.agents.prompt import Prompt
from asiarch_hpc.agents.reply import Reply
from tests.agents.behaviours import schemas
from tests.agents.conftest import talk_to
from tests.agents.scripted_server import ScriptedServer


class Answer(BaseModel):
    """About as large as a proposal."""

    name: str = Field(pattern=r"^[a-z][a-z0-9_]{2,47}$")
    motivation: str = Field(min_length=400)
    source: str = Field(min_length=4000)


def overhead(calls: int, stream: bool, reply: str = "schema") -> list[float]:
    """Seconds of each call that are not the server's, for prompts of 8 kB; the first has the connection's too."""
    prompt = Prompt("You design layers.\n" + "word " * 400, "Design one.\n" + "x = f(y)\n" * 660)
    assert 7_500 < len(prompt.system + prompt.user) < 8_500
    found: list[float] = []
    with ScriptedServer(schemas(), delay=0.02) as server:
        one = talk_to(server, stream=stream, reply=reply, tokens_per_job=10**9)
        for _ in range(calls):
            before = len(server.requests)
            began = time.perf_counter()
            one.models.ask("judge", prompt, Reply("Answer", Answer))
            wall = time.perf_counter() - began
            found.append(wall - sum(entry.seconds for entry in server.requests[before:]))
        one.models.close()
    return found


def main() -> None:
    calls = int(sys.argv[1]) if len(sys.argv) > 1 else 50
    for stream in (True, False):
        seconds = overhead(calls, stream)
        print(
            f"{'stream' if stream else 'whole'}: median {statistics.median(seconds) * 1e3:.1f} ms, "
            f"maximum {max(seconds[1:]) * 1e3:.1f} ms after the first of {seconds[0] * 1e3:.1f} ms; {calls} calls"
        )


if __name__ == "__main__":
    main()
