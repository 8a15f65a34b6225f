"""Triton's autotuner with the candidates of a kernel compiled side by side before the first one is timed: most of the
time of tuning is one core's that compiles. What is timed, and what is chosen, stays the same."""

from __future__ import annotations

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from typing import Any
from unittest.mock import patch


@contextmanager
def compiled_side_by_side(threads: int | None = None) -> Iterator[None]:
    """Holds for every kernel that is tuned meanwhile, on the default device; None: a thread for each core."""
    from triton.runtime.autotuner import (  # type: ignore[import-untyped, import-not-found, unused-ignore]
        Autotuner,
    )

    choose, time_one = Autotuner.prune_configs, Autotuner._bench
    waiting: dict[int, list[Any]] = {}

    def prune_configs(self: Any, kwargs: dict[str, Any]) -> list[Any]:
        # Only noted: where an earlier process has left its choice, nothing is timed.
        found: list[Any] = choose(self, kwargs)
        waiting[id(self)] = [config for config in found if config.pre_hook is None]
        return found

    def bench(self: Any, *arguments: Any, config: Any, **kwargs: Any) -> Any:
        compile_all(self, waiting.pop(id(self), []), arguments, kwargs)
        return time_one(self, *arguments, config=config, **kwargs)

    def compile_all(self: Any, configs: list[Any], arguments: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        def compile_one(config: Any) -> None:
            self.fn.run(*arguments, **{**kwargs, **config.all_kwargs(), "warmup": True})

        with ThreadPoolExecutor(threads or os.cpu_count()) as pool:
            begun = [(config, pool.submit(compile_one, config)) for config in configs]
        for config, done in begun:
            # Once more alone: Triton does not promise to compile in threads. What does not compile alone fails again
            # when it is to be timed, and is passed over there.
            if done.exception() is not None:
                with suppress(Exception):
                    compile_one(config)

    with patch.object(Autotuner, "prune_configs", prune_configs), patch.object(Autotuner, "_bench", bench):
        yield
