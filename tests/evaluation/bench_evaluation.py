"""How long the evaluation of a 20M model takes: all its tasks on one GPU, from the weights' bytes to the scores.

    python tests/evaluation/bench_evaluation.py --data ../shared/data/eval --tokenizer ../shared/data/tokenizer/gpt2

The weights are random, which costs the same as trained ones, or more: answers that are generated neither end nor
repeat themselves before their last token (`evaluation.suite=local_all` has some). The limits on the loss are lifted for
them. Everything else is what a trial's evaluation does: the blocks in confined children, the head in this process.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import hashlib
import io
import sysconfig
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import torch

from asiarch_hpc.config import load_config
from asiarch_hpc.designs.compose import compose
from asiarch_hpc.designs.seeds import seed_tree
from asiarch_hpc.evaluation.evaluate import evaluate
from asiarch_hpc.evaluation.scoring import ServedModel
from asiarch_hpc.evaluation.sources import OWN_TASKS
from asiarch_hpc.records import GateReport
from asiarch_hpc.training import tokenizer as tokenizers
from asiarch_hpc.training.backbone import build_model
from jobs.evaluate import _serve
from jobs.workspace import Workspace


class Counted:
    """States of a served model, counting what is asked of them and how long the answers are awaited."""

    tokens = calls = 0
    waited_s = first_s = 0.0

    def __init__(self, inner: object) -> None:
        self._inner = cast("Counted", inner)

    def submit(self, ids: torch.Tensor) -> None:
        Counted.tokens += ids.numel()
        Counted.calls += 1
        self._inner.submit(ids)

    def collect(self) -> torch.Tensor:
        started = time.monotonic()
        answer = self._inner.collect()
        Counted.waited_s += time.monotonic() - started
        Counted.first_s = Counted.first_s or Counted.waited_s
        return answer


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="../shared/data/eval")
    parser.add_argument("--tokenizer", default="../shared/data/tokenizer/gpt2")
    parser.add_argument("--design", default="delta_net")
    parser.add_argument("--dim", type=int, default=256)
    parser.add_argument("--depth", type=int, default=8)
    parser.add_argument("--length", type=int, default=2048)
    parser.add_argument("overrides", nargs="*", default=[], help="such as evaluation.limit=50 evaluation.batch_size=32")
    return parser.parse_args()


def main() -> None:
    options = arguments()
    config = load_config(
        "paper",
        [
            "evaluation.suite=local",
            f"evaluation.data={options.data}",
            "evaluation.min_margin=-1000",
            "evaluation.causality_tolerance=1000",
            f"scale.dim={options.dim}",
            "scale.heads=8",
            f"scale.depth={options.depth}",
            f"scale.length={options.length}",
            "executor.train.memory_gb=64",
            *options.overrides,
        ],
    )
    codec = tokenizers.load(Path(options.tokenizer))
    source = compose(seed_tree(options.design))
    gate = cast(GateReport, SimpleNamespace(dim=options.dim, depth=options.depth, only_precision=""))
    kernels = Path(tempfile.gettempdir()) / "asiarch-no-kernels"
    space = cast(Workspace, SimpleNamespace(config=config, corpus=SimpleNamespace(vocab=codec.vocab), compiled=kernels))
    sizes = {"vocab": codec.vocab, "scale": config.scale, "dim": options.dim, "depth": options.depth, "seed": 0}
    model, buffer = build_model(source, **sizes), io.BytesIO()
    print(f"{options.design}: {sum(p.numel() for p in model.parameters()) / 1e6:.1f} M parameters")
    torch.save(model.state_dict(), buffer)
    content = buffer.getvalue()

    @contextlib.contextmanager
    def serve(weights: bytes | None) -> Iterator[ServedModel]:
        with _serve(space, source, gate, 0, weights) as served:
            counted = [Counted(states) for states in served.states]
            yield ServedModel(counted, served.logits, served.rows, served.pad_multiple)

    library = Path(sysconfig.get_path("stdlib"))
    texts = functools.partial(lambda: [path.read_text("utf-8") for path in sorted(library.glob("*.py"))[:60]])
    with tempfile.TemporaryDirectory() as folder:
        weights = Path(folder) / "weights"
        weights.write_bytes(content)
        result = evaluate(
            experiment="bench",
            trial="bench",
            attempt="0",
            weights=weights,
            expected_sha256=hashlib.sha256(content).hexdigest(),
            serve=serve,
            tokenizer=codec,
            vocab=codec.vocab,
            heldout_texts=texts,
            config=config.evaluation,
            task_folder=Path(folder) / "tasks",
            max_length=config.scale.length,
            clock=time.monotonic,
            threads=config.scale.threads,
        )
    for name, score in result.tasks.items():
        print(f"{name:16} {score.accuracy:.3f} ± {score.stderr:.3f}, chance {score.chance:.3f}, {score.questions}")
    print(
        f"{result.seconds:.1f} s in all; {Counted.tokens / 1e6:.2f} M tokens in {Counted.calls} calls, awaited "
        f"{Counted.waited_s:.1f} s, of that {Counted.first_s:.1f} s for the first answer; "
        f"{sum(name not in OWN_TASKS for name in result.tasks)} tasks of lm-eval, {result.harness}"
    )


if __name__ == "__main__":
    main()
