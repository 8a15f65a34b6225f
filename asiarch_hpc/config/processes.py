"""How many processes train one model together."""

from __future__ import annotations

from asiarch_hpc.config.schema import Config, ResourceConfig


def ranks_per_node(resources: ResourceConfig) -> int:
    """Processes of a training on each of its nodes: one a GPU."""
    return resources.gpus or resources.ranks or 1


def ranks(resources: ResourceConfig) -> int:
    """Processes of a training in all."""
    return resources.nodes * ranks_per_node(resources)


def process_problems(where: str, config: Config) -> list[tuple[bool, str]]:
    """What must hold for trainings of several processes, each with the message for when it does not.

    `where` is the key of the stage that the configuration is seen from, with a dot, or empty.
    """
    scale, train = config.scale, config.executor.train
    key = f"{where}train" if where else "executor.train"
    count = ranks(train) if train.nodes >= 1 else 1
    return [
        (
            scale.engine in ("auto", "torch", "deepspeed"),
            f"{where}scale.engine={scale.engine!r}: auto, torch or deepspeed",
        ),
        (scale.zero_stage in (0, 1, 2), f"{where}scale.zero_stage={scale.zero_stage}: 0, 1 or 2"),
        (
            train.nodes >= 1 and min(train.gpus, train.ranks) >= 0,
            f"{key}: nodes of 1 or more, gpus and ranks of 0 or more",
        ),
        (not (train.gpus and train.ranks), f"{key}: either gpus or ranks, which counts processes without GPUs,"),
        (
            scale.engine != "torch" or count == 1,
            f"{where}scale.engine=torch trains with one process, {key} asks for {count}: auto or deepspeed",
        ),
        (
            scale.batch_size % count == 0,
            f"{where}scale.batch_size={scale.batch_size}: a multiple of the {count} processes of {key}",
        ),
        (
            config.executor.kind != "local" or train.nodes == 1,
            f"{key}.nodes={train.nodes}: 1 with executor.kind=local",
        ),
    ]
