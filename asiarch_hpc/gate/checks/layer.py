"""One layer of a design, called with what the backbone never gives it: a mask, offsets of documents, a cache."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import Tensor, nn

from asiarch_hpc.gate.checks.subject import Specimen, set_random_state

_PROGRAM, _TREE = "DeltaNet", "Block"
_PLAIN = {"attention_mask": None, "past_key_values": None, "use_cache": False, "output_attentions": False}


class Layer:
    """The first layer of a specimen, in eval mode.

    Raises:
        LookupError: the model holds neither a DeltaNet nor a Block.
    """

    def __init__(self, specimen: Specimen) -> None:
        self.specimen = specimen
        self._place = next(
            (n for n, m in specimen.fresh().named_modules() if type(m).__name__ in (_PROGRAM, _TREE)), ""
        )
        if not self._place:
            raise LookupError("the model has no layer of a design")
        self.is_program = type(self.fresh()).__name__ == _PROGRAM

    def fresh(self) -> nn.Module:
        """A layer that has never run, always an equal one."""
        return self.specimen.fresh().get_submodule(self._place)

    def hidden(self, batch: int, length: int, offset: int = 0) -> Tensor:
        """[batch, length, dim] random inputs as a norm gives them, on the device; equal offsets give equal ones."""
        shape = (batch, length, self.specimen.dim)
        return torch.randn(shape, generator=self.specimen.generator(offset)).to(self.specimen.device)

    def offers(self, name: str) -> bool:
        """Whether forward has an input of this name, or asks its keywords for one."""
        forward = inspect.unwrap(type(self.fresh()).forward)
        code = getattr(forward, "__code__", None)
        return name in inspect.signature(forward).parameters or (code is not None and name in code.co_consts)

    def run(self, module: nn.Module, hidden: Tensor, **inputs: Any) -> tuple[Tensor, Any]:
        """(output [batch, length, dim] in fp32, what a layer program returns as its cache)."""
        module.eval()
        set_random_state(0)
        with torch.no_grad(), self.specimen.autocast():
            if self.is_program:
                answer = module(hidden_states=hidden, **(_PLAIN | inputs))
                return answer[0].float(), answer[2]
            return module(hidden, **inputs)[0].float(), None

    def output(self, hidden: Tensor, **inputs: Any) -> Tensor:
        """The output of a layer that has never run."""
        return self.run(self.fresh(), hidden, **inputs)[0]
