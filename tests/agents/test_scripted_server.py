"""The scripted server itself: values of schemas, vectors of texts, and life as a process of its own."""

from __future__ import annotations

import json
import os
import random
import re
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Annotated, Any, Literal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter

from tests.agents.behaviours import MISDEEDS, Schema, Text, by_name, hostile, schemas
from tests.agents.chat_wire import embedding
from tests.agents.schema_values import value_of
from tests.agents.scripted_server import ScriptedServer


class Leaf(BaseModel):
    model_config = ConfigDict(extra="forbid")
    kind: Literal["leaf"]
    width: int = Field(ge=8, le=64, multiple_of=8)


class Node(BaseModel):
    model_config = ConfigDict(extra="forbid")
    kind: Literal["node"]
    children: list[Annotated[Leaf | Node, Field(discriminator="kind")]] = Field(min_length=1, max_length=3)


class All(BaseModel):
    """Every form that the schemas of this project use."""

    model_config = ConfigDict(extra="forbid")
    name: str = Field(pattern=r"^[a-z][a-z0-9_]{2,47}$")
    code: str = Field(pattern=r"^(?:GAU|unit)-\d{1,3}[^0-9]?$")
    text: str = Field(min_length=40, max_length=300)
    grade: Annotated[int, Field(ge=1, le=10)]
    rate: float = Field(gt=0, lt=1)
    sure: bool
    mode: Literal["a", "b"]
    maybe: str | None
    tags: set[Literal["x", "y", "z"]] = Field(min_length=2, max_length=3)
    pair: tuple[int, str]
    table: dict[str, int]
    tree: Annotated[Leaf | Node, Field(discriminator="kind")]
    later: list[Leaf] = Field(default_factory=list, max_length=2)


@given(st.integers(0, 10**9))
@settings(max_examples=60, deadline=None)
def test_values_satisfy_their_schema_and_come_again_with_their_seed(seed: int) -> None:
    schema = TypeAdapter(All).json_schema()
    value = value_of(schema, random.Random(seed))
    All.model_validate_json(json.dumps(value))
    assert value == value_of(schema, random.Random(seed))


def test_similar_texts_have_similar_vectors() -> None:
    def likeness(a: str, b: str) -> float:
        return sum(x * y for x, y in zip(embedding(a), embedding(b), strict=True))

    base = "a gated delta rule with short convolution and per head decay of the state"
    assert likeness(base, base) == pytest.approx(1.0)
    assert (
        likeness(base, base.replace("short", "long")) > 0.8 > likeness(base, "mixture of experts routes tokens") + 0.3
    )
    for text in ("", "x", "  ", "??"):
        assert likeness(text, text) == pytest.approx(1.0)


def call(url: str, body: Any = None, key: str = "") -> Any:
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, data, {"Authorization": f"Bearer {key}", "Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=10) as answer:
        return json.loads(answer.read() or "null")


def test_the_openai_client_reads_its_embeddings_and_streams() -> None:
    from openai import OpenAI

    with (
        ScriptedServer(Text("one two three"), models=["m"], chunk=4) as server,
        OpenAI(base_url=server.url, api_key="x", max_retries=0) as client,
    ):
        rows = client.embeddings.create(model="m", input=["gated delta", "state"]).data
        assert rows[0].embedding == pytest.approx(embedding("gated delta"), abs=1e-6)
        messages: Any = [{"role": "user", "content": "count"}]
        options: Any = {"include_usage": True}
        chunks = list(client.chat.completions.create(model="m", messages=messages, stream=True, stream_options=options))
        assert "".join(c.choices[0].delta.content or "" for c in chunks if c.choices) == "one two three"
        assert chunks[-1].usage is not None
        assert chunks[-1].usage.prompt_tokens == 1


def test_keys_paths_models_and_health_are_checked() -> None:
    with ScriptedServer(Text("x"), models=["m"], key="k") as server:
        assert call(server.url.replace("/v1", "/health")) is None
        assert call(server.url + "/models", key="k")["data"][0]["id"] == "m"
        chat = server.url + "/chat/completions"
        refused = [(chat, {}, "", 401), (chat, {"model": "n"}, "k", 404), (server.url + "/x", {}, "k", 404)]
        for url, body, key, code in refused:
            with pytest.raises(urllib.error.HTTPError) as found:
                call(url, body, key)
            assert found.value.code == code
            found.value.close()
        server.healthy = False
        with pytest.raises(urllib.error.HTTPError) as found:
            call(server.url.replace("/v1", "/health"))
        found.value.close()


def test_hostility_has_its_share_and_depends_on_the_seed_alone() -> None:
    script = hostile(7, 0.3, schemas())
    drawn = [script({}, number) for number in range(1000)]
    assert drawn == [hostile(7, 0.3, schemas())({}, number) for number in range(1000)]
    assert 250 <= sum(behaviour in MISDEEDS for behaviour in drawn) <= 350
    assert len({repr(behaviour) for behaviour in drawn if behaviour in MISDEEDS}) == len(MISDEEDS)
    request = {"response_format": {"json_schema": {"name": "Verdict", "schema": {}}}}
    named = by_name({"Verdict": Text("no")}, schemas(1))
    assert (named(request, 3), named({}, 3)) == (Text("no"), Schema(1_000_006))


def test_it_serves_as_a_process_until_it_is_told_to_end(tmp_path: Path) -> None:
    file = tmp_path / "port"
    words = [sys.executable, str(Path(__file__).with_name("scripted_server.py")), "--port-file", str(file)]
    words += [
        "--script",
        "@tests.agents.behaviours:hostile_schemas",
        "--share",
        "0",
        "--key-env",
        "K",
        "--models",
        "a,b",
    ]
    with subprocess.Popen(words, env={**os.environ, "K": "k"}, stdout=subprocess.PIPE, text=True) as process:
        deadline = time.monotonic() + 20
        while not file.exists():
            assert time.monotonic() < deadline
            time.sleep(0.02)
        url = f"http://127.0.0.1:{file.read_text()}/v1"
        wanted = {"name": "N", "schema": {"type": "string", "pattern": "^[a-c]{3}$"}}
        body = {"model": "b", "messages": [], "response_format": {"json_schema": wanted}}
        reply = call(url + "/chat/completions", body, key="k")["choices"][0]["message"]["content"]
        assert re.fullmatch("[a-c]{3}", json.loads(reply))
        process.terminate()
        assert process.wait(10) == 0
