"""The processes of one training: each in a sandbox of its own, watched together, ended together.

Under Slurm srun starts one task a process, on all nodes; on the local machine the job's process starts them all. Either
way whoever starts a process waits for it, and leaves its end on the board, a folder that no candidate's code can write
to. There every node sees when a process on another one failed, and ends its own.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import shutil
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path

from asiarch_hpc.config import ExecutorConfig, ranks, ranks_per_node
from asiarch_hpc.errors import PeerLostError, RecordError, StoreError
from asiarch_hpc.gate.sandbox import Outcome
from asiarch_hpc.gate.sandbox.confine import set_parent_death_signal
from asiarch_hpc.processes import fork
from asiarch_hpc.store.files import read_json, write_text
from asiarch_hpc.training.world import World
from jobs.entry import Attempt, under_srun

LOST = "lost"  # cause of a process that ended without a word
_POLL_S = 0.2
_GRACE_S = 10.0  # for a process to end when it is told to
_MACHINE = 2  # from this blame on nothing is known of the design


def train_together(
    run_rank: Callable[[World], Outcome], *, attempt: Attempt, config: ExecutorConfig, board: Path, meeting: Path
) -> Outcome:
    """Runs the processes that this one starts, and waits for them; leaves none behind.

    Args:
        run_rank: one process of the training, from start to end; its result is the JSON object of `jobs.train`, with
            `failed`, `disk`, `settings` or `peer` where it did not train.
        config: `train` says how many processes there are, `lost_grace_seconds` how long another one may take to say
            why it failed.
        board: folder of the trial for the ends of processes; it exists while rank 0's job does.
        meeting: path of a file by which processes find rank 0; they write it.

    Returns:
        How the training ended for rank 0, or for the process that is to blame; in tasks of other ranks, how their own
        ended.

    Raises:
        PeerLostError: rank 0 never began, or ended.
    """
    if ranks(config.train) == 1:
        return run_rank(World())
    if under_srun():
        worlds = [World.of_slurm(os.environ, meeting=meeting, timeout_s=config.peer_seconds)]
    else:
        size = ranks_per_node(config.train)
        worlds = [
            World(rank=rank, size=size, local_rank=rank, meeting=meeting, timeout_s=config.peer_seconds)
            for rank in range(size)
        ]
    visible = visible_gpus(config.train.gpus)
    with _opened(board, attempt, config.peer_seconds), _started(run_rank, worlds, board, visible) as living:
        return _watch(living, worlds, board, config.lost_grace_seconds)


@contextlib.contextmanager
def _opened(board: Path, attempt: Attempt, timeout_s: float) -> Iterator[None]:
    """The board: rank 0 makes and removes it, the others wait for it."""
    if attempt.rank == 0:
        board.mkdir(exist_ok=True)
        try:
            yield
        finally:
            shutil.rmtree(board, ignore_errors=True)
        return
    deadline = time.monotonic() + timeout_s
    while not board.is_dir():
        if attempt.should_stop() or time.monotonic() > deadline:
            raise PeerLostError(f"{board}: rank 0 did not begin this training within {timeout_s:g} s")
        time.sleep(_POLL_S)
    yield


@contextlib.contextmanager
def _started(
    run_rank: Callable[[World], Outcome], worlds: Sequence[World], board: Path, visible: Sequence[str]
) -> Iterator[dict[int, World]]:
    """The processes by their ids; those that live at the end are ended, and their sandboxes with them."""
    living: dict[int, World] = {}
    try:
        for world in worlds:
            process = fork()
            if process == 0:
                _be_rank(run_rank, world, board, visible)
            living[process] = world
        yield living
    finally:
        for number in (signal.SIGHUP, signal.SIGKILL):
            for process in living:
                os.kill(process, number)  # none was waited for yet, so the ids are theirs
            deadline = time.monotonic() + _GRACE_S
            while living and time.monotonic() < deadline:
                _reap(living)
                time.sleep(_POLL_S if living else 0.0)


def _be_rank(run_rank: Callable[[World], Outcome], world: World, board: Path, visible: Sequence[str]) -> None:
    """The life of one process; never returns."""
    try:
        set_parent_death_signal(signal.SIGKILL)
        signal.signal(signal.SIGHUP, lambda number, frame: sys.exit(1))  # ends the sandbox and removes its folder
        if world.local_rank < len(visible):
            os.environ["CUDA_VISIBLE_DEVICES"] = visible[world.local_rank]
        _tell(board, world.rank, run_rank(world))
    except SystemExit:
        os._exit(1)
    except BaseException:
        traceback.print_exc()
        os._exit(1)
    os._exit(0)


def _watch(living: dict[int, World], worlds: Sequence[World], board: Path, grace_s: float) -> Outcome:
    """Waits until the training has ended or failed. Ended processes leave `living`."""
    own, size = worlds[0].rank, worlds[0].size
    until = math.inf
    while True:
        for world, code in _reap(living):
            if code:
                cause = f"killed by signal {-code}" if code < 0 else LOST
                error = f"rank {world.rank} ended with exit code {code} and said nothing"
                _tell(board, world.rank, Outcome(cause=cause, error=error, seconds=0.0, rung="limits"))
        found = _told(board)
        if found is None:
            raise PeerLostError("rank 0 has ended this training; its part of the log says how")
        wrong = {rank: blame for rank, outcome in found.items() if (blame := _blame(outcome)) is not None}
        trained = own in found and own not in wrong
        if (wrong or trained) and until == math.inf:
            until = time.monotonic() + grace_s
        decided = min(wrong.values(), default=_MACHINE) < _MACHINE
        known = trained or len(found) == size
        if decided or (known and not living) or time.monotonic() > until:
            return found[own] if trained else found[min(wrong, key=lambda rank: (wrong[rank], rank))]
        time.sleep(_POLL_S)


def _reap(living: dict[int, World]) -> list[tuple[World, int]]:
    """Takes ended processes out of `living`; their places and exit codes, minus their signals."""
    ended = []
    for process in list(living):
        done, status = os.waitpid(process, os.WNOHANG)
        if done:
            ended.append((living.pop(process), os.waitstatus_to_exitcode(status)))
    return ended


def _tell(board: Path, rank: int, outcome: Outcome) -> None:
    if board.is_dir():  # else rank 0 has ended
        with contextlib.suppress(StoreError):
            text = json.dumps({**asdict(outcome), "records": [], "attempts": []})  # NaN is no loss to a board
            write_text(board / f"{rank}.json", text)


def _told(board: Path) -> dict[int, Outcome] | None:
    """What is known of the processes, by rank; None when the board is gone."""
    try:
        names = [name for name in os.listdir(board) if name.endswith(".json")]
        return {int(name[:-5]): Outcome(**read_json(board / name)) for name in names}
    except (FileNotFoundError, RecordError, StoreError):
        return None


def _blame(outcome: Outcome) -> int | None:
    """How likely it is that this process's failure is the cause of the others', 0 first; None: it did not fail."""
    if outcome.cause is not None:
        return _MACHINE if outcome.cause.startswith("killed") or outcome.cause == LOST else 0
    order = {"failed": 0, "settings": 0, "disk": 1, "peer": _MACHINE + 1}
    return next((blame for word, blame in order.items() if word in outcome.result), None)


def visible_gpus(count: int) -> list[str]:
    """The GPUs of this node's processes, by their place; empty where each process sees its own alone, or there are
    none."""
    if not count:
        return []
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    listed = named.split(",") if named else [str(number) for number in range(count)]
    return listed if len(listed) >= count else []
