"""Jobs on a Slurm cluster, as job arrays that submitit's runner executes.

The script and the pickles are submitit's. Submission, state and cancellation go through Slurm's own commands: each
has a time limit, the pickles are in place before Slurm can start a job, and nothing needs accounting.
"""

from __future__ import annotations

import difflib
import math
import os
import re
import shlex
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from submitit.core.utils import DelayedSubmission
from submitit.slurm.slurm import SlurmExecutor

from asiarch_hpc.config import ExecutorConfig, ResourceConfig, ranks_per_node
from asiarch_hpc.controller.scheduler import JobRequest, JobStatus, MakeCallable, State, job_environment
from asiarch_hpc.errors import ConfigError, SchedulerError

# A width is the least and the most that Slurm prints, so it must hold the longest value.
_COLUMNS = {"ArrayJobID": 12, "ArrayTaskID": 12, "Name": 200, "State": 20, "RestartCnt": 8, "Reason": 80}
_FORMAT = ",".join(f"{column}:{width}|" for column, width in _COLUMNS.items())
_TAG = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,179}")

_QUEUED = {"PENDING", "REQUEUED", "REQUEUE_HOLD", "REQUEUE_FED", "SPECIAL_EXIT", "RESV_DEL_HOLD"}
# A job that Slurm will start again is never shown with one of these: while its first attempt is being cleared away
# it is COMPLETING, then PENDING. (In `sacct` NODE_FAIL and PREEMPTED do describe attempts that have a successor.)
_ENDED = {
    "COMPLETED", "CANCELLED", "FAILED", "TIMEOUT", "NODE_FAIL", "PREEMPTED", "BOOT_FAIL", "DEADLINE",
    "OUT_OF_MEMORY", "LAUNCH_FAILED", "RECONFIG_FAIL",
}  # fmt: skip

# Options of sbatch that the configuration has under another name, or that would hide jobs from the controller.
_RESERVED = {
    "time": "timeout_min", "cpus_per_task": "cpus", "mem": "memory_gb", "nodes": "nodes", "num_gpus": "gpus",
    "signal": "executor.signal_seconds", "signal_delay_s": "executor.signal_seconds",
    **dict.fromkeys(
        ("additional_parameters", "array", "cluster_constraint", "clusters", "error", "export", "export_file", "help",
         "hold", "ignore_pbs", "input", "job_name", "no_requeue", "ntasks", "ntasks_per_node", "open_mode", "output",
         "parsable", "quiet", "requeue", "stderr_to_stdout", "test_only", "usage", "use_srun", "verbose", "version",
         "wait", "wrap"),
        "",
    ),
}  # fmt: skip
_DEFAULT_JOBS = 200  # what executor.max_jobs=0 stands for


class SlurmScheduler:
    """Implements `Scheduler` on Slurm.

    The array of a submission is named by its tag, or `<tag>+<first index>` for further arrays of the same tag, so
    that the name and the array index of a job give its name. Each job has its own folder `<folder>/<array>/<index>`
    with its pickles and its log.
    """

    name = "slurm"

    def __init__(
        self,
        prefix: str,
        folder: Path,
        config: ExecutorConfig,
        make_callable: MakeCallable,
        *,
        stages: Sequence[ResourceConfig] = (),
    ) -> None:
        """`prefix` begins every tag of the run and of no other run of this user. `stages` are what trainings of stages
        will ask for: an option that sbatch does not know must not show after days of exploration.

        Raises:
            ConfigError: the resources of a job kind hold an option that sbatch does not know.
        """
        self._prefix = prefix
        self._folder = folder.absolute()
        self._config = config
        self._make_callable = make_callable
        self._array_limit = 0
        self._ids: dict[str, str] = {}
        for resources in (config.propose, config.train, config.assess, *stages):
            self._executor(resources, self._folder, "check")

    def room(self, unfinished: int) -> int:
        return max(0, (self._config.max_jobs or _DEFAULT_JOBS) - unfinished)

    def submit(self, tag: str, jobs: Sequence[JobRequest]) -> list[str]:
        assert tag.startswith(self._prefix), (tag, self._prefix)
        assert _TAG.fullmatch(tag), tag
        assert all(job.name == f"{tag}_{index}" for index, job in enumerate(jobs)), [job.name for job in jobs]
        ids = [""] * len(jobs)
        for part in self._parts(jobs):
            array = f"{tag}+{part[0]}" if part[0] else tag
            number = self._submit_array(array, {index - part[0]: jobs[index] for index in part})
            for index in part:
                ids[index] = f"{number}_{index - part[0]}"
                self._ids[jobs[index].name] = ids[index]
        return ids

    def query(self) -> dict[str, JobStatus]:
        answer = self._command("squeue", "--me", "-h", "-r", "-t", "all", "-O", _FORMAT)
        found: dict[str, JobStatus] = {}
        rest = []
        for line in answer.splitlines():
            values = [value.strip() for value in line.split("|")]
            if len(values) < len(_COLUMNS) or not values[2].startswith(self._prefix):
                continue
            if values[1].isdigit():
                status = _status(int(values[1]), values)
                found[status.name] = status
            else:
                rest.append(values)
        # The tasks of an array that were cancelled before their start are one line that does not say which they were.
        for values in rest:
            for index in self._indices(values[2]):
                status = _status(index, values)
                found.setdefault(status.name, status)
        self._ids |= {name: status.scheduler_id for name, status in found.items()}
        return found

    def cancel(self, names: Sequence[str]) -> None:
        if any(name not in self._ids for name in names):
            self.query()
        numbers = [self._ids[name] for name in names if name in self._ids]
        if numbers:
            self._command("scancel", *numbers)

    def explain(self, names: Sequence[str]) -> dict[str, str]:
        scripts = {path for name in names for path in self._scripts(name.rpartition("_")[0])}
        if not scripts:
            return {}
        since = time.localtime(min(path.stat().st_mtime for path in scripts) - 60)
        try:
            answer = self._command(
                "sacct", "-n", "-P", "-o", "JobID,ExitCode,JobName,State,Elapsed,NodeList",
                "-S", time.strftime("%Y-%m-%dT%H:%M:%S", since),
                "--name", ",".join(sorted(path.parent.name for path in scripts)),
            )  # fmt: skip
        except SchedulerError:
            return {}
        rows = {row[0]: row[1:] for line in answer.splitlines() if len(row := line.split("|", 5)) == 6}
        found = {}
        for number, (code, array, state, elapsed, nodes) in rows.items():
            _, _, index = number.partition("_")
            if index.isdigit() and state.split()[0] in _ENDED:
                # The step is our process; the job's own code is what srun made of it.
                step = rows.get(f"{number}.0", [code])[0]
                found[_job_name(array, int(index))] = f"{state} on {nodes} after {elapsed}, {_exit(step)}"
        return {name: found[name] for name in names if name in found}

    def _indices(self, array: str) -> list[int]:
        """Indices of the tasks that this run submitted in an array."""
        folder = self._folder / array
        return sorted(int(name) for name in os.listdir(folder) if name.isdigit()) if folder.is_dir() else []

    def _scripts(self, tag: str) -> list[Path]:
        return [path for path in self._folder.glob(f"{tag}*/submit.sh") if path.parent.name.partition("+")[0] == tag]

    def _parts(self, jobs: Sequence[JobRequest]) -> Iterator[list[int]]:
        """Indices of jobs for one array each: the same kind and resources, within the array limits."""
        groups: list[list[int]] = []
        for index, job in enumerate(jobs):
            for group in groups:
                if (jobs[group[0]].kind, jobs[group[0]].resources) == (job.kind, job.resources):
                    group.append(index)
                    break
            else:
                groups.append([index])
        for group in groups:
            while group:
                part = [index for index in group if index - group[0] < self._limit()]
                yield part
                group = group[len(part) :]

    def _limit(self) -> int:
        """Tasks of one array: the configured limit within the cluster's, which bounds the index."""
        if not self._array_limit:
            answer = self._command("scontrol", "show", "config")
            match = re.search(r"^MaxArraySize\s*=\s*(\d+)", answer, re.MULTILINE)
            if match is None or int(match[1]) < 1:
                raise SchedulerError(
                    "scontrol show config: found no positive MaxArraySize; this cluster does not take job arrays, "
                    "which asiarch needs: ask its administrators"
                )
            self._array_limit = max(1, min(self._config.array_limit, int(match[1])))
        return self._array_limit

    def _submit_array(self, array: str, jobs: Mapping[int, JobRequest]) -> str:
        """Submits one array and returns its job id."""
        folder = self._folder / array
        first = next(iter(jobs.values()))
        executor, parallel = self._executor(first.resources, folder, first.kind)
        executor.parameters |= {"job_name": array, "map_count": len(jobs)}
        executor.parameters["additional_parameters"]["array"] = ",".join(map(str, jobs)) + parallel
        text = executor._make_submission_file_text(executor._submitit_command_str, array)
        try:
            for index, job in jobs.items():
                (folder / str(index)).mkdir(parents=True, exist_ok=True)
                submission = DelayedSubmission(self._make_callable(job))
                submission.set_timeout(executor.parameters["time"], executor.max_num_timeout)
                submission.dump(folder / str(index) / "job.pkl")
            script = folder / "submit.sh"
            script.write_text(text)
        except OSError as error:
            raise SchedulerError(f"cannot write the files of {array} in {folder}: {error}") from error
        answer = self._command("sbatch", "--parsable", str(script))
        match = re.search(r"^(\d+)(;.*)?$", answer.strip(), re.MULTILINE)
        if match is None:
            raise SchedulerError(f"sbatch {script}: answered {answer.strip()[:500]!r}, expected a job id")
        return match[1]

    def _executor(self, resources: ResourceConfig, folder: Path, kind: str) -> tuple[SlurmExecutor, str]:
        """submitit's executor with the parameters of these resources, and the `%n` suffix of an array."""
        options = self._options(resources.slurm)
        known = SlurmExecutor._valid_parameters()
        minutes = max(1, math.ceil(resources.timeout_min))
        tasks = ranks_per_node(resources) if kind == "train" else 1
        parallel = options.pop("array_parallelism", None)
        parameters: dict[str, Any] = {
            "comment": f"asiarch-hpc {kind}",
            "time": minutes,
            "nodes": resources.nodes,
            "ntasks_per_node": tasks,
            "cpus_per_task": resources.cpus,
            "mem": f"{math.ceil(resources.memory_gb * 1024)}M" if resources.memory_gb > 0 else None,
            "gpus_per_node": resources.gpus or None,
            "signal_delay_s": min(self._config.signal_seconds, minutes * 20),
            "stderr_to_stdout": True,
            "wckey": None,  # submitit's own default is refused where wckeys are enforced
            **{key: value for key, value in options.items() if key in known},
        }
        # Since 22.05 srun does not take --cpus-per-task over from sbatch.
        parameters["srun_args"] = [f"--cpus-per-task={resources.cpus}", *options.get("srun_args", [])]
        if tasks * resources.nodes > 1:
            # Tasks that wait for a dead one would hold their nodes; but the first one may go on alone.
            parameters["srun_args"] = ["--kill-on-bad-exit=1", "--wait=0", *parameters["srun_args"]]
        parameters["setup"] = [*options.get("setup", []), *_setup(folder, resources.cpus)]
        parameters["additional_parameters"] = {
            "requeue": True,
            **{key.replace("_", "-"): value for key, value in options.items() if key not in known},
        }
        try:
            executor = SlurmExecutor(folder / "%a")
            executor.update_parameters(**parameters)
        except RuntimeError as error:
            raise SchedulerError(f"executor.kind=slurm: {error}; expected Slurm's commands on PATH") from error
        return executor, f"%{parallel}" if parallel else ""

    def _options(self, slurm: Mapping[str, Any]) -> dict[str, Any]:
        """Checks the free options of a job kind; keys in the result have underscores."""
        options = {key.replace("-", "_"): value for key, value in slurm.items() if value not in (None, False)}
        if not options:
            return options
        known = set(SlurmExecutor._valid_parameters())
        known |= {word.replace("-", "_") for word in re.findall(r"--([a-z][a-z-]+)", self._command("sbatch", "--help"))}
        known -= set(_RESERVED)
        for key in options:
            if _RESERVED.get(key):
                raise ConfigError(f"executor: slurm.{key} was found; set {_RESERVED[key]} instead")
            if key not in known:
                close = difflib.get_close_matches(key, known, n=1)
                hint = f" (did you mean {close[0]}?)" if close else ""
                raise ConfigError(
                    f"executor: unknown Slurm option slurm.{key}{hint}; valid ones: {', '.join(sorted(known))}"
                )
        return options

    def _command(self, *words: str) -> str:
        return _ask(self._config.command_seconds, *words)


def available(timeout_s: float) -> bool:
    """Whether a Slurm cluster answers `sinfo` within `timeout_s` seconds and has nodes."""
    try:
        return bool(_ask(timeout_s, "sinfo", "-h", "-o", "%D").strip())
    except SchedulerError:
        return False


def _ask(timeout_s: float, *words: str) -> str:
    """Standard output of one of Slurm's commands."""
    try:
        answer = subprocess.run(
            words,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=timeout_s,
            env=_environment(os.environ),
            stdin=subprocess.DEVNULL,
            check=False,
        )
    except FileNotFoundError as error:
        raise SchedulerError(f"{words[0]} is not on PATH; expected Slurm's commands, or executor.kind=local") from error
    except subprocess.TimeoutExpired as error:
        raise SchedulerError(f"{words[0]} gave no answer within {timeout_s:g} s; is Slurm's controller up?") from error
    if answer.returncode:
        message = " ".join((answer.stderr or answer.stdout).split())[-1000:]
        raise SchedulerError(f"{words[0]} failed with status {answer.returncode}: {message}")
    return answer.stdout


def _environment(source: Mapping[str, str]) -> dict[str, str]:
    """The environment for Slurm's commands, and so for the jobs.

    Inside a Slurm job, and in some users' profiles, variables stand that would override the options of the jobs
    (SBATCH_PARTITION), hide them (SQUEUE_STATES), or hand on what holds for the controller's own job (SLURM_MEM_…).
    """
    foreign = (
        "SLURM_",
        "SLURMD_",
        "SBATCH_",
        "SALLOC_",
        "SRUN_",
        "SQUEUE_",
        "SACCT_",
        "SCANCEL_",
        "SINFO_",
        "SCONTROL_",
    )
    kept = ("SLURM_CONF", "SLURM_JWT")
    return {key: value for key, value in source.items() if key in kept or not key.startswith(foreign)}


# For the batch script. srun gives a job up when Slurm's controller is away just then, before anything has run, and says
# so with the status of its own errors, among which are others that last.
_SRUN = """\
srun() {
  local attempt status
  for attempt in 1 2 3; do
    while command -v scontrol && ! scontrol show job "$SLURM_JOB_ID"; do sleep 2; done > /dev/null 2>&1
    SLURM_EXIT_ERROR=213 command srun "$@"
    status=$?
    [ $status = 213 ] || break
  done
  return $status
}"""


def _setup(folder: Path, cpus: int) -> list[str]:
    """Lines of the batch script before srun.

    submitit looks for its pickle under the job's number, which nobody knows before sbatch has answered. A link that
    the job makes itself leaves no moment in which a killed controller's jobs would lack it. A half-written result
    of a killed attempt would make submitit refuse to write another.
    """
    return [
        *(f"export {name}={value}" for name, value in job_environment(cpus).items()),
        f'JOB={shlex.quote(str(folder))}/"$SLURM_ARRAY_TASK_ID/${{SLURM_ARRAY_JOB_ID}}_$SLURM_ARRAY_TASK_ID"',
        '[ -e "$JOB"_submitted.pkl ] || ln -s job.pkl "$JOB"_submitted.pkl',
        'rm -f "$JOB"_*.save_tmp',
        "unset JOB",
        _SRUN,
    ]


def _status(index: int, values: Sequence[str]) -> JobStatus:
    """The state of one task of an array, from the columns of its line."""
    number, _, array, word, restarts, reason = values[: len(_COLUMNS)]
    state: State = "ended" if word in _ENDED else "queued" if word in _QUEUED else "running"
    return JobStatus(
        name=_job_name(array, index),
        state=state,
        scheduler_id=f"{number}_{index}",
        restarts=int(restarts or 0),
        detail=word if state == "ended" or reason in ("", "None") else f"{word} ({reason})",
    )


def _job_name(array: str, index: int) -> str:
    tag, _, first = array.partition("+")
    return f"{tag}_{int(first or 0) + index}"


def _exit(code: str) -> str:
    """Words for sacct's `status:signal`."""
    status, _, number = code.partition(":")
    return f"exit status {status}" if number in ("", "0") else f"signal {number}"
