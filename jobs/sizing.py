"""The size of a design: as many parameters as the reference baseline has at the same scale (truth rule 4)."""

from __future__ import annotations

import functools
import tempfile
from dataclasses import replace
from pathlib import Path

from asiarch_hpc.errors import DesignError
from asiarch_hpc.gate.sandbox import run_isolated
from asiarch_hpc.records import GateReport, Json
from asiarch_hpc.training.backbone import count_parameters
from asiarch_hpc.training.tuner import match_depth_first, match_size
from jobs.workspace import Workspace


def count(space: Workspace, source: str, dim: int, depth: int) -> int:
    """Non-embedding parameters of a design at the workspace's scale."""
    scale = space.config.scale
    return count_parameters(source, dim=dim, depth=depth, heads=scale.heads, ffn_multiple=scale.ffn_multiple)


def matched_size(space: Workspace, source: str, target: int) -> tuple[int, int]:
    """Width and depth at which a design has about `target` parameters.

    Raises:
        DesignError: no size comes near enough.
    """
    scale, config = space.config.scale, space.config.gate
    match = match_depth_first if scale.match == "depth" else match_size
    return match(
        functools.partial(count, space, source),
        target=target,
        reference_dim=scale.dim,
        reference_depth=scale.depth,
        dim_step=config.dim_step,
        tolerance=config.parameter_tolerance,
    )


def resized(space: Workspace, source: str, gate: GateReport, reference: str | None) -> GateReport:
    """The gate's report on a design with its size at the scale of a stage: beside the reference's there.

    What the gate measured stays as it was, at the size of exploration. The design's constructors run confined.

    Args:
        reference: the reference baseline; None for itself, which has the scale's own size.

    Raises:
        DesignError: no size comes near enough, or the design cannot be built.
    """
    scale, config = space.config.scale, space.config

    def child() -> Json:
        if reference is None:
            return {"size": (scale.dim, scale.depth, count(space, source, scale.dim, scale.depth))}
        try:
            dim, depth = matched_size(space, source, count(space, beside, scale.dim, scale.depth))
        except DesignError as error:
            return {"failed": str(error)}
        return {"size": (dim, depth, count(space, source, dim, depth))}

    beside = "" if reference is None else space.design(reference)[1]
    with tempfile.TemporaryDirectory(prefix="asiarch-size-") as scratch:
        answer = run_isolated(
            child,
            timeout_s=config.gate.timeout_s,
            memory_gb=config.executor.train.memory_gb,
            writable=[Path(scratch)],
            rung=config.gate.sandbox,
        )
    if (answer.cause or "").startswith("killed"):  # the system's or an administrator's doing
        raise ChildProcessError(f"matching its size: the process was {answer.cause} ({answer.error})")
    if not answer.ok:
        raise DesignError(f"matching its size at scale {scale.name}: {answer.cause}: {answer.error}")
    if "failed" in answer.result:
        raise DesignError(answer.result["failed"])
    dim, depth, parameters = answer.result["size"]
    return replace(gate, dim=dim, depth=depth, parameters=parameters)
