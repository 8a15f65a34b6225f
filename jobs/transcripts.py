"""Transcripts of agent jobs: the rows of `agents.jsonl`, one for each exchange with a language model."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Sequence
from pathlib import Path

from asiarch_hpc.records import Json
from asiarch_hpc.store.layout import RunLayout


def collect_exchanges(layout: RunLayout, work: str, rows: Sequence[Json]) -> list[Json]:
    """The exchanges of earlier attempts at the same work, then this one's."""
    own = {row["token"] for row in rows}
    earlier = [row for path in _transcripts(layout, work) for row in read_rows(path) if row.get("token") not in own]
    return [*earlier, *rows]


def drop_transcripts(layout: RunLayout, work: str) -> None:
    """Removes the live transcripts of work whose exchanges are kept with its experiment."""
    for path in _transcripts(layout, work):
        path.unlink(missing_ok=True)


def read_rows(path: Path) -> list[Json]:
    """Rows of a transcript; a line torn by a kill is left out."""
    rows = []
    if path.exists():
        for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
            with contextlib.suppress(ValueError):
                rows.append(json.loads(line))
    return rows


def rows_text(rows: Sequence[Json]) -> str:
    """The content of `agents.jsonl`."""
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def _transcripts(layout: RunLayout, work: str) -> list[Path]:
    return sorted(layout.transcripts.glob(f"{work}.*.jsonl"))
