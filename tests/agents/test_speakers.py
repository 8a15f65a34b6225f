"""Who answers: which server and model, what while there is none, replays, and how much a prompt may hold."""

from __future__ import annotations

import json
import random
import socket
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import pytest

from asiarch_hpc.agents import speakers
from asiarch_hpc.agents.exchange import Exchange
from asiarch_hpc.agents.llm import LanguageModels, Spending
from asiarch_hpc.agents.prompt import Prompt
from asiarch_hpc.agents.speakers import Endpoint, Transcript, estimate_tokens
from asiarch_hpc.config import AgentsConfig
from asiarch_hpc.errors import AgentError, ServiceError, StoppedError
from tests.agents.behaviours import (
    Hang,
    Reset,
    Status,
    Text,
    sequence,
)
from tests.agents.conftest import ANSWER, FAILURES, GOOD, OPINION, PROMPT, Connect, failure
from tests.agents.scripted_server import ScriptedServer


def test_each_call_draws_its_model_with_the_probabilities_of_its_role() -> None:
    class Quiet:
        def __init__(self) -> None:
            self.models: list[str] = []

        async def answer(self, question: Any, used: Callable[[Exchange], None]) -> Exchange:
            self.models.append(question.model)
            return Exchange(role="judge", model=question.model, endpoint="", messages=[], reply=GOOD.content)

        def fits(self, prompt: Prompt, model: str, room: int) -> bool:
            return True

        async def close(self) -> None:
            pass

    def draws(seed: int) -> list[str]:
        config = AgentsConfig(model="other")
        config.roles.judge.models = {"small": 0.75, "large": 0.25}
        quiet = Quiet()
        models = LanguageModels(config, quiet, random.Random(seed), Spending(10**9))
        for _ in range(60):
            models.ask("judge", PROMPT, OPINION)
        models.ask("analyst", PROMPT, OPINION)
        models.close()
        assert quiet.models.pop() == "other"
        return quiet.models

    first = draws(1)
    assert first == draws(1)
    assert len(set(first[:20])) == 2
    assert 35 <= Counter(first)["small"] <= 55


def test_the_model_decides_the_server(talk: Connect) -> None:
    with ScriptedServer(GOOD, models=["small"]) as small, ScriptedServer(GOOD, models=["large", "more"]) as large:
        one = talk(small, large, model="more")
        for _ in range(3):
            one.models.ask("judge", PROMPT, OPINION)
        assert (len(small.chats), len(large.chats)) == (0, 3)
        assert {entry.body["model"] for entry in large.chats} == {"more"}


def test_without_a_server_a_job_waits_and_then_gives_up(talk: Connect) -> None:
    with ScriptedServer(GOOD) as server:
        server.healthy = False
        one = talk(server, wait_s=100.0)
        with pytest.raises(ServiceError, match=r"agents.wait_s=100"):
            one.models.ask("judge", PROMPT, OPINION)
        assert one.clock.now == 1100.0
        other = talk(server, wait_s=100.0, model="unknown")
        server.healthy = True
        with pytest.raises(ServiceError, match="unknown"):
            other.models.ask("judge", PROMPT, OPINION)
        assert one.models.ask("judge", PROMPT, OPINION) == ANSWER
    assert one.exchanges[-1].waited == 0.0


def test_a_server_that_comes_back_is_found(talk: Connect) -> None:
    with ScriptedServer(GOOD) as server:
        server.healthy = False
        one = talk(server, wait_s=100.0)

        async def sleep(seconds: float) -> None:
            await one.clock.sleep(seconds)
            server.healthy = one.clock.now >= 1030

        one.speaker.sleep = sleep
        assert one.models.ask("judge", PROMPT, OPINION) == ANSWER
    assert one.exchanges[0].waited == 30.0


def test_a_server_that_cannot_be_connected_to_does_not_cost_the_whole_time_out(
    talk: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(speakers, "CONNECT_SECONDS", 0.3)
    with socket.socket() as full, ScriptedServer(GOOD) as server:
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        address = full.getsockname()
        waiting = [socket.socket() for _ in range(4)]
        for each in waiting:
            each.setblocking(False)
            each.connect_ex(address)
        lost = Endpoint(f"http://127.0.0.1:{address[1]}/v1", ("scripted",))
        one = talk(server, model="scripted", timeout_s=60.0)
        one.speaker.directory = lambda: [lost] if not one.exchanges else [Endpoint(server.url)]
        began = time.monotonic()
        assert one.models.ask("judge", PROMPT, OPINION) == ANSWER
        assert time.monotonic() - began < 5
        for each in waiting:
            each.close()
    assert one.causes == ["model.dropped", ""]


def test_a_recorded_conversation_is_replayed_to_the_same_answers(talk: Connect) -> None:
    script = sequence(Status(500), Text("prose"), Reset("cut"), GOOD, Text("more", finish="length"), GOOD, Status(404))
    with ScriptedServer(script) as server:
        one = talk(server)
        fits = one.models.fitted("judge", lambda n: PROMPT, [])
        assert fits is PROMPT
        answers = [one.models.ask("judge", PROMPT, OPINION) for _ in range(2)]
        error = failure(one)
    stored = [Exchange(**json.loads(json.dumps(asdict(exchange)))) for exchange in one.exchanges]
    again: list[Exchange] = []
    replay = LanguageModels(one.models.config, Transcript(stored, again.append), random.Random(9), Spending(400_000))
    assert replay.fitted("judge", lambda n: PROMPT, []) is PROMPT
    assert [replay.ask("judge", PROMPT, OPINION) for _ in range(2)] == answers
    with pytest.raises(FAILURES) as found:
        replay.ask("judge", PROMPT, OPINION)
    assert (found.value.cause, str(found.value)) == (error.cause, str(error))
    assert again == stored
    assert (replay.spending.tokens, replay.spending.calls) == (one.models.spending.tokens, one.models.spending.calls)
    with pytest.raises(AgentError, match="no further reply") as found:
        replay.ask("judge", PROMPT, OPINION)
    assert found.value.cause == "replay"
    replay.close()


@pytest.mark.parametrize(
    ("role", "prompt"), [("judge", Prompt(PROMPT.system, "Another.\n")), ("analyst", PROMPT)], ids=["prompt", "role"]
)
def test_a_replay_notices_another_question(talk: Connect, role: str, prompt: Prompt) -> None:
    with ScriptedServer(GOOD) as server:
        one = talk(server)
        one.models.ask("judge", PROMPT, OPINION)
    replay = LanguageModels(one.models.config, Transcript(one.exchanges, print), random.Random(0), Spending(400_000))
    with pytest.raises(AgentError) as found:
        replay.ask(role, prompt, OPINION)
    assert found.value.cause == "replay"
    replay.close()


def test_tokens_are_counted_by_the_server_or_estimated(talk: Connect) -> None:
    with ScriptedServer(GOOD) as server:
        one = talk(server)
        assert one.speaker.count("one two three", "") == 3
        assert one.speaker.fits(Prompt("one two", " three"), "", 3)
        assert not one.speaker.fits(Prompt("one two", " three"), "", 2)
        assert {entry.body["model"] for entry in server.requests if entry.path == "/tokenize"} == {"scripted"}
        server.healthy = False
        assert one.speaker.count("one two three", "") == estimate_tokens("one two three") == 5


def test_tokens_are_counted_by_a_tokenizer_file(talk: Connect, tmp_path: Any) -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers

    path = tmp_path / "tokenizer.json"
    tokenizer = Tokenizer(models.WordLevel({"one": 0, "two": 1, "?": 2}, unk_token="?"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.save(str(path))
    one = talk(tokenizer=str(path))
    assert one.speaker.count("one two three four", "") == 4


def test_what_does_not_fit_is_left_out_in_its_order(talk: Connect) -> None:
    with ScriptedServer(GOOD) as server:
        one = talk(server, context=2048 + 12)

        def render(number: int) -> Prompt:
            return Prompt("a task", " ".join(["a question"] + ["extra"] * (20 - 5 * number)))

        steps = ["siblings", "history", "papers", "advice"]
        assert one.models.fitted("judge", render, steps).user.count("extra") == 5
        with pytest.raises(AgentError, match="even without siblings") as found:
            one.models.fitted("judge", render, steps[:2])
    assert found.value.cause == "context"


def test_a_server_that_comes_back_with_another_model_is_asked_for_that(talk: Connect) -> None:
    with ScriptedServer(sequence(Status(503), GOOD), models=["before"]) as server:
        one = talk(server)

        async def sleep(seconds: float) -> None:
            server.models = ("after",)

        one.speaker.sleep = sleep
        assert one.models.ask("judge", PROMPT, OPINION) == ANSWER
    assert [exchange.model for exchange in one.exchanges] == ["before", "after"]


def test_a_job_that_is_told_to_end_does_not_wait_for_its_reply(talk: Connect) -> None:
    with ScriptedServer(Hang(60.0)) as server:
        one = talk(server, timeout_s=60.0)
        told = time.monotonic() + 0.3
        one.speaker.stopped = lambda: time.monotonic() > told
        began = time.monotonic()
        with pytest.raises(StoppedError):
            one.models.ask("judge", PROMPT, OPINION)
    assert time.monotonic() - began < 20
    assert one.exchanges == []


def test_a_job_asks_nothing_more_when_its_time_is_used_up(talk: Connect) -> None:
    with ScriptedServer(GOOD) as server:
        one = talk(server)
        one.models.spending.left_s = lambda: 0.0
        with pytest.raises(AgentError, match="time is used up") as found:
            one.models.ask("judge", PROMPT, OPINION)
        assert found.value.cause == "time"
        assert server.chats == []
        one.models.spending.left_s = lambda: 30.0
        assert one.models.ask("judge", PROMPT, OPINION) == ANSWER
