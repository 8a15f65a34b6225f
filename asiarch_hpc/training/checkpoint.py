"""Checkpoints of a running training, and the final weights with their hash.

A checkpoint file is the hexadecimal SHA-256 of its payload, a line break, and the payload (`torch.save`). The
one before stays beside it as `<name>.previous`, so that a file damaged by a dying node costs one interval only.
Writing and reading hold nothing in memory a second time: the state of 340M parameters takes 5 GB.
"""

from __future__ import annotations

import hashlib
import io
import logging
import os
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any, BinaryIO, TypeVar, cast

import torch
from torch import Tensor, nn

from asiarch_hpc.errors import RecordError, StoreError

_log = logging.getLogger(__name__)

State = dict[str, Any]

_HEADER_BYTES = 2 * hashlib.sha256().digest_size + 1
_T = TypeVar("_T")


def save(state: State, path: Path) -> None:
    """Writes a checkpoint atomically and keeps the one before.

    Raises:
        StoreError: the file cannot be written; the older checkpoints are unharmed.
    """

    def write(file: BinaryIO) -> None:
        file.write(bytes(_HEADER_BYTES))  # its place
        payload = _Hashed(file)
        torch.save(state, cast(IO[bytes], payload))
        file.seek(0)
        file.write(payload.digest().encode() + b"\n")

    def keep_previous() -> None:
        if path.exists():
            os.replace(path, _previous(path))

    _write(path, write, before_replace=keep_previous)


def load(path: Path, *, identity: str) -> State | None:
    """The newest usable checkpoint of the training named by `identity`; None when there is none.

    A damaged or foreign file is reported to the log and passed over, never used.
    """
    for candidate in (path, _previous(path)):
        if not candidate.exists():
            continue
        try:
            return _read(candidate, identity)
        except RecordError as error:
            _log.warning("%s", error)
    return None


def discard(path: Path) -> None:
    """Removes a training's checkpoints."""
    path.unlink(missing_ok=True)
    _previous(path).unlink(missing_ok=True)


def save_weights(model: nn.Module, path: Path) -> str:
    """Writes a model's state dict atomically; returns the SHA-256 of the file.

    Raises:
        StoreError: the file cannot be written.
    """

    def write(file: BinaryIO) -> str:
        payload = _Hashed(file)
        torch.save({name: _copy(value) for name, value in model.state_dict().items()}, cast(IO[bytes], payload))
        return payload.digest()

    return _write(path, write)


def load_weights(path: Path) -> tuple[dict[str, Tensor], str]:
    """Reads final weights; returns the state dict on the CPU and the SHA-256 of the very bytes it came from.

    Raises:
        RecordError: missing or damaged.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise RecordError(f"{path}: the weights cannot be read: {error}") from error
    try:
        return load_weights_bytes(data), hashlib.sha256(data).hexdigest()
    except RecordError as error:
        raise RecordError(f"{path}: {error}") from error


def load_weights_bytes(data: bytes) -> dict[str, Tensor]:
    """The state dict in the bytes of a weights file; runs no code from it.

    Raises:
        RecordError: not a weights file.
    """
    state = _deserialise(io.BytesIO(data))
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise RecordError("not a weights file: a mapping of names to tensors was expected; train the design again")
    return cast(dict[str, Tensor], state)


def _read(path: Path, identity: str) -> State:
    try:
        with path.open("rb") as file:
            digest = file.read(_HEADER_BYTES).removesuffix(b"\n")
            found = hashlib.file_digest(file, "sha256").hexdigest()
            if digest != found.encode():
                raise RecordError(
                    f"{path}: damaged checkpoint: its content hashes to {found[:12]}…, its header says "
                    f"{digest[:12].decode(errors='replace')!r}…; it is not used"
                )
            file.seek(_HEADER_BYTES)
            state = _deserialise(file)
    except OSError as error:
        raise RecordError(f"{path}: checkpoint cannot be read ({error}); it is not used") from error
    if not isinstance(state, dict) or state.get("identity") != identity:
        named = state.get("identity") if isinstance(state, dict) else None
        raise RecordError(f"{path}: checkpoint of another training ({named}), expected {identity}; it is not used")
    return state


def _previous(path: Path) -> Path:
    return path.with_name(path.name + ".previous")


def _copy(value: Tensor) -> Tensor:
    """On the CPU in memory of its own: of a view, the file would hold all that it is a view of."""
    return torch.empty_like(value, device="cpu", requires_grad=False).copy_(value.detach())


class _Hashed(io.RawIOBase):
    """A file whose content is hashed while it is written. What goes wrong is raised by `digest`, because torch would
    make another error of it."""

    def __init__(self, file: BinaryIO) -> None:
        super().__init__()
        self._file = file
        self._hash = hashlib.sha256()
        self._failure: OSError | None = None

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        if self._failure is None:
            self._hash.update(data)
            try:
                self._file.write(data)
            except OSError as error:
                self._failure = error
        return len(data)

    def digest(self) -> str:
        if self._failure is not None:
            raise self._failure
        return self._hash.hexdigest()


def _deserialise(file: BinaryIO) -> Any:
    """What `torch.save` wrote to a file from its present position to its end."""
    begin = file.tell()
    if not zipfile.is_zipfile(file):
        raise RecordError("not a file of torch.save")
    file.seek(begin)
    try:
        return torch.load(file, map_location="cpu", weights_only=True)
    except (RuntimeError, ValueError, EOFError, KeyError, pickle.UnpicklingError) as error:
        raise RecordError(f"not readable by torch.load: {error}") from error


def _write(path: Path, write: Callable[[BinaryIO], _T], *, before_replace: Callable[[], None] = lambda: None) -> _T:
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with temporary.open("wb") as file:
            found = write(file)
            file.flush()
            os.fsync(file.fileno())
        before_replace()
        os.replace(temporary, path)
        return found
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise StoreError(f"{path}: cannot be written: {error}; free space or make the folder writable") from error
