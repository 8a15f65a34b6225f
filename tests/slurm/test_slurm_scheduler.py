"""SlurmScheduler on a real Slurm. The slow scenarios are started first and looked at last."""

from __future__ import annotations

import itertools
import json
import os
import signal
import subprocess
import sys
import textwrap
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
from slurm_clusters import Cluster, wait_for
from slurm_payloads import Payload

from asiarch_hpc.config import ExecutorConfig, ResourceConfig
from asiarch_hpc.controller.scheduler import JobRequest, JobStatus
from asiarch_hpc.controller.slurm import SlurmScheduler, available
from asiarch_hpc.errors import ConfigError, SchedulerError

pytestmark = pytest.mark.slurm
SMALL = ResourceConfig(timeout_min=10, memory_gb=0.1, slurm={"exclude": "n1"})  # n1 is the node that dies
_numbers = itertools.count()


class Campaign:
    """A scheduler with its folders, and jobs that do what their action says."""

    def __init__(self, root: Path, config: ExecutorConfig | None = None) -> None:
        self.notes = root / "notes"
        self.jobs = root / "jobs of a run"
        self.notes.mkdir(exist_ok=True)
        self.config = config or ExecutorConfig(command_seconds=60)
        self.scheduler = SlurmScheduler("test-run-", self.jobs, self.config, self.payload)

    def payload(self, job: JobRequest) -> Payload:
        return Payload(str(self.notes), job.name, job.arguments["action"])

    def requests(self, *actions: str, resources: ResourceConfig = SMALL) -> tuple[str, list[JobRequest]]:
        tag = f"test-run-{next(_numbers)}"
        jobs = [
            JobRequest(name=f"{tag}_{i}", kind="train", entry="", arguments={"action": action}, resources=resources)
            for i, action in enumerate(actions)
        ]
        return tag, jobs

    def submit(self, *actions: str, resources: ResourceConfig = SMALL) -> list[str]:
        tag, jobs = self.requests(*actions, resources=resources)
        self.scheduler.submit(tag, jobs)
        return [job.name for job in jobs]

    def note(self, name: str, word: str = "0") -> dict[str, object] | None:
        path = self.notes / f"{name}.{word}.json"
        return json.loads(path.read_text()) if path.exists() else None

    def environment(self, name: str) -> dict[str, str]:
        return json.loads((self.notes / f"{name}.0.json").read_text())["environment"]

    def executions(self, name: str) -> list[str]:
        return sorted(path.name for path in self.notes.glob(f"{name}.[0-9]*.json"))

    def ended(self, names: list[str], seconds: float = 90) -> dict[str, JobStatus]:
        return self._reach(names, "ended", seconds)

    def running(self, names: list[str], seconds: float = 90) -> dict[str, JobStatus]:
        found = self._reach(names, "running", seconds)
        for name in names:
            wait_for(lambda: self.note(name), seconds, f"{name} writes")  # noqa: B023
        return found

    def _reach(self, names: list[str], state: str, seconds: float) -> dict[str, JobStatus]:
        def reached() -> dict[str, JobStatus]:
            found = self.scheduler.query()
            return found if all(n in found and found[n].state == state for n in names) else {}

        return wait_for(reached, seconds, f"{names} {state}")


@pytest.fixture
def campaign(tmp_path: Path, plain: Cluster) -> Campaign:
    return Campaign(tmp_path)


@pytest.fixture(scope="session")
def slow_jobs(
    clusters: dict[str, Cluster], tmp_path_factory: pytest.TempPathFactory
) -> tuple[Campaign, list[str], str]:
    """Two jobs that will meet their time limit and one whose node dies; these take a minute of waiting."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SLURM_CONF", clusters["plain"].conf)
        patch.setenv("PYTHONPATH", str(Path(__file__).parent))
        campaign = Campaign(tmp_path_factory.mktemp("slow"))
        [orphaned] = campaign.submit("survive_node", resources=ResourceConfig(timeout_min=10, memory_gb=0.1))
        campaign.running([orphaned])
        assert campaign.environment(orphaned)["SLURM_JOB_NODELIST"] == "n1"
        minute = ResourceConfig(timeout_min=1, memory_gb=0.1, slurm={"exclude": "n1"})
        limited = campaign.submit("stop_and_resume", "stop_and_resume", resources=minute)
        clusters["plain"].kill("n1")
    return campaign, limited, orphaned


def _raw_id(name: str) -> str:
    tag, _, index = name.rpartition("_")
    answer = subprocess.run(
        ["squeue", "-h", "-r", "-t", "all", "-n", tag, "-o", "%K %A"], capture_output=True, text=True, check=True
    )
    return dict(line.split() for line in answer.stdout.splitlines())[index]


def test_an_array_runs_each_job_once(slow_jobs: object, campaign: Campaign) -> None:
    tag, jobs = campaign.requests("quick", "quick", "quick")
    ids = campaign.scheduler.submit(tag, jobs)
    names = [job.name for job in jobs]
    other = SlurmScheduler("other-run-", campaign.jobs, campaign.config, campaign.payload)

    assert set(campaign.scheduler.query()) >= set(names)
    assert not set(other.query()) & set(names)
    found = campaign.ended(names)

    assert [found[name].scheduler_id for name in names] == ids
    assert {found[name].detail for name in names} == {"COMPLETED"}
    assert [campaign.executions(name) for name in names] == [[f"{name}.0.json"] for name in names]
    for index in range(3):
        files = sorted(path.name for path in (campaign.jobs / tag / str(index)).iterdir())
        assert files == [
            f"{ids[index]}_0_log.out",
            f"{ids[index]}_0_result.pkl",
            f"{ids[index]}_submitted.pkl",
            "job.pkl",
        ]


def test_each_kind_has_its_resources_and_nothing_of_the_controllers_own_job(
    campaign: Campaign, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SLURM_JOB_ID", "1")
    monkeypatch.setenv("SLURM_MEM_PER_CPU", "1")
    monkeypatch.setenv("SBATCH_PARTITION", "nowhere")
    monkeypatch.setenv("SQUEUE_STATES", "FAILED")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "7")
    tag, jobs = campaign.requests("wait", "wait", "wait")
    large = ResourceConfig(
        timeout_min=12.5, cpus=2, gpus=2, memory_gb=0.2, slurm={**SMALL.slurm, "partition": "main", "nice": 5}
    )
    jobs = [
        JobRequest(name=job.name, kind=job.kind, entry="", arguments=job.arguments, resources=resources)
        for job, resources in zip(jobs, (SMALL, large, SMALL), strict=True)
    ]
    campaign.scheduler.submit(tag, jobs)
    names = [job.name for job in jobs]
    campaign.running(names)
    described = subprocess.run(
        ["scontrol", "show", "job", _raw_id(f"{tag}+1_0")], capture_output=True, text=True
    ).stdout
    (campaign.notes / "release").touch()
    campaign.ended(names)

    plain, gpus, last = (campaign.environment(name) for name in names)
    assert gpus["CUDA_VISIBLE_DEVICES"] == "0,1"
    assert gpus["SLURM_CPUS_PER_TASK"] == gpus["OMP_NUM_THREADS"] == "2"
    assert (gpus["SLURM_NTASKS"], plain["SLURM_NTASKS"]) == ("2", "1")  # a training has a process for each GPU
    assert "CUDA_VISIBLE_DEVICES" not in plain
    assert not [key for key in plain if key.startswith("SBATCH_")]
    assert "SLURM_MEM_PER_CPU" not in plain
    assert last["SLURM_ARRAY_JOB_ID"] == plain["SLURM_ARRAY_JOB_ID"] != gpus["SLURM_ARRAY_JOB_ID"]
    assert "TimeLimit=00:13:00" in described
    assert "Requeue=1" in described
    assert "Comment=asiarch-hpc train" in described


def test_options_that_sbatch_does_not_know_are_refused_with_the_valid_ones(tmp_path: Path, plain: Cluster) -> None:
    config = ExecutorConfig(train=ResourceConfig(slurm={"partitoin": "main"}))
    with pytest.raises(
        ConfigError, match=r"slurm.partitoin \(did you mean partition\?\).*valid ones:.* account,.* qos"
    ):
        Campaign(tmp_path, config)
    config = ExecutorConfig(train=ResourceConfig(slurm={"time": 5}))
    with pytest.raises(ConfigError, match=r"slurm.time .*set timeout_min"):
        Campaign(tmp_path, config)


def test_a_refusal_says_what_sbatch_said(campaign: Campaign) -> None:
    with pytest.raises(SchedulerError, match="invalid partition"):
        campaign.submit("quick", resources=ResourceConfig(slurm={"partition": "nowhere"}))
    assert available(60)


def test_without_a_cluster_nothing_is_available(
    plain: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SLURM_CONF", str(tmp_path / "none.conf"))
    assert not available(1)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert not available(1)
    with pytest.raises(SchedulerError, match="expected Slurm's commands"):
        Campaign(tmp_path)


def test_arrays_are_split_below_the_clusters_and_the_configured_limit(campaign: Campaign, tmp_path: Path) -> None:
    names = campaign.submit(*["quick"] * 8)  # the cluster's MaxArraySize is 6
    arrays = {status.scheduler_id.split("_")[0] for status in campaign.ended(names).values() if status.name in names}
    assert len(arrays) == 2
    assert all(len(campaign.executions(name)) == 1 for name in names)

    few = Campaign(tmp_path, ExecutorConfig(array_limit=2, command_seconds=60))
    names = few.submit(*["quick"] * 3)
    found = few.ended(names)
    assert found[names[0]].scheduler_id.split("_")[0] == found[names[1]].scheduler_id.split("_")[0]
    assert found[names[2]].scheduler_id.endswith("_0")


def test_cancelled_jobs_are_seen_as_ended(campaign: Campaign, tmp_path: Path) -> None:
    names = campaign.submit("wait", "wait", "wait")
    held = campaign.submit("wait", "wait", resources=ResourceConfig(memory_gb=0.1, slurm={"begin": "now+1hour"}))
    ids = {name: status.scheduler_id for name, status in campaign.running(names).items()}

    again = Campaign(tmp_path)  # a controller that was started anew knows no ids
    again.scheduler.cancel([names[0], "test-run-never_0"])
    subprocess.run(["scancel", ids[names[1]]], check=True)
    subprocess.run(["scancel", "--name", held[0].rpartition("_")[0]], check=True)
    found = again.ended([names[0], names[1], *held])

    assert {found[name].detail for name in (*names[:2], *held)} == {"CANCELLED"}
    assert found[names[2]].state == "running"
    (campaign.notes / "release").touch()
    assert campaign.ended(names)[names[2]].detail == "COMPLETED"


def test_a_process_that_dies_without_a_word_is_seen_as_ended(campaign: Campaign) -> None:
    [name] = campaign.submit("kill")
    assert campaign.ended([name])[name].detail == "FAILED"
    assert not list(campaign.jobs.glob("*/0/*result.pkl"))
    assert campaign.scheduler.explain([name]) == {}  # this cluster keeps no accounts


def test_a_controller_that_dies_right_after_sbatch_loses_nothing(campaign: Campaign, tmp_path: Path) -> None:
    tag, jobs = campaign.requests("quick", "quick")
    real = subprocess.run(["which", "sbatch"], capture_output=True, text=True, check=True).stdout.strip()
    deadly = tmp_path / "bin" / "sbatch"
    deadly.parent.mkdir()
    deadly.write_text(f'#!/bin/sh\n{real} "$@" && case "$*" in *parsable*) kill -9 $PPID ;; esac\n')
    deadly.chmod(0o755)
    program = textwrap.dedent(f"""
        from pathlib import Path
        from asiarch_hpc.config import ExecutorConfig, ResourceConfig
        from asiarch_hpc.controller.scheduler import JobRequest
        from asiarch_hpc.controller.slurm import SlurmScheduler
        from slurm_payloads import Payload
        make = lambda job: Payload({str(campaign.notes)!r}, job.name, "quick")
        resources = ResourceConfig(memory_gb=0.1)
        jobs = [JobRequest(name=f"{tag}_{{i}}", kind="train", entry="", arguments={{}}, resources=resources)
                for i in range(2)]
        SlurmScheduler("test-run-", Path({str(campaign.jobs)!r}), ExecutorConfig(), make).submit({tag!r}, jobs)
    """)
    repository = Path(__file__).resolve().parents[2]
    environment = {**os.environ, "PATH": f"{deadly.parent}:{os.environ['PATH']}"}
    killed = subprocess.run([sys.executable, "-c", program], env=environment, cwd=repository, check=False)
    assert killed.returncode == -signal.SIGKILL

    names = [job.name for job in jobs]
    found = campaign.ended(names)
    assert {found[name].detail for name in names} == {"COMPLETED"}
    assert all(len(campaign.executions(name)) == 1 for name in names)


def test_accounts_explain_an_end(accounting: Cluster, tmp_path: Path) -> None:
    campaign = Campaign(tmp_path)
    names = campaign.submit("kill", "wait", "quick")
    campaign.running(names[1:2])
    campaign.scheduler.cancel(names[1:2])
    campaign.ended(names)
    reasons = wait_for(lambda: (r := campaign.scheduler.explain(names)) and len(r) == 3 and r, 60, "sacct knows")

    assert "FAILED on n" in reasons[names[0]]
    assert "signal 9" in reasons[names[0]]
    assert reasons[names[1]].startswith(f"CANCELLED by {os.getuid()}")
    assert reasons[names[2]].endswith("exit status 0")
    assert campaign.scheduler.explain(["test-run-never_0"]) == {}


@pytest.mark.slow
def test_a_preempted_job_is_warned_requeued_and_resumes(accounting: Cluster, tmp_path: Path) -> None:
    campaign = Campaign(tmp_path)
    whole = {"exclusive": True, "nodelist": "n2"}
    [low] = campaign.submit("stop_and_resume", resources=ResourceConfig(memory_gb=0.1, slurm=whole))
    wait_for(lambda: campaign.note(low, "listening"), 60, "the job listens")
    [high] = campaign.submit("quick", resources=ResourceConfig(memory_gb=0.1, slurm={**whole, "partition": "high"}))

    seen: list[JobStatus] = []

    def resumed() -> bool:
        seen.append(campaign.scheduler.query()[low])
        return campaign.note(low, "resumed") is not None

    wait_for(resumed, 120, "the job resumes")
    found = campaign.ended([low, high])

    assert (campaign.note(low, "warned") or {})["signal"] == signal.SIGUSR2
    assert not [status for status in seen if status.state == "ended" and status.restarts == 0], seen
    assert "queued" in {status.state for status in seen}
    assert found[low].restarts == 1
    assert found[low].detail == found[high].detail == "COMPLETED"


@pytest.mark.slow
def test_nothing_is_lost_or_doubled_while_slurms_controller_is_away(accounting: Cluster, tmp_path: Path) -> None:
    campaign = Campaign(tmp_path)
    [before] = campaign.submit("wait")
    campaign.running([before])
    # Between these jobs' look for the controller and srun it goes away.
    looked, away = f"{campaign.notes}/looked-$SLURM_ARRAY_TASK_ID", campaign.notes / "away"
    pause = f'scontrol() {{ command scontrol "$@" && touch {looked} && until [ -e {away} ]; do sleep 0.1; done; }}'
    paused = replace(SMALL, slurm={**SMALL.slurm, "setup": [pause]})
    unclear, refused = campaign.requests("quick", "quick", resources=paused), campaign.requests("quick")

    def fails(call: object, *arguments: object) -> str:
        with pytest.raises(SchedulerError) as caught:
            call(*arguments)  # type: ignore[operator]
        return str(caught.value)

    with ThreadPoolExecutor() as pool:
        # A controller that hangs takes the request and answers too late.
        os.kill(accounting.pid("slurmctld"), signal.SIGSTOP)
        hanging = [
            pool.submit(fails, campaign.scheduler.submit, *unclear),
            pool.submit(fails, campaign.scheduler.query),
        ]
        assert [call.result() for call in hanging]
        os.kill(accounting.pid("slurmctld"), signal.SIGCONT)
        names = [job.name for job in unclear[1]]
        wait_for(lambda: set(names) <= set(campaign.scheduler.query()), 60, "the unclear submission arrives")
        wait_for(lambda: len(list(campaign.notes.glob("looked-*"))) == 2, 60, "its jobs find the controller")

        accounting.end("slurmctld")
        away.touch()
        calls = [
            pool.submit(fails, campaign.scheduler.submit, *refused),
            pool.submit(fails, campaign.scheduler.query),
            pool.submit(fails, campaign.scheduler.cancel, [before]),
        ]
        assert [call.result() for call in calls]
    logs = [*campaign.jobs.glob(f"{unclear[0]}/*/*_log.out")]
    wait_for(lambda: all("Unable to confirm allocation" in log.read_text() for log in logs), 60, "srun gives up")
    assert not any(campaign.executions(name) for name in names)
    accounting.start()

    campaign.ended(names, 180)  # srun asks again a minute later where nodes have not yet come back
    found = campaign.scheduler.query()
    assert found[before].state == "running"
    assert not {job.name for job in refused[1]} & set(found)
    (campaign.notes / "release").touch()
    found = campaign.ended([before, *names])
    assert found[before].restarts == 0
    # Slurm may start a job again whose launch its own restart interrupted.
    assert all(len(campaign.executions(name)) == found[name].restarts + 1 for name in (before, *names))


def test_a_launch_that_srun_refuses_again_and_again_ends_the_job(campaign: Campaign) -> None:
    refused = replace(SMALL, slurm={**SMALL.slurm, "srun_args": ["--ntasks=99"]})
    [name] = campaign.submit("quick", resources=refused)
    status = campaign.ended([name])[name]
    assert (status.detail, status.restarts) == ("FAILED", 0)
    [log] = campaign.jobs.glob("*/0/*_log.out")
    assert log.read_text().count("srun: error: Unable to create step") == 3
    assert not campaign.executions(name)


@pytest.mark.slow
def test_a_job_is_warned_before_its_time_limit_and_resumes(
    slow_jobs: tuple[Campaign, list[str], str], plain: Cluster
) -> None:
    campaign, limited, _ = slow_jobs
    for name in limited:
        wait_for(lambda: campaign.note(name, "resumed"), 180, f"{name} resumes")  # noqa: B023

    found = campaign.ended(limited)
    for name in limited:
        assert (campaign.note(name, "warned") or {})["signal"] == signal.SIGUSR2
        assert (found[name].detail, found[name].restarts) == ("COMPLETED", 1)


@pytest.mark.slow
def test_a_job_of_a_dead_node_runs_again_elsewhere(slow_jobs: tuple[Campaign, list[str], str], plain: Cluster) -> None:
    campaign, _, orphaned = slow_jobs
    seen: list[JobStatus] = []

    def ran_again() -> bool:
        seen.append(campaign.scheduler.query()[orphaned])
        return campaign.note(orphaned, "1") is not None

    wait_for(ran_again, 180, "the job runs again")
    orphan = (campaign.note(orphaned) or {})["pid"]
    assert Path(f"/proc/{orphan}").exists()  # the first attempt still lives: why results carry their attempt
    status = campaign.ended([orphaned])[orphaned]
    plain.start()

    assert not [status for status in seen if status.state == "ended" and status.restarts == 0], seen
    assert (status.detail, status.restarts) == ("COMPLETED", 1)
