"""Whether published results are those of weights that were never trained, told from the numbers alone.

The evaluations that Genesys released (arXiv 2506.20249) built a fresh model instead of loading the trained one. The
rule does not know that; it looks at two tests that every trained language model passes, however small:

1. LAMBADA perplexity, which is per word. A model that knows nothing gives V^t for a vocabulary of V pieces and t
   pieces a word: 5.0e7 with Llama 2's 32,000 pieces (t = 1.71), 9.9e5 with GPT-2's 50,257 (t = 1.28). A result that
   is not below `LAMBADA_LIMIT`, half of the lower one, is no better than knowing nothing.
2. SciQ and ARC-easy accuracy, plain and by length, none of them above chance (one in four) by three standard errors.

Results are untrained where every test that can be made says so, and at least one can be made.
"""

from __future__ import annotations

from collections.abc import Mapping

from asiarch_hpc.records import Metrics

LAMBADA_LIMIT = 5e5
CHANCE = 0.25
STANDARD_ERRORS = 3.0

_LAMBADA = ("lambada_openai", "lambada_standard", "lambada")
_CHOICES = ("sciq", "arc_easy")


def untrained_evidence(results: Mapping[str, Metrics]) -> str | None:
    """Why the results are those of untrained weights; None where they are not, or where nothing can be said.

    Args:
        results: {task: {metric: value}} of one evaluation, with the evaluation harness's names of tasks and metrics
            ("acc" or "acc,none").
    """
    said = [evidence for evidence in (_lambada(results), _choices(results)) if evidence is not None]
    return "; ".join(said) if said and all(said) else None


def _lambada(results: Mapping[str, Metrics]) -> str | None:
    """Evidence of the first test, "" where it speaks for training, None where it cannot be made."""
    for task in _LAMBADA:
        perplexity = _metric(results.get(task, {}), "perplexity")
        if perplexity is not None:
            if perplexity < LAMBADA_LIMIT:
                return ""
            return f"{task} perplexity {perplexity:.3g}, not below {LAMBADA_LIMIT:.0e}, as without any knowledge"
    return None


def _choices(results: Mapping[str, Metrics]) -> str | None:
    """Evidence of the second test, as in `_lambada`; it takes both tasks."""
    best: list[str] = []
    for task in _CHOICES:
        metrics = results.get(task, {})
        found = [(name, _metric(metrics, name), _metric(metrics, f"{name}_stderr")) for name in ("acc", "acc_norm")]
        measured = [(name, value, error) for name, value, error in found if value is not None and error is not None]
        if not measured:
            return None
        if any(not value <= CHANCE + STANDARD_ERRORS * error for _, value, error in measured):
            return ""
        name, value, _ = max(measured, key=lambda item: item[1])
        best.append(f"{task} {name} {value:.3f}")
    return f"{', '.join(best)}: not above chance ({CHANCE:g})"


def _metric(metrics: Metrics, name: str) -> float | None:
    return metrics.get(f"{name},none", metrics.get(name))
