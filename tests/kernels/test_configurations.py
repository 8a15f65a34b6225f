"""The table of the kernels' sizes: what it says for Hopper, that it covers everything, and how it is looked up."""

from __future__ import annotations

from importlib import import_module
from itertools import product
from typing import Any, ClassVar

import pytest
import torch

from kernels import configurations
from kernels.configurations import choose, find, read_table, trial
from tests.kernels.tune import LAUNCHED_BY, changed

# By operation, what makes its configuration, and shapes, of every kind that occurs.
WIDTHS = (1, 16, 17, 32, 33, 64, 65, 128, 129, 256)
DIMS = (1, 64, 65, 256, 257, 1024, 4096, 4097, 50_000)
MAKERS: dict[str, tuple[str, dict[str, tuple[int, ...]]]] = {
    "delta_rule": ("sizes", {"bits": (16, 32), "width": WIDTHS, "gated": (0, 1)}),
    "linear_attention": ("sizes", {"bits": (16, 32), "width": WIDTHS, "by_channel": (0, 1), "decayed": (0, 1)}),
    "linear_cross_entropy": ("Tiles", {"width": DIMS}),
    "linear_log_likelihood": ("Tiles", {"width": DIMS}),
    "linear_scan": ("Sizes", {"bits": (16, 32), "width": DIMS}),
    "rms_norm": ("Sizes", {"bits": (16, 32), "width": DIMS, "gated": (0, 1)}),
    "short_convolution": ("_walks", {"bits": (16, 32), "width": DIMS, "taps": (1, 8)}),
    "short_convolution_wide": ("Sizes", {"bits": (16, 32), "width": DIMS, "taps": (9, 64)}),
    "swiglu": ("Sizes", {"bits": (16, 32), "width": DIMS}),
}


def shapes(operation: str) -> list[dict[str, int]]:
    axes = MAKERS[operation][1]
    found = [dict(zip(axes, values, strict=True)) for values in product(*axes.values())]
    # float32 and float16 operands wider than 128 are not for the kernels of the delta rule.
    return [s for s in found if operation != "delta_rule" or s["bits"] == 16 or s["width"] <= 128]


@pytest.mark.parametrize("operation", MAKERS)
def test_every_shape_on_every_device_has_a_configuration_that_fits_the_kernels(operation: str) -> None:
    pytest.importorskip("triton")
    make = getattr(import_module(LAUNCHED_BY[operation]), MAKERS[operation][0])
    for device in ("sm_90", "sm_86", "default"):
        for shape in shapes(operation):
            make(**find(read_table(), operation, device, shape))


def test_every_operation_has_its_space() -> None:
    """And every entry of a configuration that is tried exists."""
    pytest.importorskip("triton")
    assert set(MAKERS) == set(LAUNCHED_BY) == set(read_table()["default"])
    for operation, (maker, _) in MAKERS.items():
        loaded = import_module(LAUNCHED_BY[operation])
        made = find(read_table(), operation, "sm_90", shapes(operation)[0])
        for entry, values in loaded.SPACE.items():
            for value in values:
                getattr(loaded, maker)(**changed(made, entry, value))


class TestHopper:
    """The sizes that the README files' figures were measured with, by hand, before there was a table. A rule that has
    been measured since counts instead."""

    def compare(self, operation: str, wanted: dict[str, Any], **shape: int) -> None:
        for rule in (*read_table()["sm_90"].get(operation, ()), *read_table()["default"][operation]):
            if configurations.covers(rule, shape):
                assert "measured" in rule or rule["configuration"] == wanted, shape
                return
        raise AssertionError(f"{operation} {shape}")

    # What kernels without documents need, which are then as many side by side where there are some.
    CAPS: ClassVar = {
        (16, 32, 0): {"transitions": 112}, (16, 32, 1): {"outputs": 112}, (16, 64, 0): {"outputs": 128}
    }  # fmt: skip

    # By width, sequences and heads from which on walks are faster; else they are not used.
    FEW: ClassVar = {32: 128, 64: 48, 128: 16, 256: 8}

    # Width: tokens of a chunk; columns, warps, stages, registers of transitions, states, outputs, adjoint, gradients.
    @pytest.mark.parametrize(
        ("bits", "least", "most", "chunk", "kernels"),
        [
            (16, 1, 16, 32, [(16, 1, 1), (16, 1, 4), (16, 1, 1), (16, 1, 1), (16, 2, 1)]),
            (16, 17, 32, 32, [(32, 1, 1), (16, 1, 4), (32, 1, 1, 96), (32, 1, 1, 96), (32, 2, 1, 168)]),
            (16, 33, 64, 64, [(64, 4, 1, 128), (32, 4, 3), (64, 4, 1), (64, 4, 1), (64, 4, 1)]),
            (16, 65, 128, 64, [(64, 4, 1, 168), (64, 4, 2), (64, 4, 1), (64, 4, 1), (128, 8, 1, True)]),
            (16, 129, 256, 64, [(64, 8, 1), (16, 8, 1), (64, 4, 1), (64, 4, 1), (64, 8, 1, True)]),
            (32, 1, 16, 32, [(16, 1, 1), (16, 1, 2), (16, 1, 1), (16, 1, 1), (16, 1, 1)]),
            (32, 17, 32, 32, [(32, 2, 1), (16, 2, 2), (32, 2, 1), (32, 2, 1), (32, 2, 1)]),
            (32, 33, 64, 32, [(32, 4, 1), (16, 4, 2), (32, 4, 1), (32, 4, 1), (32, 4, 1)]),
            (32, 65, 128, 32, [(32, 4, 1), (16, 4, 1), (128, 8, 1, 255), (32, 4, 1), (32, 8, 1, True)]),
        ],
    )
    def test_delta_rule(self, bits: int, least: int, most: int, chunk: int, kernels: list[tuple[int, ...]]) -> None:
        wanted: dict[str, Any] = {"chunk": chunk, "long": 64, "few": 132}
        for name, (part, warps, stages, *rest) in zip(
            ("transitions", "states", "outputs", "adjoint", "gradients"), kernels, strict=True
        ):
            wanted[name] = {"part": part, "warps": warps, "stages": stages}
            wanted[name] |= {("flip" if value is True else "registers"): value for value in rest}
        for width, gated in product((least, most), (0, 1)):
            caps = self.CAPS.get((bits, most, gated), {})
            capped = wanted | {name: wanted[name] | {"registers": cap} for name, cap in caps.items()}
            shape = {"bits": bits, "width": width, "gated": gated}
            walk = find(read_table(), "delta_rule", "sm_90", shape)["walk"]
            assert walk["few"] == (self.FEW.get(most) if bits == 16 else None)
            assert find(read_table(), "delta_rule", "default", shape)["walk"]["few"] is None
            self.compare("delta_rule", capped | {"walk": walk}, **shape)

    def test_linear_cross_entropy(self) -> None:
        both = {"bm": 128, "bn": 128, "programs": 132}
        narrow = both | {"bk": None, "warps": 8, "stages": 2, "in_registers": True}
        for width in (16, 64, 80, 256, 272, 4096):
            wide = both | {"bk": 64, "warps": 4, "stages": 3}
            self.compare("linear_cross_entropy", narrow if 64 < width <= 256 else wide, width=width)
            self.compare("linear_log_likelihood", wide | {"warps": 8}, width=width)

    @pytest.mark.parametrize("bits", [16, 32])
    def test_channels_by_themselves(self, bits: int) -> None:
        forward = {"tokens": [128, 64, 32], "programs": 4096, "ahead": 4, "bytes": 8}
        walks = {"forward": forward, "backward": forward | {"tokens": [256, 128, 64], "programs": 2048}}
        scan = {"bytes": 4, "programs": 1024, "least_tokens": 128, "most_segments": 64}
        for width in (1, 256, 4096, 4097, 8192):
            norm = {"elements": 2048, "warps": 4 if width <= 4096 else 8, "programs": 528, "stages": 3}
            for gated in (0, 1):
                self.compare("rms_norm", norm, bits=bits, width=width, gated=gated)
            self.compare("swiglu", {"elements": 2048, "warps": 4}, bits=bits, width=width)
            self.compare("short_convolution", walks, bits=bits, width=width, taps=4)
            wide = {"tokens": 64, "summed": 512, "bytes": 4}
            self.compare("short_convolution_wide", wide, bits=bits, width=width, taps=64)
            self.compare("linear_scan", scan, bits=bits, width=width)

    def test_linear_attention(self) -> None:
        """Tokens of a chunk, columns, warps, those of `gradients`; by bits, whether by channel, and width."""
        sizes = {
            (16, 0): {16: (32, 16, 1, 1), 32: (32, 32, 2, 2), 256: (64, 64, 4, 4)},
            (16, 1): {16: (32, 16, 1, 1), 32: (32, 32, 2, 2), 256: (32, 64, 4, 4)},
            (32, 0): {16: (32, 16, 2, 2), 256: (32, 32, 4, 4)},
            (32, 1): {16: (32, 16, 2, 2), 256: (32, 32, 4, 4)},
        }
        for bits, by_channel, width in product((16, 32), (0, 1), WIDTHS):
            table = sizes[bits, by_channel]
            chunk, part, warps, of_gradients = table[min(most for most in table if width <= most)]
            wanted = {"chunk": chunk, "part": part, "warps": warps, "gradient_warps": of_gradients}
            wanted |= {"state_rows": 16, "state_warps": 2, "state_stages": 4}
            for decayed in (0, 1):
                # Walks through sequences came later, and their sizes were not chosen by hand on a GPU.
                shape = {"bits": bits, "width": width, "by_channel": by_channel, "decayed": decayed}
                fused = find(read_table(), "linear_attention", "sm_90", shape)["fused"]
                self.compare("linear_attention", wanted | {"fused": fused}, **shape)


TABLE = {
    "sm_90": {
        "a": [
            {"shapes": {"width": [65, 128], "gated": [1, 1]}, "configuration": {"n": 1}},
            {"shapes": {"width": [65, None]}, "configuration": {"n": 2}},
        ]
    },
    "default": {"a": [{"shapes": {}, "configuration": {"n": 3}}], "b": [{"shapes": {"width": [1, 9]}}]},
}  # fmt: skip


class TestLookup:
    @pytest.mark.parametrize(
        ("device", "width", "gated", "wanted"),
        [
            ("sm_90", 100, 1, 1), ("sm_90", 100, 0, 2), ("sm_90", 5000, 1, 2), ("sm_90", 64, 1, 3),
            ("sm_89", 100, 1, 3), ("default", 100, 1, 3),
        ],
    )  # fmt: skip
    def test_first_rule_that_fits_then_the_default(self, device: str, width: int, gated: int, wanted: int) -> None:
        assert find(TABLE, "a", device, {"width": width, "gated": gated}) == {"n": wanted}

    def test_no_rule(self) -> None:
        with pytest.raises(LookupError, match=r"no rule of b covers \{'width': 10\}"):
            find(TABLE, "b", "sm_90", {"width": 10})

    def test_made_once_and_replaced_in_a_trial_only(self) -> None:
        made = []

        def make(**configuration: Any) -> dict[str, Any]:
            made.append(configuration)
            return configuration

        device, shape = torch.device("cpu"), {"bits": 16, "width": 300}
        before = choose("swiglu", make, device, **shape)
        assert choose("swiglu", make, device, **shape) is before
        assert len(made) == 1
        with trial("swiglu", {"elements": 1}) as running:
            assert choose("swiglu", make, device, **shape) == {"elements": 1}
            assert choose("linear_scan", make, device, **shape) != {"elements": 1}
        with trial("swiglu", None) as asked:
            assert choose("swiglu", make, device, **shape) is before
        assert running.shapes == asked.shapes == [shape]
        assert choose("swiglu", make, device, **shape) is before

    def test_devices_without_a_class_of_their_own(self) -> None:
        assert configurations.device_class(torch.device("cpu")) == "default"
        if not torch.cuda.is_available():
            assert configurations.device_class(torch.device("cuda")) == "default"
