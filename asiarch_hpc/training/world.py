"""The processes that train one model together: which of them this one is, and the few words that they exchange."""

from __future__ import annotations

import fcntl
import json
import os
import socket
import struct
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed import TCPStore  # type: ignore[attr-defined]  # its stub does not list it

from asiarch_hpc.errors import PeerLostError

_LOCALHOST = "127.0.0.1"
_INTERFACE_ADDRESS = 0x8915  # SIOCGIFADDR of linux/sockios.h
_LOOK_S = 0.05  # between two looks for the file of rank 0
_SIGNS = ("gloo", "NCCL", "TCPStore", "Broken pipe", "Connection reset", "Connection closed")


class World:
    """One process's place among those that train one model; `World()` trains alone.

    Rank 0 writes what a training leaves. It waits for the others at `address`, on `port` or on a free one, and leaves
    both in the file `meeting`, where they look: job numbers make no port that is surely free, and the names of nodes
    need not be known to each other.

    Args:
        rank: number of this process.
        size: number of processes.
        local_rank: its number among those on its node.
        address: of rank 0; asked of rank 0 alone where there is a `meeting`.
        port: of rank 0.
        meeting: path on a file system that all processes see; None where address and port are known to all.
        timeout_s: how long a process waits for the others at each exchange.
    """

    def __init__(
        self,
        *,
        rank: int = 0,
        size: int = 1,
        local_rank: int = 0,
        address: str = _LOCALHOST,
        port: int = 0,
        meeting: Path | None = None,
        timeout_s: float = 600.0,
    ) -> None:
        assert 0 <= rank < size, (rank, size)
        assert size == 1 or port or meeting is not None, "no way to rank 0"
        self.rank = rank
        self.size = size
        self.local_rank = local_rank
        self.address = address
        self.port = port
        self._meeting = meeting
        self._timeout_s = timeout_s
        self._words: dist.ProcessGroup | None = None  # for numbers on the CPU

    @classmethod
    def of_slurm(cls, environment: Mapping[str, str], *, meeting: Path, timeout_s: float) -> World:
        """This task's place in its Slurm step, as srun's variables say (srun(1), "output environment variables")."""
        one_node = environment.get("SLURM_JOB_NUM_NODES", "1") == "1"
        return cls(
            rank=int(environment.get("SLURM_PROCID", "0")),
            size=int(environment.get("SLURM_NTASKS", "1")),
            local_rank=int(environment.get("SLURM_LOCALID", "0")),
            # srun runs on the first node of the allocation, and so does rank 0.
            address=_LOCALHOST if one_node else environment.get("SLURM_LAUNCH_NODE_IPADDR", socket.gethostname()),
            meeting=meeting,
            timeout_s=timeout_s,
        )

    @contextmanager
    def connected(self, device: torch.device) -> Iterator[None]:
        """Joins the others by torch.distributed: NCCL between GPUs, gloo between CPUs, for the time of the context.

        The process sees one GPU at most, its own. After an error nothing is taken down, as that would wait for others
        that may be gone; the process is to end then.

        Raises:
            PeerLostError: the others cannot be reached in time.
        """
        wait = timedelta(seconds=self._timeout_s)
        with _others_needed():
            store = self._meet(wait)
            self._announce()
            gpu = device.type == "cuda"
            dist.init_process_group(
                "nccl" if gpu else "gloo",
                store=store,
                rank=self.rank,
                world_size=self.size,
                timeout=wait,
                device_id=torch.device("cuda", torch.cuda.current_device()) if gpu else None,
            )
            self._words = dist.new_group(backend="gloo", timeout=wait) if gpu else dist.group.WORLD
        yield
        dist.destroy_process_group()
        self._words = None

    def limit_waits(self) -> None:
        """Gives the groups that a library made for itself this world's time limit; torch's is many minutes."""
        for group in list(dist.distributed_c10d._world.pg_map):
            dist.distributed_c10d._set_pg_timeout(timedelta(seconds=self._timeout_s), group)

    def any(self, *flags: bool) -> tuple[bool, ...]:
        """For each flag whether any process raised it; all processes must ask the same, and get the same answer."""
        answer = self._reduced([float(flag) for flag in flags], dist.ReduceOp.MAX)
        return tuple(value > 0 for value in answer)

    def least(self, *numbers: float) -> tuple[float, ...]:
        """The smallest of each number over the processes."""
        return tuple(self._reduced(numbers, dist.ReduceOp.MIN))

    def add(self, tensor: Tensor) -> Tensor:
        """Sums a tensor on the training's device over the processes, in place."""
        if dist.is_initialized():
            dist.all_reduce(tensor)
        return tensor

    def _reduced(self, numbers: list[float] | tuple[float, ...], how: dist.ReduceOp.RedOpType) -> list[float]:
        if self.size == 1:
            return list(numbers)
        values = torch.tensor(numbers, dtype=torch.float64)
        with _others_needed():
            dist.all_reduce(values, op=how, group=self._words)
        found: list[float] = values.tolist()
        return found

    def _meet(self, wait: timedelta) -> TCPStore:
        """The store through which the processes find each other; rank 0 serves it."""
        if self.rank == 0:
            store = TCPStore(self.address, self.port, self.size, is_master=True, timeout=wait, wait_for_workers=False)
            self.port = store.port
            if self._meeting is not None:
                _write(self._meeting, json.dumps({"address": self.address, "port": self.port}))
            return store
        if self._meeting is not None:
            found = json.loads(_awaited(self._meeting, self._timeout_s))
            self.address, self.port = found["address"], found["port"]
        return TCPStore(self.address, self.port, self.size, is_master=False, timeout=wait, wait_for_workers=False)

    def _announce(self) -> None:
        """Environment variables for libraries that ask there: DeepSpeed, and gloo for its interface."""
        os.environ |= {
            "RANK": str(self.rank),
            "WORLD_SIZE": str(self.size),
            "LOCAL_RANK": "0",  # a library's word for the device, of which the process sees its own alone
            "MASTER_ADDR": self.address,
            "MASTER_PORT": str(self.port),
        }
        interface = _interface_towards(self.address)
        if interface is not None:
            # By itself gloo takes the address of the host's name, which nodes need not know of themselves.
            os.environ.setdefault("GLOO_SOCKET_IFNAME", interface)


def is_lost_peer(error: BaseException) -> bool:
    """Whether an error says that another process of the training is gone or silent, not that this one is at fault."""
    if isinstance(error, PeerLostError | dist.DistError):
        return True
    return isinstance(error, RuntimeError | OSError) and any(sign in str(error) for sign in _SIGNS)


@contextmanager
def _others_needed() -> Iterator[None]:
    try:
        yield
    except (RuntimeError, OSError) as error:  # torch's own errors are RuntimeErrors
        raise PeerLostError(f"another process of this training is gone or silent: {error}") from error


def _awaited(path: Path, timeout_s: float, clock: Callable[[], float] = time.monotonic) -> str:
    deadline = clock() + timeout_s
    while clock() < deadline:
        with suppress(FileNotFoundError):
            return path.read_text()
        time.sleep(_LOOK_S)
    raise PeerLostError(f"{path}: rank 0 did not leave its address there within {timeout_s:g} s")


def _write(path: Path, text: str) -> None:
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_text(text)
    os.replace(temporary, path)


def _interface_towards(address: str) -> str | None:
    """Name of the network interface by which an address is reached; None where that cannot be told (IPv6)."""
    with suppress(OSError), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect((address, 9))  # sends nothing
        own = probe.getsockname()[0]
        for _, name in socket.if_nameindex():
            with suppress(OSError):
                answer = fcntl.ioctl(probe, _INTERFACE_ADDRESS, struct.pack("256s", name.encode()))
                if socket.inet_ntoa(answer[20:24]) == own:
                    return name
    return None
