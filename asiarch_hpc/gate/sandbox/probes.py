"""What a rung's probe tries in its child: one small attempt at each threat that the rung claims to hold."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Collection
from pathlib import Path

Attempts = dict[str, tuple[str, Callable[[], object]]]  # threat -> (in words, what raises OSError when it is held)


def prepare(folder: Path, caller: int) -> Attempts:
    """Makes the writable folder `inside` and what is to be attacked beside it; gives the attempts."""
    (folder / "inside").mkdir()
    (folder / "secret").write_text("secret")
    return {
        "files": ("write outside its folder", lambda: (folder / "outside").write_text("x")),
        "modes": ("change the mode of a file", lambda: os.chmod(folder / "secret", 0o644)),
        "reading": ("read a file of its caller", lambda: (folder / "secret").read_text()),
        "signals": ("signal its caller", lambda: os.kill(caller, 0)),
        "network": ("see network interfaces", _reach_network),
    }


def succeeded(attempts: Attempts, claims: Collection[str]) -> list[str]:
    """Runs in the probe's child: what succeeded although the rung claims to hold it."""
    Path(os.environ["TMPDIR"], "allowed").write_text("x")
    escaped = []
    for threat, (words, attempt) in attempts.items():
        if threat in claims:
            try:
                attempt()
                escaped.append(words)
            except OSError:
                pass
    return escaped


def _reach_network() -> None:
    if all(name == "lo" for _, name in socket.if_nameindex()):
        raise OSError("no interface but the loopback")
