"""Published tasks on files ask exactly what lm-eval's own definitions ask; missing data are named."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import lm_eval.tasks
import pytest
from lm_eval.api.task import ConfigurableTask, Task
from lm_eval.tasks._yaml_loader import load_yaml

from asiarch_hpc.config import load_config
from asiarch_hpc.config.loading import SUITES
from asiarch_hpc.errors import ConfigError
from asiarch_hpc.evaluation.harness import _quiet, published_tasks
from asiarch_hpc.evaluation.published import _definitions
from asiarch_hpc.evaluation.sources import OWN_TASKS, check_sources

SHARED = Path(__file__).resolve().parents[3] / "shared" / "data" / "eval"
LIBRARY = Path(lm_eval.tasks.__file__).parent
# Definition and file of a task whose rows have the very fields of its data set.
SAME_FIELDS = {
    "arc_easy": ("arc/arc_easy.yaml", "test"),
    "arc_challenge": ("arc/arc_challenge.yaml", "test"),
    "boolq": ("super_glue/boolq/default.yaml", "validation"),
    "lambada_openai": ("lambada/lambada_openai.yaml", "test"),
    "openbookqa": ("openbookqa/openbookqa.yaml", "test"),
    "piqa": ("piqa/piqa.yaml", "validation"),
    "winogrande": ("winogrande/default.yaml", "validation"),
    "wnli": ("glue/wnli/default.yaml", "validation"),
}
HELLASWAG = {
    "ind": 4,
    "activity_label": "Removing ice from car",
    "ctx_a": "Then, the man writes over the snow  covering the window of a car.",
    "ctx_b": "then",
    "endings": [", the man adds wax [title]to it.", ", a person boards a train.", "x", "y"],
    "label": "1",
}


def asked(task: Task, limit: int = 40) -> list[tuple[str, Any]]:
    with _quiet():
        task.build_all_requests(limit=limit)
    return [(instance.request_type, instance.args) for instance in task.instances]


def write(folder: Path, name: str, *rows: dict[str, Any]) -> Path:
    path = folder / f"{name}.jsonl"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.mark.parametrize("name", SAME_FIELDS)
def test_requests_and_metrics_are_those_of_the_library(name: str, tmp_path: Path) -> None:
    """Its definition, with nothing but the data set replaced, by its own means."""
    if not SHARED.is_dir():
        pytest.skip("no ../shared/data/eval")
    definition, split = SAME_FIELDS[name]
    config = load_yaml(LIBRARY / definition, resolve_func=True)
    file = tmp_path / "rows.jsonl"  # a part: the library prepares all of it
    file.write_text("\n".join((SHARED / name / f"{split}.jsonl").read_text().splitlines()[:40]) + "\n")
    kwargs = {"data_files": {split: str(file)}, "cache_dir": str(tmp_path)}
    replaced = {"dataset_path": "json", "dataset_name": None, "dataset_kwargs": kwargs, "training_split": None}
    with _quiet():
        theirs = ConfigurableTask(config={**config, **replaced, "fewshot_split": split})
    (ours,) = published_tasks([name], str(SHARED))[name]
    assert asked(ours) == asked(theirs)
    assert ours.config.metric_list == theirs.config.metric_list
    assert ours._metric_fn_list == theirs._metric_fn_list
    assert ours._aggregation_list == theirs._aggregation_list


def test_hellaswag_as_it_is_and_as_it_is_asked_give_the_same(tmp_path: Path) -> None:
    query = "Removing ice from car: Then, the man writes over the snow covering the window of a car. Then"
    choices = [", the man adds wax. to it.", ", a person boards a train.", "x", "y"]
    write(tmp_path / "raw", "hellaswag/validation", HELLASWAG)
    write(tmp_path / "made", "hellaswag/validation", {"query": query, "choices": choices, "label": 1})
    ((raw,), (made,)) = (published_tasks(["hellaswag"], str(tmp_path / at))["hellaswag"] for at in ("raw", "made"))
    assert asked(raw) == asked(made)
    assert asked(raw)[1] == ("loglikelihood", (query, " , a person boards a train."))


def test_winograds_two_forms_give_the_same(tmp_path: Path) -> None:
    text = "The lawyer asked the witness a question, but he was reluctant to repeat it."
    options = ["The lawyer", "The witness"]
    row = {"text": text, "options": options, "label": 0, "pronoun": "he", "pronoun_loc": text.index("he was")}
    short = {
        "prefix": "The lawyer asked the witness a question, but",
        "suffix": "was reluctant to repeat it.",
        "options": options,
        "label": 0,
    }
    write(tmp_path / "long", "wsc273/test", row)
    write(tmp_path / "short", "wsc273/test", short)
    ((long,), (brief,)) = (published_tasks(["wsc273"], str(tmp_path / at))["wsc273"] for at in ("long", "short"))
    assert asked(long) == asked(brief)
    # Both blanks of the continuation are lm-eval's.
    assert asked(brief)[0][1] == (
        short["prefix"] + " the lawyer",
        "  was reluctant to repeat it.",
    )


def test_a_group_is_all_of_its_members(tmp_path: Path) -> None:
    if not SHARED.is_dir():
        pytest.skip("no ../shared/data/eval")
    tasks = published_tasks(["blimp"], str(SHARED))["blimp"]
    assert len({task.config.task for task in tasks}) == 67
    first = json.loads((SHARED / "blimp/adjunct_island.jsonl").read_text().splitlines()[0])
    (task,) = (task for task in tasks if task.config.task == "blimp_adjunct_island")
    assert [args for _, args in asked(task, 1)] == [
        ("", " " + first["sentence_good"]),
        ("", " " + first["sentence_bad"]),
    ]


def test_squad_without_the_hub(tmp_path: Path) -> None:
    answers = [{"text": "the Tenth century", "answer_start": 0}, {"text": "10th century", "answer_start": 0}]
    questions = [
        {"id": "a", "question": "When?", "answers": answers, "is_impossible": False},
        {"id": "b", "question": "Why?", "answers": [], "is_impossible": True},
    ]
    file = tmp_path / "squadv2" / "dev-v2.0.json"
    file.parent.mkdir()
    file.write_text(json.dumps({"data": [{"title": "T", "paragraphs": [{"context": "C.", "qas": questions}]}]}))
    (task,) = published_tasks(["squadv2"], str(tmp_path))["squadv2"]
    (kind, (prompt, arguments)), (other, pair), *_ = asked(task)
    assert (kind, prompt) == ("generate_until", "Title: T\n\nBackground: C.\n\nQuestion: When?\n\nAnswer:")
    assert (other, pair, arguments["until"]) == ("loglikelihood", (prompt, " unanswerable"), ["\n"])
    first, second = task.eval_docs
    assert task.process_results(first, [" Tenth, century!", (-1.0, False)]) == {"exact": 1.0, "f1": 1.0}
    assert task.process_results(first, ["10th or 11th century", (-1.0, False)])["f1"] == pytest.approx(2 * 2 / 6)
    assert task.process_results(second, ["", (-1.0, False)]) == {"exact": 1.0, "f1": 1.0}
    assert task.process_results(second, ["because", (-1.0, False)]) == {"exact": 0.0, "f1": 0.0}
    assert task.aggregation()["f1"]([1.0, 0.0]) == 0.5


def test_missing_files_are_named_with_what_can_run(tmp_path: Path) -> None:
    write(tmp_path, "wnli/validation", {"sentence1": "a", "sentence2": "b", "label": 0})
    write(tmp_path, "piqa/test", {"goal": "a", "sol1": "b", "sol2": "c", "label": 0})
    names = ["recall", "wnli", "boolq", "piqa"]
    with pytest.raises(ConfigError, match=r"1 of 4 .*boolq: no .*boolq/\*\.jsonl.*tasks=\[recall, wnli, piqa\]"):
        check_sources(names, str(tmp_path))
    with pytest.raises(ConfigError, match=r"piqa: .*no file validation.jsonl \(found \['test'\]\)"):
        published_tasks(names[1:], str(tmp_path))
    check_sources(["recall", "wnli"], str(tmp_path))
    check_sources(names, "")
    if importlib.util.find_spec("tinyBenchmarks") is None:
        with pytest.raises(ConfigError, match="tinyGSM8k: needs the package tinyBenchmarks"):
            check_sources(["wnli", "tinyGSM8k"], "")


@pytest.mark.slow  # for lm-eval's index of all tasks
def test_an_unknown_task_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"no_such_task: .*lm-eval has no task of this name"):
        published_tasks(["no_such_task"], str(tmp_path))


@pytest.mark.parametrize("content", ["", "[1]\n", "{broken\n"])
def test_damaged_files_are_refused(tmp_path: Path, content: str) -> None:
    write(tmp_path, "wnli/validation").write_text(content)
    with pytest.raises(ConfigError, match=r"wnli: .*validation\.jsonl: .*JSON lines"):
        published_tasks(["wnli"], str(tmp_path))


UNREACHABLE = """
import socket, sys
from asiarch_hpc.errors import ConfigError
from asiarch_hpc.evaluation.harness import published_tasks

def refuse(*args, **options):
    raise OSError("no network here")

socket.getaddrinfo = socket.create_connection = socket.socket.connect = refuse
try:
    published_tasks(["wnli", "piqa"], "")
except ConfigError as error:
    print(error)
"""


@pytest.mark.slow
def test_without_a_hub_the_message_says_so(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", UNREACHABLE],
        env={**os.environ, "HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "1"},
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert done.stdout.startswith("2 of 2 evaluation tasks cannot run: wnli: "), done.stdout + done.stderr
    assert "piqa: " in done.stdout


@pytest.mark.parametrize("suite", sorted(path.stem for path in SUITES.glob("*.yaml")))
def test_suites_hold_tasks_that_lm_eval_defines(suite: str) -> None:
    config = load_config("laptop", [f"evaluation.suite={suite}"]).evaluation
    for name in config.tasks:
        assert name not in OWN_TASKS
        metric = config.metrics.get(name, "acc")
        if name.startswith("tiny") and importlib.util.find_spec("tinyBenchmarks") is None:
            continue  # their definitions import it
        for definition in _definitions(name):
            known = [entry["metric"] for entry in definition.get("metric_list", [])]
            assert metric.partition(",")[0] in known or "class" in definition or "process_results" in definition
    assert {task for mean in config.averages.values() for task in mean} <= set(config.tasks)


def test_a_suite_stands_below_what_names_it() -> None:
    config = load_config("laptop", ["evaluation.suite=asi_arch", "evaluation.limit=7"]).evaluation
    assert (len(config.tasks), config.limit, config.begin_with_eos) == (12, 7, False)
    staged = load_config("laptop", ["stages.verify.evaluation.suite=asi_arch_final"])
    assert len(staged.stages["verify"].evaluation.tasks) == 8
    assert len(staged.evaluation.tasks) == 4
    with pytest.raises(ConfigError, match=r"evaluation\.suite='published': one of \['asi_arch'"):
        load_config("laptop", ["evaluation.suite=published"])
    with pytest.raises(ConfigError, match=r"evaluation\.benchmark='eight': one of the averages \['seven'\]"):
        load_config("laptop", ["evaluation.suite=asi_arch", "evaluation.benchmark=eight"])
    with pytest.raises(ConfigError, match=r"evaluation\.benchmark=seven: .*not \['piqa'"):
        load_config(
            "laptop",
            [
                "evaluation.suite=asi_arch",
                "evaluation.benchmark=seven",
                "evaluation.tasks=[arc_easy, arc_challenge, boolq, hellaswag]",
            ],
        )
