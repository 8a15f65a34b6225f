"""Prompts from the templates in `prompts/`: one file a role, with the block `system` and the block `user`."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import jinja2

PROMPTS = Path(__file__).resolve().parent / "prompts"


@dataclass(frozen=True, slots=True)
class Prompt:
    """What a model is told of its task, and the question."""

    system: str
    user: str


def render(template: str, /, **values: Any) -> Prompt:
    """The prompt of a template; every value that it names must be given."""
    found = _templates().get_template(f"{template}.md.j2")
    context = found.new_context(values)
    blocks = {name: "".join(found.blocks[name](context)).strip() + "\n" for name in ("system", "user")}
    return Prompt(**blocks)


@cache
def _templates() -> jinja2.Environment:
    return jinja2.Environment(
        loader=jinja2.FileSystemLoader(PROMPTS),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        autoescape=False,
    )
