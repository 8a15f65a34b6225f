"""Measures the figures of README.md on this machine and prints them as a table.

make bench                    controller figures (a minute)
make bench ARGS=explore       a whole laptop run (ten minutes), judged against its targets
make bench ARGS=agents        200 proposals on a server that misbehaves (half an hour)
make bench ARGS=early         what early stopping would have saved and lost (seconds; ARGS="early results/name …")
make bench ARGS=gate          the gate's verdicts on planted designs and their transplants (half an hour)

On a GPU, with further options of the module behind the name:
make bench ARGS=training      tokens per second and time to the first step, beside flash-linear-attention's model
make bench ARGS=scaling       one GPU beside two of the same host, for each stage of ZeRO
make bench ARGS=at_once       one training beside several that share the GPU
make bench ARGS=evaluation    seconds of an evaluation on files of the published tasks
"""

from __future__ import annotations

import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from asiarch_hpc.config import Config
from asiarch_hpc.controller import run
from asiarch_hpc.controller.loop import Controller
from asiarch_hpc.store.experiments import scan
from asiarch_hpc.store.layout import RunLayout
from asiarch_hpc.store.lease import take_lease
from tests.controller.simulated import SimulatedJobs, SimulatedScheduler, config_of

PAPER_RUN = 1_773  # experiments of the published search
LARGE_RUN = 10_000
ON_A_GPU = {
    "training": "tests.training.bench_training",
    "scaling": "tests.training.bench_scaling",
    "at_once": "tests.training.bench_at_once",
    "evaluation": "tests.evaluation.bench_evaluation",
}


def main() -> None:
    what = sys.argv[1:] or ["controller"]
    if what[0] in ON_A_GPU:
        root = Path(__file__).resolve().parent.parent
        sys.exit(subprocess.run([sys.executable, "-m", ON_A_GPU[what[0]], *what[1:]], cwd=root, check=False).returncode)
    print(
        f"{os.cpu_count()} cores, {platform.machine()}, Python {platform.python_version()}, {time.strftime('%Y-%m-%d')}"
    )
    if what[0] == "measure-tick":
        measure_tick(Path(what[1]), int(what[2]))
    elif what[0] == "explore":
        explore()
    elif what[0] == "agents":
        from tests.agents.figures import main as agents

        agents(int(what[1]) if len(what) > 1 else 200)
    elif what[0] == "early":
        from tests.search.early_figures import main as early

        early(what[1:])
    elif what[0] == "gate":
        from tests.gate.figures import gate  # torch is loaded for this table only

        gate(transplants=int(what[1]) if len(what) > 1 else 1)
    else:
        controller()


def controller() -> None:
    with tempfile.TemporaryDirectory() as folder:
        for count in (PAPER_RUN, LARGE_RUN):
            root = Path(folder) / str(count)
            config = config_of(designs=count + 50, batch=50, cold_start=200)
            grow(root, config, count)
            began = time.perf_counter()
            state = run.rebuild(RunLayout(root), config)
            row(
                f"rebuild of {len(state.experiments):,} experiments from the tree",
                f"{time.perf_counter() - began:.2f} s",
            )
            measured = subprocess.run(
                [sys.executable, __file__, "measure-tick", str(root), str(count)],
                capture_output=True,
                text=True,
                check=True,
            )
            print(measured.stdout.partition("\n")[2], end="")


def grow(root: Path, config: Config, count: int) -> None:
    """A finished tree: baselines and `count` candidates, written without syncing."""
    layout = RunLayout(root)
    jobs = SimulatedJobs(layout, reject=0.0, fail=0.0)
    sync, os.fsync = os.fsync, lambda descriptor: None
    try:
        for folder in (layout.inbox, layout.pool, layout.experiments, layout.jobs):
            folder.mkdir(parents=True)
        for name in ("delta_net", "gated_delta_net"):
            finish(jobs, {"design": name}, [f"explore-s{seed}" for seed in config.baselines.seeds])
        for slot in range(count):
            finish(jobs, {"slot": slot, "attempt": 0}, ["explore-s0"])
    finally:
        os.fsync = sync


def finish(jobs: SimulatedJobs, arguments: dict[str, Any], trials: list[str]) -> None:
    identifier = jobs.propose(arguments)["id"]
    for trial in trials:
        jobs.train({"experiment": identifier, "trial": trial})


def measure_tick(root: Path, count: int) -> None:
    """Peak memory and the time of a tick, with fifty jobs under way; runs in a process of its own."""
    layout, config = RunLayout(root), config_of(designs=count + 50, batch=50, cold_start=200)
    scheduler = SimulatedScheduler(SimulatedJobs(layout), limit=50)  # its jobs end only when told to work
    lease = take_lease(layout, stale_seconds=90)
    driver = Controller(layout, config, scheduler, run.load_state(layout, config), lease=lease, tag_prefix="bench")
    driver.tick()  # scores everything and builds the generations
    times = []
    for _ in range(30):
        began = time.perf_counter()
        driver.tick()
        times.append(time.perf_counter() - began)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3
    row(
        f"warm tick at {count:,} experiments, {len(driver.state.busy)} jobs", f"{statistics.median(times) * 1e3:.0f} ms"
    )
    row(f"peak memory of the controller at {count:,} experiments", f"{peak:.0f} MB")
    row("torch loaded by the controller", str("torch" in sys.modules))


def explore() -> None:
    with tempfile.TemporaryDirectory() as folder:
        began = time.perf_counter()
        words = [sys.executable, "-m", "asiarch_hpc.cli", "explore", "--run", "bench", "--results", folder]
        subprocess.run([*words, "executor.kind=local"], check=True, stdin=subprocess.DEVNULL)
        seconds = time.perf_counter() - began
        layout = RunLayout.of(Path(folder), "bench")
        scored = [e for e in scan(layout).experiments if e.score is not None and e.record.role == "candidate"]
        trials = [json.loads(path.read_text()) for path in layout.experiments.glob("*/*/trials/*/evaluation.json")]
        gains = [1 - trial["bits_per_byte"] / trial["untrained_bits_per_byte"] for trial in trials]
        files = [sum(p.is_file() for p in e.root.rglob("*")) for e in layout.all_experiments()]
        row("make explore: wall time", f"{seconds / 60:.1f} min")
        row("scored designs beside the baselines", str(len(scored)))
        row("pool generations", str(len(list(layout.pool.glob("*.json"))) - 1))
        row("least fall of bits per byte below the untrained value", f"{min(gains):.1%} of {len(gains)} trials")
        row("most files of one experiment", str(max(files)))


def row(name: str, value: str) -> None:
    print(f"| {name:<62} | {value:>22} |", flush=True)


if __name__ == "__main__":
    main()
