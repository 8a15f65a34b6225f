"""Entries from papers: what the model must repair, what is checked against the paper, what is never overwritten."""

from __future__ import annotations

import json
import mmap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from asiarch_hpc.agents.extractor import EntryReply, extract, known_identifier
from asiarch_hpc.agents.reply import Reply
from asiarch_hpc.config import Config, to_dict
from asiarch_hpc.errors import AgentError, ConfigError, RecordError
from asiarch_hpc.knowledge.cognition import TOPICS, Background, Cognition, Paper, parse_entry, read_entry
from asiarch_hpc.store.files import write_json
from asiarch_hpc.store.layout import RunLayout
from jobs.entry import Attempt
from jobs.extract import extract_file, extract_paper, run
from tests.agents.behaviours import Text, sequence
from tests.agents.conftest import Talk
from tests.agents.scripted_server import ScriptedServer

Connect = Callable[..., Talk]

SENTENCE = "A gate computed from the token scales what the state keeps. "
PAPER = (
    "# Gated Mixers with Memory\n\nA. Author, B. Writer\n\n"
    f"# Abstract\n\n{(SENTENCE * 5).strip()}\n\n# Method\n\n{(SENTENCE * 60).strip()}\n"
)
COGNITION = {
    "insight": "Scale the state by a gate that is computed from the token, so that it can forget",
    "topic": "gating",
    "triggers": ["loss by position rises after 1000 tokens", "old pairs leak into new answers", "state norm grows"],
    "algorithm": "A gate per channel multiplies the state before each write.",
    "mechanism": "What is not needed fades.",
    "formulas": "S_t = g_t S_{t-1} + v_t k_tᵀ\n\ng_t = sigmoid(W x_t)  \n",
    "properties": "Linear in the length.",
    "implementation": "Bias of the gate at 2.",
    "conditions": "Not where: everything must be kept, \"verbatim\".",
    "outcomes": "Better recall.",
}  # fmt: skip
TERM = {"term": "gate", "meaning": "a factor"}
GOOD: dict[str, Any] = {
    "paper": {
        "id": "Gated Mixers 2024",
        "title": "Gated mixers with memory",
        "authors": "Author, Writer",
        "year": 2024,
    },
    "background": {
        "context": "Linear attention.",
        "limitations": "It never forgets.",
        "concepts": [
            {"term": "gate", "meaning": "a factor: between 0 and 1"},
            {"term": "state", "meaning": "- a matrix"},
        ],
    },
    "cognitions": [COGNITION],
}


def changed(**values: Any) -> Text:
    return Text(json.dumps({**GOOD, **values}))


def paper_file(folder: Path, name: str = "paper.md", text: str = PAPER) -> Path:
    (folder / name).write_text(text, encoding="utf-8")
    return folder / name


def test_replies_mirror_entries() -> None:
    def names(kind: type) -> set[str]:
        return set(kind.model_fields)

    parts = EntryReply.model_fields
    assert names(EntryReply) == {"paper", "background", "cognitions"}
    assert names(parts["paper"].annotation) == set(Paper.__dataclass_fields__)
    assert names(parts["background"].annotation) == set(Background.__dataclass_fields__)
    (kind,) = parts["cognitions"].annotation.__args__
    assert names(kind) == set(Cognition.__dataclass_fields__)


@pytest.mark.parametrize("reply", ["schema", "blocks"])
def test_a_paper_becomes_an_entry(talk: Connect, reply: str) -> None:
    content = json.dumps(GOOD)
    with ScriptedServer(Text(content if reply == "schema" else f"Here:\n```json\n{content}\n```\n")) as server:
        entry, text = extract(talk(server, reply=reply).models, PAPER)
        body = server.chats[0].body
    assert parse_entry(text, source="test") == entry
    assert (entry.paper.id, entry.paper.year) == ("gated-mixers-2024", 2024)
    assert entry.background.concepts == {"gate": "a factor: between 0 and 1", "state": "- a matrix"}
    (cognition,) = entry.cognitions
    assert cognition.formulas == "S_t = g_t S_{t-1} + v_t k_tᵀ\ng_t = sigmoid(W x_t)"
    assert cognition.conditions == 'Not where: everything must be kept, "verbatim".'
    assert "formulas: |-\n" in text
    system, user = (message["content"] for message in body["messages"])
    assert PAPER.strip() in user
    assert all(f"`{name}`" in system for name in (*COGNITION, "term", "limitations", "authors"))
    if reply == "schema":
        schema = json.dumps(body["response_format"]["json_schema"]["schema"])
        assert json.dumps(list(TOPICS)) in schema
        assert '"maxItems": 3' in schema


@pytest.mark.parametrize(
    ("bad", "complaint"),
    [
        (changed(cognitions=[]), "at least 1"),
        (changed(cognitions=[{**COGNITION, "topic": "magic"}]), "topic 'magic'"),
        (changed(cognitions=[{**COGNITION, "triggers": ["a loss", "A loss.", "the losses"]}]), "triggers: found 1"),
        (changed(cognitions=[{**COGNITION, "formulas": " \n "}]), "formulas is empty"),
        (changed(background={**GOOD["background"], "concepts": [TERM, TERM]}), "concepts: found 1"),
        (changed(paper={**GOOD["paper"], "id": "2406.06484"}), "does not stand at the beginning"),
        (changed(paper={**GOOD["paper"], "title": "Attention Is All You Need"}), "copy it"),
        (changed(paper={**GOOD["paper"], "id": "!"}), "paper.id ''"),
    ],
)  # fmt: skip
def test_what_is_wrong_goes_back(talk: Connect, bad: Text, complaint: str) -> None:
    with ScriptedServer(sequence(bad, changed())) as server:
        entry, _ = extract(talk(server).models, PAPER)
        assert complaint in server.chats[1].body["messages"][-1]["content"]
    assert entry.paper.id == "gated-mixers-2024"


def test_a_known_number_is_not_the_models_to_choose(talk: Connect) -> None:
    stamped = PAPER.replace("A. Author", "arXiv:2401.00001v2 [cs.LG] 3 Jan 2024\nA. Author")
    assert known_identifier(stamped) == "2401.00001"
    assert known_identifier(PAPER + "as in arXiv:1706.03762") == ""
    with ScriptedServer(changed()) as server:
        entry, text = extract(talk(server).models, stamped)
        assert "The paper's id is 2401.00001." in server.chats[0].body["messages"][1]["content"]
    assert entry.paper.id == "2401.00001"
    assert "id: '2401.00001'" in text


def test_a_long_paper_is_cut_to_the_context(talk: Connect) -> None:
    long = PAPER + "# Related Work\n\n" + "Others did other things, all of them worth a word. " * 4000
    with ScriptedServer(changed()) as server:
        one = talk(server, context=12000)
        extract(one.models, long)
        prompt = "".join(message["content"] for message in server.chats[0].body["messages"])
        assert one.speaker.count(prompt, "") <= 12000 - one.models.config.roles.extractor.max_tokens
    assert (SENTENCE * 60).strip() in prompt
    with ScriptedServer(changed()) as server, pytest.raises(AgentError, match="context") as found:
        extract(talk(server, context=9000).models, long)
    assert found.value.cause == "context"


def test_the_entry_is_written_once(talk: Connect, tmp_path: Path) -> None:
    folder = tmp_path / "entries"
    with ScriptedServer(changed()) as server:
        models = talk(server).models
        path = extract_file(paper_file(tmp_path), models, folder)
        assert path == folder / "gated-mixers-2024.yaml"
        assert read_entry(path).paper.title == "Gated mixers with memory"
        with pytest.raises(RecordError, match=r"gated-mixers-2024\.yaml: already the entry"):
            extract_file(paper_file(tmp_path), models, folder)
        with pytest.raises(RecordError, match="already the entry"):  # under another number
            extract_file(paper_file(tmp_path, "2401.00001v3.md"), models, folder)
        asked = len(server.chats)
        path.unlink()
        named = extract_file(paper_file(tmp_path, "2401.00001v3.md"), models, folder)
        assert named.name == "2401.00001-gated-mixers-memory.yaml"
        with pytest.raises(RecordError, match="already the entry"):
            extract_file(paper_file(tmp_path, "2401.00001v4.md"), models, folder)
        assert len(server.chats) == asked + 1  # a known number costs no question
    assert [file.name for file in folder.iterdir()] == [named.name]


def test_a_paper_is_extracted_without_a_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = Config()
    with pytest.raises(ConfigError, match=r"agents\.endpoints is empty"):
        extract_paper(paper_file(tmp_path), config, tmp_path / "entries")
    with ScriptedServer(changed()) as server:
        config.agents.endpoints = [server.url + "/"]
        path = extract_paper(paper_file(tmp_path), config, tmp_path / "entries")
    assert read_entry(path).paper.id == "gated-mixers-2024"
    assert "extractor, scripted: " in capsys.readouterr().out


def test_formats_name_the_parts() -> None:
    assert "`cognitions`" in Reply("entry", EntryReply).format("blocks")


def test_a_run_extracts_with_its_own_servers(tmp_path: Path) -> None:
    layout = RunLayout(tmp_path / "run")
    with ScriptedServer(changed()) as server:
        config = Config()
        config.agents.endpoints = [server.url]
        write_json(layout.record, {"config": to_dict(config)})
        attempt = Attempt(layout, "extract-1", "extract", 0, 0, mmap.mmap(-1, 1))
        payload = run(attempt, {"paper": str(paper_file(tmp_path)), "folder": str(tmp_path / "entries")})
    assert read_entry(Path(payload["entry"])).paper.id == "gated-mixers-2024"
    assert payload["tokens"] > 100
    assert len(list(layout.transcripts.glob("extract.*.jsonl"))) == 1
