"""Sizes of the kernels' programs (tiles, warps, stages): a table by class of device and range of shapes.

`configurations.json` holds, for a class of devices and an operation, rules {"shapes": {axis: [least, most]},
"configuration": {...}}, and for tuned ones where and when they were measured. The first rule that covers a shape
counts; where a class has none, a rule of "default", which is small enough for every device. Nothing is timed at run
time; `python -m tests.kernels.tune` adds rules.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

import torch

TABLE = Path(__file__).with_name("configurations.json")
DEFAULT = "default"
Configuration = Mapping[str, Any]
Shape = dict[str, int]
Made = TypeVar("Made")


@dataclass
class Trial:
    """A configuration that holds in place of the table's (None: the table's), and the shapes it was asked for."""

    configuration: Configuration | None
    shapes: list[Shape] = field(default_factory=list)


_trials: dict[str, Trial] = {}


def choose(operation: str, make: Callable[..., Made], device: torch.device, **shape: int) -> Made:
    """The configuration of an operation's kernels for a shape.

    Args:
        operation: its name in the table.
        make: from the configuration's entries, by keyword, to what is returned; called once a shape.
        device: where the operands are.
        shape: what the choice may depend on. Numbers with few values only, as widths of heads: each one is kept.

    Raises:
        LookupError: no rule covers the shape.
    """
    if (running := _trials.get(operation)) is not None:
        running.shapes.append(shape)
        if running.configuration is not None:
            return make(**running.configuration)
    made: Made = _made(operation, make, device_class(device), tuple(shape.items()))
    return made


@contextmanager
def trial(operation: str, configuration: Configuration | None) -> Iterator[Trial]:
    """Has an operation use a configuration, on all threads."""
    assert operation not in _trials, operation
    _trials[operation] = running = Trial(configuration)
    try:
        yield running
    finally:
        del _trials[operation]


def device_class(device: torch.device) -> str:
    """Of NVIDIA's GPUs "sm_" and the compute capability, as "sm_90" for Hopper; of all else "default"."""
    return _capability(device.index) if device.type == "cuda" else DEFAULT


def find(table: Mapping[str, Any], operation: str, device: str, shape: Mapping[str, int]) -> Configuration:
    """The configuration that a table's first fitting rule gives.

    Raises:
        LookupError: no rule covers the shape.
    """
    for name in (device, DEFAULT):
        for rule in table.get(name, {}).get(operation, ()):
            if covers(rule, shape):
                configuration: Configuration = rule["configuration"]
                return configuration
    raise LookupError(
        f"no rule of {operation} covers {dict(shape)}, expected one of {DEFAULT!r} to: add it to {TABLE.name}"
    )


def covers(rule: Mapping[str, Any], shape: Mapping[str, int]) -> bool:
    """Whether each axis that the rule names lies in its range; null: no upper end."""
    ranges = rule["shapes"].items()
    return all(least <= shape[axis] and (most is None or shape[axis] <= most) for axis, (least, most) in ranges)


def read_table(path: Path = TABLE) -> dict[str, Any]:
    table: dict[str, Any] = json.loads(path.read_text())
    return table


@cache
def _made(operation: str, make: Callable[..., Any], device: str, shape: tuple[tuple[str, int], ...]) -> Any:
    return make(**find(_table(), operation, device, dict(shape)))


@cache
def _table() -> dict[str, Any]:
    return read_table()


@cache
def _capability(index: int | None) -> str:
    if torch.version.cuda is None or not torch.cuda.is_available():
        return DEFAULT
    major, minor = torch.cuda.get_device_capability(index)
    return f"sm_{major}{minor}"
