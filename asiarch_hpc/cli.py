"""The command line: `asiarch explore | noise | tick | status | rebuild | check | import | replay | extract | data`."""

from __future__ import annotations

import argparse
import os
import signal
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import FrameType
from typing import Any

from asiarch_hpc.config import Config, load_config, uses_agents
from asiarch_hpc.controller import imported, progress, run, view
from asiarch_hpc.controller.leaderboard import leaderboard
from asiarch_hpc.controller.loop import Controller, FatalJobError
from asiarch_hpc.controller.noise import noise_config, write_noise
from asiarch_hpc.controller.services import read_services
from asiarch_hpc.controller.side_by_side import proposer_rows, side_by_side
from asiarch_hpc.controller.state import RunState
from asiarch_hpc.errors import AsiarchError, ConfigError, TrainingError
from asiarch_hpc.importers import asi_arch, genesys
from asiarch_hpc.store.layout import RunLayout
from jobs import import_run

IMPORTERS = {"asi-arch": asi_arch.read, "genesys": genesys.read}


class StopRequestedError(Exception):
    """A signal asks the controller to end; the jobs go on without it."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command; returns the exit code: 0 done, 1 an error that its message explains, 130 interrupted."""
    options = _parse(arguments)
    try:
        code: int = options.command(options)
        return code
    except AsiarchError as error:
        print(f"asiarch: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:  # `asiarch status | head`
        sys.stderr.close()
        return 0


def explore(options: argparse.Namespace) -> int:
    """Starts or resumes a run, and drives it to its end."""
    config = load_config(options.config, options.overrides)
    layout = RunLayout.of(options.results, options.run or Path(options.config).stem)
    return _drive_to_end(layout, config, lambda controller: _print_end(layout, controller.state, config))


def noise(options: argparse.Namespace) -> int:
    """Trains a baseline with several seeds, for the spread that fitness, promotion and reports can use."""
    from asiarch_hpc.controller.noise_table import table  # scipy is loaded for this command only

    config = load_config(options.config, options.overrides)
    design, scale = options.design or config.baselines.reference, options.scale or config.scale.name
    config = noise_config(config, design=design, seeds=options.seeds, scale=scale)
    layout = RunLayout.of(options.results, options.run or f"noise-{Path(options.config).stem}-{scale}-{design}")

    def finish(controller: Controller) -> None:
        record = write_noise(layout, controller.state, config, code=run.code_version())
        print("\n".join(table(record)))
        print(f"for runs of the same conditions: fitness.noise={os.path.relpath(layout.noise)}")

    return _drive_to_end(layout, config, finish)


def _drive_to_end(layout: RunLayout, config: Config, at_end: Callable[[Controller], None]) -> int:
    with run.open_controller(layout, config) as controller:
        screen = view.open_view(sys.stdout)
        for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP):
            signal.signal(number, _request_stop)
        try:
            controller.finish(_drive(controller, lambda: screen.show(_snapshot(controller))))
            screen.show(_snapshot(controller))
        except KeyboardInterrupt:
            screen.close()
            print("\nstopping; jobs end at their next checkpoint …", flush=True)
            controller.cancel_jobs()
            print("stopped. The same command resumes the run.")
            return 130
        except (FatalJobError, TrainingError):
            controller.abandon()
            raise
        except StopRequestedError as error:
            print(f"{error}: the controller ends, its jobs go on; the same command resumes the run", flush=True)
            return 0
        finally:
            screen.close()
        at_end(controller)
    return 0


def tick(options: argparse.Namespace) -> int:
    """One turn of the loop, for cron-like use and for debugging."""
    layout, config = _existing(options)
    with run.open_controller(layout, config) as controller:
        controller.tick()
        for line in view.status_lines(_snapshot(controller)):
            print(line)
    return 0


def status(options: argparse.Namespace) -> int:
    """Shows a run that this or another machine drives, without touching it."""
    layout = RunLayout.of(options.results, options.run)
    if (record := imported.imported_run(layout)) is not None:
        print("\n".join(imported.status_lines(layout, record)))
        return 0
    layout, config = _existing(options)
    state = run.load_state(layout, config)
    live = run.holder(layout)
    shot = progress.snapshot(layout.name, state, config, now=time.time(), live=bool(live))
    for line in view.status_lines(shot):
        print(line)
    for service in read_services(layout).values():
        print(f"  server {service.name}: {service.state} at {service.url}, seen {time.time() - service.seen:.0f} s ago")
    print(f"  controller: {live or 'none is running; the command that started the run resumes it'}")
    if state.scores:
        _print_board(state, config)
    return 0


def rebuild(options: argparse.Namespace) -> int:
    """Reads the whole tree and writes the journal anew from it."""
    layout, config = _existing(options)
    began = time.monotonic()
    with run.open_controller(layout, config) as controller:
        before = run.fingerprint(controller.state)
        controller.replace_state(run.rebuild(layout, config))
        seconds = time.monotonic() - began
        after = run.fingerprint(controller.state)
        print(
            f"rebuilt {len(controller.state.experiments)} experiments, {len(controller.state.scores)} scores and "
            f"{controller.state.generations} pool generations in {seconds:.1f} s; "
            f"{'same state as before' if before == after else f'the state changed: {before} -> {after}'}"
        )
        for message in controller.state.recent:
            if "moved aside" in message:
                print(f"  {message}")
    return 0


def check(options: argparse.Namespace) -> int:
    """Passes a design file through the gate and prints the report."""
    from jobs.check import check_file  # torch is loaded for this command only

    config = load_config(options.config, options.overrides)
    passed, text = check_file(options.file, config, RunLayout(options.results / "check"))
    print(text)
    return 0 if passed else 1


def prepare(options: argparse.Namespace) -> int:
    """Prepares the corpus of a configuration with all cores; goes on where it was stopped."""
    from jobs.data import prepare_corpus  # torch is loaded for this command only
    from jobs.workspace import Workspace

    config = load_config(options.config, options.overrides)
    root = Workspace(RunLayout(options.results / "data"), config).corpora
    try:
        print(prepare_corpus(config.data, root, sys.stdout, time.monotonic))
    except KeyboardInterrupt:
        print("\nstopped. The same command goes on behind the finished shards.")
        return 130
    return 0


def import_published(options: argparse.Namespace) -> int:
    """Makes a run of the files that another project published; nothing of them is executed."""
    layout = RunLayout.of(options.results, options.run)
    published = IMPORTERS[options.origin](options.path)
    created = time.strftime("%Y-%m-%dT%H:%M:%S%z")
    new = import_run.write(layout, published, created=created, code=run.code_version())
    if options.substitute:
        _substitute(layout, load_config(options.config, options.overrides), created)
    record = imported.imported_run(layout)
    assert record is not None
    print(f"{'imported' if new else 'imported before'}: {os.path.relpath(layout.root)}")
    print("\n".join(imported.status_lines(layout, record)))
    return 0


def replay(options: argparse.Namespace) -> int:
    """Makes a recorded proposal of language models again from its transcript, without a server."""
    from jobs.replay import replay as replay_experiment  # torch is loaded for this command only

    layout, _ = _existing(options)
    found = replay_experiment(layout, options.experiment)
    for file in found:
        print(f"{'same' if file.same else 'DIFFERS':8} {file.name}")
    return 0 if all(file.same for file in found) else 1


def extract(options: argparse.Namespace) -> int:
    """Reads a paper and writes its entry for the cognition base, with a language model."""
    from jobs.extract import extract_paper

    path = extract_paper(options.paper, load_config(options.config, options.overrides), options.into)
    print(f"wrote {os.path.relpath(path)}; read it before you believe it")
    return 0


def _substitute(layout: RunLayout, config: Config, created: str) -> None:
    from jobs.substitute import NO_RECURRENCE, substitute  # torch is loaded for this alone

    without = 0
    for attempted in substitute(layout, config.gate, seed=config.search.seed, created=created):
        without += attempted.reason == NO_RECURRENCE
        if attempted.reason and attempted.reason != NO_RECURRENCE:
            print(view.printable(f"{attempted.name} keeps its own recurrence: {attempted.reason}"), flush=True)
    if without:
        print(f"programs without a function that carries a state along the sequence: {without}")


def _drive(controller: Controller, show: Callable[[], None]) -> str:
    shown = 0.0
    while True:
        controller.tick()
        reason = controller.done()
        if reason is not None or time.monotonic() - shown >= 0.5:
            show()
            shown = time.monotonic()
        if reason is not None:
            return reason
        time.sleep(controller.config.limits.tick_seconds)


def _snapshot(controller: Controller) -> view.Snapshot:
    return progress.snapshot(
        controller.layout.name,
        controller.state,
        controller.config,
        now=time.time(),
        known=controller.known,
        trouble=controller.trouble,
    )


def _print_end(layout: RunLayout, state: RunState, config: Config) -> None:
    _print_board(state, config)
    best = progress.best(state)
    if best is not None:
        folder = layout.experiment(best.experiment).root
        print(f"best design: {os.path.relpath(folder)} (architecture.py, motivation.md, score.json)")


def _print_board(state: RunState, config: Config) -> None:
    width = os.get_terminal_size().columns if sys.stdout.isatty() else 120
    board = leaderboard(
        progress.rows(state),
        reference=state.stats[0] if state.stats else None,
        baselines=state.stats,
        noise_level=config.fitness.noise_level,
        width=width,
    )
    view.print_to(sys.stdout, board)
    if stopped := progress.stopped_early(state):
        print(f"stopped early, without a score: {len(stopped)}")
        print("\n".join(f"  {view.printable(line)}" for line in stopped))
    for name, stage in ((name, state.stages.get(name)) for name in config.stages):
        if stage is not None and stage.scores:
            board = leaderboard(
                progress.stage_rows(name, state),
                reference=stage.stats[0],
                baselines=stage.stats,
                noise_level=config.fitness.noise_level,
                width=width,
                title=f"leaderboard of stage {name} ({config.stages[name].scale.steps} steps; speed as in exploration)",
                legend=False,
            )
            view.print_to(sys.stdout, board)
    if uses_agents(config):
        view.print_to(sys.stdout, side_by_side(proposer_rows(state)))


def _existing(options: argparse.Namespace) -> tuple[RunLayout, Config]:
    layout = RunLayout.of(options.results, options.run)
    if not layout.record.exists():
        runs = sorted(path.parent.name for path in options.results.glob("*/run.json"))
        raise ConfigError(
            f"no run {options.run!r} in {options.results}; found {runs or 'none'}, start one with explore"
        )
    return layout, run.read_config(layout)


def _request_stop(number: int, frame: FrameType | None) -> None:
    raise StopRequestedError(f"received {signal.Signals(number).name}")


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The command's options; overrides may stand anywhere behind the command, where argparse alone wants them in one
    piece, and behind a paper or a file not after an option."""
    parser = _parser()
    options, rest = parser.parse_known_args(arguments)
    if unknown := [word for word in rest if word.startswith("-") or "=" not in word or "overrides" not in options]:
        parser.error(f"unrecognized arguments: {' '.join(unknown)}")
    if rest:
        options.overrides = [*options.overrides, *rest]
    return options


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="asiarch", description="Discovers language-model architectures.")
    commands = parser.add_subparsers(required=True, metavar="command")

    def add(
        function: Callable[[argparse.Namespace], int], *, configured: bool, among: Any = commands
    ) -> argparse.ArgumentParser:
        command: argparse.ArgumentParser = among.add_parser(
            function.__name__, help=(function.__doc__ or "").strip().splitlines()[0]
        )
        command.set_defaults(command=function)
        command.add_argument("--results", type=Path, default=Path("results"), help="folder of all runs")
        if configured:
            command.add_argument("--config", default="laptop", help="name in configs/, or a YAML file")
            command.add_argument("overrides", nargs="*", metavar="group.key=value")
        return command

    explore_parser = add(explore, configured=True)
    explore_parser.add_argument("--run", help="name of the run; default: the configuration's name")
    noise_parser = add(noise, configured=True)
    noise_parser.add_argument("--design", help="a seed design; default: the configuration's reference baseline")
    noise_parser.add_argument("--seeds", type=int, default=5, help="how many (default 5)")
    noise_parser.add_argument("--scale", help="the configuration's own, or a stage of it; default: its own")
    noise_parser.add_argument("--run", help="name of the run; default: of configuration, scale and design")
    for function in (tick, status, rebuild):
        add(function, configured=False).add_argument("--run", default="laptop")
    replay_parser = add(replay, configured=False)
    replay_parser.add_argument("experiment", help="id of the experiment")
    replay_parser.add_argument("--run", default="laptop")
    extract_parser = add(extract, configured=False)
    extract_parser.add_argument("paper", type=Path, help="PDF, LaTeX, Markdown or text")
    extract_parser.add_argument("--into", type=Path, default=Path("entries"), help="folder of the new entry")
    extract_parser.add_argument("--config", default="laptop", help="with agents.endpoints and agents.model")
    extract_parser.add_argument("overrides", nargs="*", metavar="group.key=value")
    check_parser = add(check, configured=False)
    check_parser.add_argument("file", type=Path, help="layer program, composed block, or units.json")
    check_parser.add_argument("--config", default="laptop", help="name in configs/, or a YAML file")
    check_parser.add_argument("overrides", nargs="*", metavar="group.key=value")
    data_parser = commands.add_parser("data", help="Prepares the text that models are trained on (data prepare).")
    add(prepare, configured=True, among=data_parser.add_subparsers(required=True, metavar="action"))
    import_parser = commands.add_parser("import", help=(import_published.__doc__ or "").splitlines()[0])
    import_parser.set_defaults(command=import_published)
    import_parser.add_argument("origin", choices=sorted(IMPORTERS), help="who published it")
    import_parser.add_argument("path", type=Path, help="the published file, or the folder that holds the files")
    import_parser.add_argument(
        "--substitute", action="store_true", help="derive designs that use kernels/ for their own recurrence"
    )
    import_parser.add_argument("--config", default="laptop", help="limits of the sandbox (group gate)")
    import_parser.add_argument("overrides", nargs="*", metavar="group.key=value")
    import_parser.add_argument("--run", required=True, help="name of the new run")
    import_parser.add_argument("--results", type=Path, default=Path("results"), help="folder of all runs")
    return parser


if __name__ == "__main__":
    sys.exit(main())
