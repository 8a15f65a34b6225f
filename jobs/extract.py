"""Job `extract`: reads a paper and writes its entry for the cognition base."""

from __future__ import annotations

import os
import random
import re
import time
from pathlib import Path

from asiarch_hpc.agents.exchange import Exchange
from asiarch_hpc.agents.extractor import extract, known_identifier
from asiarch_hpc.agents.key import read_key
from asiarch_hpc.agents.llm import LanguageModels, Spending
from asiarch_hpc.agents.speakers import Endpoint, Servers
from asiarch_hpc.config import Config
from asiarch_hpc.errors import ConfigError, RecordError
from asiarch_hpc.knowledge.cognition import Entry, read_entry
from asiarch_hpc.knowledge.papers import read_paper
from asiarch_hpc.knowledge.writing import file_name
from asiarch_hpc.records import Json
from asiarch_hpc.store.files import write_text
from jobs.entry import Attempt
from jobs.team import open_team
from jobs.workspace import Workspace

_NUMBER = re.compile(r"(?<!\d)\d{4}\.\d{4,5}(?!\d)")


def run(attempt: Attempt, arguments: Json) -> Json:
    """Extracts with the run's servers; the exchanges stay with the run's transcripts."""
    space = Workspace.of(attempt.layout)
    paper, folder = Path(arguments["paper"]), Path(arguments["folder"])
    with open_team(
        space, attempt, kind="propose", tokens=arguments.get("tokens", 0), seed=f"asiarch/extract/{paper.name}"
    ) as team:
        path = extract_file(paper, team.models, folder)
        return {"entry": str(path), "tokens": team.spending.tokens}


def extract_paper(paper: Path, config: Config, folder: Path) -> Path:
    """Extracts outside of any run, with the servers that the configuration names.

    Raises:
        ConfigError: it names none.
        AgentError, RecordError, ServiceError: as `extract_file`.
    """
    agents = config.agents
    if not agents.endpoints:
        raise ConfigError(
            "agents.endpoints is empty; expected the address of a server, such as http://127.0.0.1:8000/v1"
        )
    rng = random.Random(f"asiarch/extract/{paper.name}")
    models = LanguageModels(
        config=agents,
        speaker=Servers(
            config=agents,
            directory=lambda: [Endpoint(url.rstrip("/")) for url in agents.endpoints],
            record=_report,
            key=read_key(agents, os.environ),
            rng=rng,
            clock=time.monotonic,
        ),
        rng=rng,
        spending=Spending(agents.tokens_per_job),
    )
    try:
        return extract_file(paper, models, folder)
    finally:
        models.close()


def extract_file(path: Path, models: LanguageModels, folder: Path) -> Path:
    """Writes the entry of a paper into a folder of entries, and returns the new file.

    Raises:
        RecordError: the paper cannot be read, or the folder holds it already.
        AgentError: no valid answer.
        ServiceError: no server is up.
    """
    text = read_paper(path)
    number = _NUMBER.search(path.name)
    identifier = number[0] if number else known_identifier(text)
    if identifier:  # before a model spends an hour on it
        _refuse_known(folder, identifier, "")
    entry, content = extract(models, text, identifier=identifier)
    _refuse_known(folder, entry.paper.id, entry.paper.title)
    target = folder / file_name(entry)
    write_text(target, content)
    return target


def _refuse_known(folder: Path, identifier: str, title: str) -> None:
    for path in sorted(folder.glob("*.yaml")):
        known: Entry = read_entry(path)
        if known.paper.id == identifier or (title and known.paper.title.casefold() == title.casefold()):
            raise RecordError(
                f"{path}: already the entry of paper {identifier}; edit it, or move it away and extract again"
            )


def _report(exchange: Exchange) -> None:
    outcome = exchange.error or f"{exchange.tokens_in} tokens in, {exchange.tokens_out} out"
    print(f"{exchange.role}, {exchange.model}: {outcome}, {exchange.seconds:.1f} s", flush=True)
