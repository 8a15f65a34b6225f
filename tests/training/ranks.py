"""Runs a function in several processes that train together, as the jobs do, without their sandbox."""

from __future__ import annotations

import multiprocessing
import traceback
import warnings
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from asiarch_hpc.training.world import World


def run_ranks(size: int, function: Callable[[World], Any], folder: Path, *, timeout_s: float = 60.0) -> list[Any]:
    """What `function` returns in each of `size` forked processes, by rank; an exception's text where it raised,
    None where it died.

    The processes may use DeepSpeed and torch.distributed, which leave this process as it was.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import torch._inductor.compile_fx  # noqa: F401  # DeepSpeed loads it: once, instead of in each process

    context = multiprocessing.get_context("fork")
    meeting = folder / f"meeting-{len(list(folder.glob('meeting-*')))}"
    pipes = [context.Pipe(duplex=False) for _ in range(size)]
    processes = []
    for rank, (_, writer) in enumerate(pipes):
        world = World(rank=rank, size=size, meeting=meeting, timeout_s=timeout_s)
        processes.append(context.Process(target=_answer, args=(writer, function, world)))
        processes[-1].start()
        writer.close()
    try:
        return [_received(reader) for reader, _ in pipes]
    finally:
        for process in processes:
            process.kill()
            process.join()


def _received(reader: Connection) -> Any:
    try:
        return reader.recv() if reader.poll(300) else None
    except EOFError:  # it died
        return None


def _answer(writer: Connection, function: Callable[[World], Any], world: World) -> None:
    import torch

    # A forked process cannot use OpenMP threads that an earlier test started in this one: it would wait forever.
    torch.set_num_threads(1)
    try:
        writer.send(function(world))
    except BaseException as error:
        traceback.print_exc()
        writer.send(f"{type(error).__name__}: {error}")
