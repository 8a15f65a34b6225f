"""Local lm-eval tasks, built from held-out text and from recall formats; nothing is downloaded.

Every task is a YAML definition beside a JSON-lines file in one folder whose name is the hash of its content, so
that building twice, or in two processes at once, gives the same folder. The folder also works with lm-eval's own
command line: `cd FOLDER && lm_eval --include_path . --tasks recall …`.

- text_choice: 64 bytes of text, and four passages of different documents, one of which they follow;
- line_completion: a line, and four places of its document, one of which it follows;
- recall: multi-query associative recall (arXiv 2312.04927, section 3) in words: pairs of key and value, then a key;
  the choices are the values that occur;
- selective_copy: selective copying (arXiv 2312.00752, section 3.1) in words: repeat the marked words, in order;
  the choices are orders of the same words, so that only the order can tell them apart.

The two recall tasks mix sizes from trivial to hard, so that small and large models both have something to gain.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import shutil
import tempfile
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from asiarch_hpc.errors import EvaluationError
from asiarch_hpc.evaluation.passages import Passage, line_passages, text_passages

ROLLING = "heldout_text"

# Words that are one token each in a small vocabulary trained on English or on code, so that a tiny model can learn
# the formats. Keys, values and filler share no word.
_KEYS = (
    "name file line time list type size mode path code data text group node user field day year month link loop "
    "state class string"
)
_VALUES = (
    "one two true first last next new open raw back base end read write call same all any each set run use more only"
)
_FILLER = "the of a in to is and for"
KEYS, VALUES, FILLER = _KEYS.split(), _VALUES.split(), _FILLER.split()
PAIRS = (2, 4, 8, 16)
QUERIES = 12  # at most, in one training document
MARKED = (2, 4, 6, 8)
ORDERS = 4
# Contexts whose checksum is divisible by this belong to the evaluation, all others to training: no seed can make
# the two meet.
HELDOUT_RESIDUE = 5

Row = dict[str, object]

_YAML = """\
task: {name}
dataset_path: json
dataset_kwargs:
  data_files:
    test: {name}.jsonl
test_split: test
num_fewshot: 0
{form}metadata:
  version: 1
"""
_METRIC = """\
target_delimiter: ""
metric_list:
  - metric: acc
    aggregation: mean
    higher_is_better: true
"""
# One context, several continuations.
_CONTINUATIONS = """\
output_type: multiple_choice
doc_to_text: context
doc_to_choice: choices
doc_to_target: answer
"""
# Several contexts, one continuation: lm-eval calls a task so when its text is the number of a choice.
_CONTEXTS = """\
output_type: multiple_choice
doc_to_text: answer
doc_to_choice: choices
doc_to_target: continuation
"""
_ROLLING = """\
output_type: loglikelihood_rolling
doc_to_text: ""
doc_to_target: text
metric_list:
  - metric: bits_per_byte
    aggregation: bits_per_byte
    higher_is_better: false
"""


def recall_documents(seed: int) -> Iterator[str]:
    """Endless training documents in the recall and copy formats, none of whose contexts the evaluation ever asks.

    Deterministic for `seed`; 15 to 75 tokens each with a vocabulary of 2048.
    """
    rng = random.Random(f"asiarch recall training {seed}")
    while True:
        if rng.random() < 0.5:
            pairs = _pairs(rng)
            context = _recall_context(pairs)
            queries = rng.sample(pairs, min(len(pairs), QUERIES))
            answer = " ".join(f"{key} {value}" for key, value in queries)
        else:
            marked, context = _copy_context(rng)
            answer = " ".join(marked)
        if not _is_heldout(context):
            yield f"{context} {answer}\n"


def build_tasks(
    texts: Sequence[str],
    *,
    names: Sequence[str],
    questions: int,
    seed: int,
    folder: Path,
    rolling: Sequence[str] = (),
) -> Path:
    """Writes the tasks' YAML and JSON-lines files once, atomically, and returns their folder.

    Args:
        texts: held-out documents, in a fixed order; the source of text_choice and line_completion.
        names: tasks to build, of `text_choice`, `line_completion`, `recall`, `selective_copy`.
        questions: questions per task.
        seed: of the questions; use the same one for everything that is to be compared.
        folder: parent of the returned folder; created when absent.
        rolling: documents of the rolling-likelihood task `heldout_text`; without any there is no such task.

    Raises:
        EvaluationError: an unknown task, too little held-out text for the questions, a folder that is not writable.
    """
    files: dict[str, bytes] = {}
    for name in names:
        if name not in _QUESTIONS:
            raise EvaluationError(f"evaluation.tasks names {name!r}; expected tasks of {sorted(_QUESTIONS)}")
        rows = _questions(name, texts, questions, seed)
        form = _CONTEXTS if "continuation" in rows[0] else _CONTINUATIONS
        files[f"{name}.yaml"] = _YAML.format(name=name, form=form + _METRIC).encode()
        files[f"{name}.jsonl"] = _json_lines(rows)
    if rolling:
        files[f"{ROLLING}.yaml"] = _YAML.format(name=ROLLING, form=_ROLLING).encode()
        files[f"{ROLLING}.jsonl"] = _json_lines([{"text": text} for text in rolling])
    return _write_once(files, folder)


def _questions(name: str, texts: Sequence[str], count: int, seed: int) -> list[Row]:
    rng = random.Random(f"asiarch evaluation {name} {seed}")
    rows: dict[str, Row] = {}
    for _ in range(20 * count + 200):
        if len(rows) == count:
            return list(rows.values())
        row = _QUESTIONS[name](rng, texts)
        if row is not None:
            rows.setdefault(str(row.get("context", row.get("continuation"))), row)
    raise EvaluationError(
        f"task {name}: found {len(rows)} of {count} questions in {len(texts)} held-out documents "
        f"({sum(map(len, texts))} characters); give more held-out documents (data.heldout_fraction), "
        f"lower evaluation.questions, or take {name} out of evaluation.tasks"
    )


def _text_question(rng: random.Random, texts: Sequence[str]) -> Row | None:
    return _passage_question(rng, text_passages(rng, texts))


def _line_question(rng: random.Random, texts: Sequence[str]) -> Row | None:
    return _passage_question(rng, line_passages(rng, texts))


def _passage_question(rng: random.Random, passages: Sequence[Passage] | None) -> Row | None:
    if passages is None:
        return None
    answer = rng.randrange(len(passages))
    return {
        "continuation": passages[answer][1],
        "choices": [context for context, _ in passages],
        "answer": answer,
    }


def _recall_question(rng: random.Random, texts: Sequence[str]) -> Row | None:
    pairs = _pairs(rng)
    context = _recall_context(pairs)
    if not _is_heldout(context):
        return None
    answer = rng.randrange(len(pairs))
    return {
        "context": f"{context} {pairs[answer][0]}",
        "choices": [f" {value}" for _, value in pairs],
        "answer": answer,
    }


def _copy_question(rng: random.Random, texts: Sequence[str]) -> Row | None:
    marked, context = _copy_context(rng)
    if not _is_heldout(context):
        return None
    swaps: list[list[str]] = []  # the nearest wrong orders: two neighbours exchanged
    for at in range(len(marked) - 1):
        order = marked.copy()
        order[at], order[at + 1] = order[at + 1], order[at]
        swaps.append(order)
    orders = [marked, *rng.sample(swaps, min(len(swaps), ORDERS - 1))]
    rng.shuffle(orders)
    return {
        "context": context,
        "choices": [" " + " ".join(order) for order in orders],
        "answer": orders.index(marked),
    }


def _pairs(rng: random.Random) -> list[tuple[str, str]]:
    count = rng.choice(PAIRS)
    return list(zip(rng.sample(KEYS, count), rng.sample(VALUES, count), strict=True))


def _recall_context(pairs: Sequence[tuple[str, str]]) -> str:
    return "map: " + " ".join(f"{key} {value}" for key, value in pairs) + "\nget:"


def _copy_context(rng: random.Random) -> tuple[list[str], str]:
    marked = rng.sample(VALUES, rng.choice(MARKED))
    words: list[str] = []
    for word in marked:
        words += [rng.choice(FILLER) for _ in range(rng.randrange(1, 4))] + ["+", word]
    words += [rng.choice(FILLER) for _ in range(rng.randrange(3))]
    return marked, "copy: " + " ".join(words) + "\nout:"


def _is_heldout(context: str) -> bool:
    return zlib.crc32(context.encode()) % HELDOUT_RESIDUE == 0


_QUESTIONS: Mapping[str, Callable[[random.Random, Sequence[str]], Row | None]] = {
    "text_choice": _text_question,
    "line_completion": _line_question,
    "recall": _recall_question,
    "selective_copy": _copy_question,
}


def _json_lines(rows: Sequence[Row]) -> bytes:
    return "".join(json.dumps(row, ensure_ascii=True, sort_keys=True) + "\n" for row in rows).encode()


def _write_once(files: Mapping[str, bytes], folder: Path) -> Path:
    digest = hashlib.sha256()
    for name, content in sorted(files.items()):
        digest.update(f"{name} {len(content)}\n".encode() + content)
    target = folder / digest.hexdigest()[:16]
    try:
        if not target.is_dir():
            folder.mkdir(parents=True, exist_ok=True)
            draft = Path(tempfile.mkdtemp(prefix=".draft-", dir=folder))
            try:
                for name, content in files.items():
                    _write(draft / name, content)
                os.rename(draft, target)
            except OSError:
                shutil.rmtree(draft, ignore_errors=True)
                if not target.is_dir():  # else another process was first, and wrote the same bytes
                    raise
        for name, content in files.items():
            if not (target / name).is_file() or (target / name).read_bytes() != content:
                _replace(target / name, content)  # damaged or edited: questions must not change within a run
    except OSError as error:
        raise EvaluationError(
            f"{target}: the task files cannot be written ({error}); free the disk or fix it"
        ) from error
    return target


def _write(path: Path, content: bytes) -> None:
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def _replace(path: Path, content: bytes) -> None:
    handle, draft = tempfile.mkstemp(prefix=".draft-", dir=path.parent)
    os.close(handle)
    _write(Path(draft), content)
    os.replace(draft, path)
