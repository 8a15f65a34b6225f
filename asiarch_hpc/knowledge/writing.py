"""Entries as YAML text, in the form in which people write them."""

from __future__ import annotations

import re
from typing import Any

import yaml

from asiarch_hpc.errors import RecordError
from asiarch_hpc.knowledge.cognition import Entry, parse_entry
from asiarch_hpc.knowledge.words import STOP_WORDS
from asiarch_hpc.records import to_json

WIDTH = 110
FOLDED = 100  # characters from which a text is folded


def entry_text(entry: Entry) -> str:
    """The content of an entry's file; reading it again gives the same entry.

    Raises:
        RecordError: not a valid entry.
    """
    text = yaml.dump(to_json(entry), Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=WIDTH)
    if parse_entry(text, source=entry.paper.id) != entry:
        raise RecordError(f"{entry.paper.id}: a text of the entry changes when it is written as YAML")
    return str(text)


def file_name(entry: Entry) -> str:
    """`<arXiv number>-<words of the title>.yaml`, or the short name that the id is."""
    if not entry.paper.id[:1].isdigit():
        return f"{entry.paper.id}.yaml"
    words = re.findall(r"[a-z0-9]+", entry.paper.title.lower())
    telling = [word for word in words if word not in STOP_WORDS][:4]
    return "-".join([entry.paper.id, *telling]) + ".yaml"


class _Dumper(yaml.SafeDumper):
    """Lists below their key indented, long texts folded, texts of several lines as they are."""

    def increase_indent(self, flow: bool = False, indentless: bool = False) -> None:
        super().increase_indent(flow, False)


def _text(dumper: yaml.SafeDumper, value: str) -> Any:
    style = "|" if "\n" in value else ">" if len(value) > FOLDED else None
    return dumper.represent_scalar("tag:yaml.org,2002:str", value, style=style)


_Dumper.add_representer(str, _text)
