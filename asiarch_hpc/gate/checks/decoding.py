"""Whether a layer program that keeps a cache gives token by token what it gives for the whole text at once."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import torch
from torch import Tensor

from asiarch_hpc.designs.compatibility import Cache
from asiarch_hpc.gate.checks.layer import Layer
from asiarch_hpc.gate.checks.subject import Specimen, Step, all_finite, attempt, change_per_position, finding, largest

_CODE, _CLAIM = "decoding.cached", "cached_decoding"
_ROWS, _PREFILL = 2, 33
_HINT = (
    "With use_cache, store what the next token needs by past_key_values.update(..., layer_idx=self.layer_idx): the "
    "memory, the convolutions' last inputs, and every other state; read it back when len(past_key_values) > layer_idx."
)


def examine_decoding(specimen: Specimen) -> Iterator[Step]:
    """One finding, decoding.cached: a property, or a fault where the design claims it."""
    yield "cached decoding"
    layer, _ = attempt(lambda: Layer(specimen))
    if layer is None:
        return
    steps = specimen.config.decode_steps
    hidden = layer.hidden(_ROWS, _PREFILL + steps)
    whole, _ = attempt(lambda: layer.output(hidden))
    if whole is None or not all_finite(whole):
        return  # the passes report that
    changes: list[float] = []
    for prefill in (_PREFILL, 1):
        decoded, failure = attempt(partial(_decode, layer, hidden[:, : prefill + steps], prefill))
        if decoded is None:
            text = f"cached decoding fails: {failure}" if failure else "cached decoding is not offered"
            yield layer.specimen.ability(_CODE, _CLAIM, text, _HINT if layer.is_program else "", otherwise="property")
            return
        expected = whole[:, : decoded.shape[1]]
        changes.append(largest(change_per_position(expected, decoded, float(whole.std()))))
    limit = specimen.tolerance
    if max(changes) <= limit:
        text = "cached decoding equals the full forward pass"
        yield finding(_CODE, "property", text, "", measured=max(changes), limit=limit)
    else:
        text = (
            f"cached decoding differs from the full forward pass: {steps} steps after {_PREFILL} tokens by "
            f"{changes[0]:.2g}, after one token by {changes[1]:.2g} of the outputs' scale"
        )
        yield layer.specimen.ability(
            _CODE, _CLAIM, text, _HINT, otherwise="property", measured=max(changes), limit=limit
        )


def _decode(layer: Layer, hidden: Tensor, prefill: int) -> Tensor | None:
    """[batch, length, dim] computed from a prefill and single steps; None where nothing is kept between them."""
    if not layer.is_program:
        return None
    module, cache = layer.fresh(), Cache()
    output, kept = layer.run(module, hidden[:, :prefill], past_key_values=cache, use_cache=True)
    if kept is None or (kept is cache and not len(cache)):
        return None
    outputs = [output]
    for position in range(prefill, hidden.shape[1]):
        token = hidden[:, position : position + 1]
        output, kept = layer.run(module, token, past_key_values=kept, use_cache=True)
        outputs.append(output)
    return torch.cat(outputs, dim=1)
