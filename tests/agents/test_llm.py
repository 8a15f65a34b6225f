"""Questions to a real HTTP server that misbehaves as it is told: what is repaired, tried again, given up, recorded."""

from __future__ import annotations

import json
import time
import traceback
from collections import Counter
from dataclasses import asdict
from typing import Any

import pytest

from asiarch_hpc.agents import speakers
from asiarch_hpc.agents.reply import Reply, ReplyError
from asiarch_hpc.agents.speakers import estimate_tokens
from tests.agents.behaviours import (
    Behaviour,
    Empty,
    Endless,
    Garbage,
    Hang,
    Refusal,
    Reset,
    Schema,
    Status,
    Text,
    ToolCall,
    Truncate,
    WrongSchema,
    hostile,
    schemas,
    sequence,
)
from tests.agents.conftest import ANSWER, BLOCKS, FAILURES, GOOD, KEY, OPINION, PROMPT, Connect, Opinion, failure
from tests.agents.scripted_server import ScriptedServer

stream_or_not = pytest.mark.parametrize("stream", [True, False], ids=["stream", "whole"])


def sent(server: ScriptedServer, number: int = -1) -> list[dict[str, str]]:
    messages: list[dict[str, str]] = server.chats[number].body["messages"]
    return messages


@stream_or_not
def test_a_reply_is_typed_and_the_server_is_held_to_its_schema(talk: Connect, stream: bool) -> None:
    with ScriptedServer(schemas(seed=3)) as server:
        one = talk(server, stream=stream)
        found = one.models.ask("judge", PROMPT, OPINION)
        assert isinstance(found, Opinion)
        body = server.chats[0].body
    assert body["response_format"]["json_schema"]["schema"]["properties"]["score"]["maximum"] == 10
    assert bool(body.get("stream")) == stream
    assert (body["temperature"], body["max_completion_tokens"]) == (0.7, 2048)
    assert [m["role"] for m in body["messages"]] == ["system", "user"]
    (exchange,) = one.exchanges
    assert Opinion.model_validate_json(exchange.reply) == found
    assert exchange.tokens_in > 5
    assert exchange.tokens_out > 5
    assert one.models.spending.tokens == exchange.tokens_in + exchange.tokens_out


def test_blocks_ask_for_no_schema_and_code_comes_in_a_block_of_its_own(talk: Connect) -> None:
    with ScriptedServer(Text(BLOCKS)) as server:
        assert talk(server, reply="blocks").models.ask("judge", PROMPT, OPINION) == ANSWER.model_copy(
            update={"source": "x = 1\n"}
        )
        assert "response_format" not in server.chats[0].body


def test_a_schema_of_its_own_gives_plain_objects_which_its_check_has_to_judge(talk: Connect) -> None:
    schema = {
        "type": "object",
        "properties": {"unit": {"enum": ["gau", "rms"]}},
        "required": ["unit"],
        "additionalProperties": False,
    }

    def check(found: dict[str, Any]) -> None:
        if "unit" not in found:
            raise ReplyError("`unit` is missing")

    with ScriptedServer(sequence(WrongSchema(), Schema(1))) as server:
        one = talk(server)
        found = one.models.ask("judge", PROMPT, Reply("Edit", dict, schema=schema, check=check))
        assert found["unit"] in ("gau", "rms")
        assert "`unit` is missing" in sent(server)[-1]["content"]


@pytest.mark.parametrize("reply", ["schema", "blocks"])
@pytest.mark.parametrize(
    ("bad", "complaint"),
    [
        (Text('{"score": 70, "name": "gated_mix"}'), "less than or equal to 10"),
        (Text('{"name": "gated_mix"}'), "score"),
        (Text("I would say seven."), "JSON"),
        (WrongSchema(), "score"),
        (Text('{"score": 7, "name": "delta_net"}'), "the name delta_net is taken"),
    ],
)
def test_a_wrong_reply_goes_back_with_what_is_wrong(talk: Connect, reply: str, bad: Text, complaint: str) -> None:
    with ScriptedServer(sequence(bad, GOOD)) as server:
        one = talk(server, reply=reply)
        assert one.models.ask("judge", PROMPT, OPINION) == ANSWER
        repair = sent(server)
    assert [m["role"] for m in repair] == ["system", "user", "assistant", "user"]
    assert repair[2]["content"] == one.exchanges[0].reply
    assert complaint in repair[3]["content"]
    assert [dict(m) for m in one.exchanges[1].messages] == repair
    assert one.causes == ["", ""]
    assert one.clock.sleeps == []


def test_repairs_are_bounded(talk: Connect) -> None:
    with ScriptedServer(Text('{"score": 7, "name": "delta_net"}')) as server:
        one = talk(server, repairs=2)
        error = failure(one)
        assert (error.cause, len(server.chats)) == ("reply.invalid", 3)
    assert "delta_net is taken" in str(error)


@stream_or_not
@pytest.mark.parametrize(
    ("bad", "cause"),
    [
        (Status(429, retry_after=7), "model.http_429"),
        (Status(500), "model.http_500"),
        (Status(503), "model.http_503"),
        (Status(502, body="<html>Bad gateway</html>"), "model.http_502"),
        (Hang(), "model.timeout"),
        (Hang(0.0), "model.dropped"),
        (Reset(), "model.dropped"),
        (Reset("in the middle"), "model.dropped"),
        (Truncate(), "model.dropped"),
        (Truncate(clean=True), "model.dropped"),
        (Garbage(), "model.dropped"),
        (Garbage("OK"), "model.dropped"),
        (Garbage("{}"), "model.dropped"),
        (Garbage('{"error": {"message": "CUDA out of memory", "code": 500}}'), "*"),
        (Empty(), "reply.empty"),
        (Text(" \n"), "reply.empty"),
        (ToolCall(), "reply.empty"),
        (Text('{"score": 7', finish="length"), "reply.truncated"),
    ],
    ids=repr,
)
def test_what_another_try_can_mend_is_tried_again(talk: Connect, stream: bool, bad: Behaviour, cause: str) -> None:
    with ScriptedServer(sequence(bad, GOOD)) as server:
        one = talk(server, stream=stream, timeout_s=0.3 if cause == "model.timeout" else 20.0)
        assert one.models.ask("judge", PROMPT, OPINION) == ANSWER
    first, second = one.exchanges
    assert second.cause == second.error == ""
    assert cause in (first.cause, "*")
    assert first.error
    assert not first.final
    assert (first.attempt, second.attempt) == (0, 1)
    assert one.clock.sleeps[0] >= (7.0 if cause == "model.http_429" else 0.5)
    assert second.waited == pytest.approx(sum(one.clock.sleeps), abs=1e-3)


@pytest.mark.parametrize(
    ("bad", "cause"),
    [
        (Status(503), "model.http_503"),
        (Status(429, retry_after=2), "model.http_429"),
        (Reset(), "model.dropped"),
        (Garbage(), "model.dropped"),
        (Empty(), "reply.empty"),
        (ToolCall(), "reply.empty"),
    ],
    ids=repr,
)
def test_the_last_try_gives_its_cause(talk: Connect, bad: Behaviour, cause: str) -> None:
    with ScriptedServer(bad) as server:
        one = talk(server, retries=3)
        error = failure(one)
        assert len(server.chats) == 4
    assert error.cause == cause
    assert str(error).startswith("judge: ")
    assert one.causes == [cause] * 4
    assert [e.final for e in one.exchanges] == [False, False, False, True]


def test_backoff_doubles_with_jitter_up_to_its_limit(talk: Connect) -> None:
    with ScriptedServer(Status(500)) as server:
        one = talk(server, retries=7, backoff_s=1.0, backoff_limit_s=16.0)
        failure(one)
    for number, wait in enumerate(one.clock.sleeps):
        most = min(16.0, 2.0**number)
        assert most / 2 <= wait <= most
    assert len(one.clock.sleeps) == 7
    assert len({round(wait / min(16.0, 2.0**n), 6) for n, wait in enumerate(one.clock.sleeps)}) == 7


@pytest.mark.parametrize("asked", [86400, "inf", "nan", "-5", "soon"])
def test_an_unreasonable_retry_after_does_not_stop_a_job(talk: Connect, asked: float | str) -> None:
    with ScriptedServer(sequence(Status(429, retry_after=asked), GOOD)) as server:
        one = talk(server, wait_s=600.0)
        assert one.models.ask("judge", PROMPT, OPINION) == ANSWER
    assert 0.5 <= one.clock.sleeps[0] <= 600.0


@pytest.mark.parametrize(("bad", "backoff"), [(Status(503), 1.0), (Reset(), 60.0)], ids=repr)
def test_another_server_is_asked_before_one_that_failed(talk: Connect, bad: Behaviour, backoff: float) -> None:
    for seed in range(4):
        with ScriptedServer(bad) as ill, ScriptedServer(GOOD) as well:
            one = talk(ill, well, seed=seed, backoff_s=backoff)
            assert one.models.ask("judge", PROMPT, OPINION) == ANSWER
            assert one.models.ask("judge", PROMPT, OPINION) == ANSWER
            assert len(ill.chats) <= 1
            assert len(well.chats) == 2
            assert one.exchanges[-1].endpoint == well.url


@stream_or_not
@pytest.mark.parametrize(
    ("bad", "cause"),
    [
        (Status(401), "model.http_401"),
        (Status(404), "model.http_404"),
        (Status(400), "model.http_400"),
        (Refusal(), "reply.refused"),
        (Text("", finish="content_filter"), "reply.refused"),
    ],
    ids=repr,
)
def test_what_would_fail_again_is_not_tried_again(talk: Connect, stream: bool, bad: Behaviour, cause: str) -> None:
    with ScriptedServer(bad) as server:
        one = talk(server, stream=stream)
        assert failure(one).cause == cause
        assert len(server.chats) == 1
    assert one.exchanges[0].final
    assert one.clock.sleeps == []


def test_a_prompt_that_the_server_finds_too_long_is_a_matter_of_context(talk: Connect) -> None:
    with ScriptedServer(GOOD, context=1000) as server:
        one = talk(server)
        assert failure(one).cause == "context"
        assert len(server.chats) == 1


@stream_or_not
def test_an_endless_reply_is_cut_by_time(talk: Connect, stream: bool) -> None:
    with ScriptedServer(Endless(pause=0.01) if stream else Hang()) as server:
        one = talk(server, stream=stream, timeout_s=0.3, retries=1)
        began = time.monotonic()
        assert failure(one).cause == "model.timeout"
        assert time.monotonic() - began < 5
        wait_until_gone(server)


@stream_or_not
def test_an_endless_reply_is_cut_by_tokens(talk: Connect, stream: bool) -> None:
    with ScriptedServer(Endless(pause=0.0001)) as server:
        one = talk(server, stream=stream)
        one.models.config.roles.judge.max_tokens = 100
        assert failure(one).cause == "reply.truncated"
        assert len(server.chats) == speakers.TRUNCATED_TRIES
        if stream:
            wait_until_gone(server)
    assert all(100 <= exchange.tokens_out <= 1000 for exchange in one.exchanges)


def wait_until_gone(server: ScriptedServer) -> None:
    deadline = time.monotonic() + 5
    while not all(entry.gone for entry in server.chats):
        assert time.monotonic() < deadline, "the connection was left open"
        time.sleep(0.01)


def test_the_budget_of_a_job_stops_it_and_failed_tries_count(talk: Connect) -> None:
    with ScriptedServer(sequence(Text("cut", finish="length"), GOOD)) as server:
        one = talk(server, tokens_per_job=2400)
        assert one.models.ask("judge", PROMPT, OPINION) == ANSWER
        assert one.models.spending.tokens == sum(e.tokens_in + e.tokens_out for e in one.exchanges) > 2048
        assert one.models.spending.calls == 2
        one.models.ask("judge", PROMPT, OPINION)
        prompt = sum(estimate_tokens(text.strip()) for text in (PROMPT.system, PROMPT.user))
        used = sum(e.tokens_in + e.tokens_out for e in one.exchanges[:-1])
        assert abs(server.chats[-1].body["max_completion_tokens"] - (2400 - used - prompt)) <= 1
        one.models.spending.tokens = 2400
        asked = len(server.chats)
        error = failure(one)
        assert (error.cause, len(server.chats)) == ("budget", asked)
    assert "agents.tokens_per_job=2400" in str(error)
    assert error.__cause__ is not error


def test_the_key_is_sent_and_never_told(talk: Connect) -> None:
    echo = {"error": {"message": f"bad key {KEY}", "headers": {"authorization": f"Bearer {KEY}"}}}
    behaviours = (
        Status(500, body=echo),
        Status(500, body=f"key {KEY}"),
        Garbage(KEY),
        Text(f"your key is {KEY}", thinking=f"{KEY}?"),
        Status(401, body=echo),
    )
    with ScriptedServer(sequence(*behaviours), key=KEY) as server:
        one = talk(server, key=KEY)
        error = failure(one)
        assert len(server.chats) == 5
        assert server.chats[0].headers["authorization"] == f"Bearer {KEY}"
        assert KEY not in json.dumps(server.chats[-1].body)
    told = json.dumps([asdict(exchange) for exchange in one.exchanges]) + "".join(traceback.format_exception(error))
    assert KEY not in told
    assert told.count("[key]") >= 7
    assert error.cause == "model.http_401"


@stream_or_not
def test_thoughts_are_kept_apart(talk: Connect, stream: bool) -> None:
    with ScriptedServer(Text(GOOD.content, thinking="Let me see.")) as server:
        one = talk(server, stream=stream)
        assert one.models.ask("judge", PROMPT, OPINION) == ANSWER
    assert (one.exchanges[0].thinking, one.exchanges[0].reply) == ("Let me see.", GOOD.content)


@stream_or_not
def test_a_reply_that_is_no_unicode_can_be_recorded_and_sent_back(talk: Connect, stream: bool) -> None:
    with ScriptedServer(sequence(Text('{"score": 7, "name": "\ud800"}'), GOOD)) as server:
        one = talk(server, stream=stream)
        assert one.models.ask("judge", PROMPT, OPINION) == ANSWER
    for exchange in one.exchanges:
        json.dumps(asdict(exchange), ensure_ascii=False).encode()


@stream_or_not
def test_a_hostile_server_only_ever_causes_named_failures(talk: Connect, stream: bool) -> None:
    with ScriptedServer(hostile(5, 0.6, schemas(1))) as server:
        one = talk(server, stream=stream, timeout_s=0.3, retries=2, repairs=2)
        one.models.config.roles.judge.max_tokens = 200
        outcomes: Counter[str] = Counter()
        for _ in range(16):
            try:
                outcomes[type(one.models.ask("judge", PROMPT, OPINION)).__name__] += 1
            except FAILURES as error:
                outcomes[error.cause.partition("_")[0]] += 1
    assert outcomes["Opinion"] >= 3
    assert len(outcomes) >= 3
    assert len(one.exchanges) == len(server.chats)
    assert sum(outcomes.values()) == 16
