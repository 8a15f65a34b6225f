"""Hostile designs: blocks that attack the machine, other results, or the gate itself.

Each reaches modules by names put together at run time, as code would that means to pass the check of its text.
`{results}`, `{home}`, `{tcp}`, `{unix}` and `{mark}` stand for what a test puts in its way.
"""

from __future__ import annotations

from dataclasses import dataclass

from tests.gate.toys import SOUND_MIX, design

_REACH = """
os, sys, importlib = (getattr(torch, name) for name in ("o" "s", "s" "ys", "import" "lib"))
load = importlib.import_module
def silently(call, *words, **named):
    try:
        return call(*words, **named)
    except Exception:
        return None
"""
REFUSED = frozenset({"construct.failed", "construct.width"})


@dataclass(frozen=True)
class Hostile:
    """A design, and how it is named: the codes of which the gate must report one, a word of an attempt that is seen,
    the cause of its end in the sandbox. One without codes would pass the gate's other checks, or take them long."""

    source: str
    codes: frozenset[str] = frozenset()
    attempt: str = ""
    cause: str = ""


def _made(init: str, *codes: str, attempt: str = "", cause: str = "") -> Hostile:
    """Attacks when it is built."""
    return Hostile(design(SOUND_MIX, init=init, before=_REACH), frozenset(codes), attempt, cause)


def _loaded(before: str, *codes: str) -> Hostile:
    """Attacks when its text is run."""
    return Hostile(design(SOUND_MIX, before=_REACH + before), frozenset(codes))


HOSTILE: dict[str, Hostile] = {
    "reads the environment": _made(
        "raise RuntimeError(str(dict(os.environ)) + load('pathlib').Path('/proc/self/environ').read_text())", *REFUSED
    ),
    "reads the environment of others": _made(
        "raise RuntimeError(load('pathlib').Path('/proc/{caller}/environ').read_text())", *REFUSED, attempt="open"
    ),
    "reads credentials": _made(
        "raise RuntimeError(load('pathlib').Path('{home}/.netrc').read_text())", *REFUSED, attempt=".netrc"
    ),
    "reads other results": _made(
        "raise RuntimeError(load('pathlib').Path('{results}/score.json').read_text())", *REFUSED, attempt="score.json"
    ),
    "writes outside": _made("load('pathlib').Path('{results}/new').write_text('x')", *REFUSED, attempt="new"),
    "deletes results": _made("load('shutil').rmtree('{results}')", *REFUSED, attempt="rmtree"),
    "edits its own score, silently": _made(
        "silently(load('pathlib').Path('{results}/score.json').write_text, '9.9')", attempt="score.json"
    ),
    "changes the modes of results": _made("os.chmod('{results}/score.json', 0o777)", *REFUSED, attempt="chmod"),
    "opens a TCP connection": _made(
        "load('socket').create_connection(('127.0.0.1', {tcp}), timeout=2).send(b'secret')", *REFUSED
    ),
    "talks to a service, silently": _made(
        "s = silently(load('socket').socket, 1)\nif s: silently(s.connect, '{unix}')\nraise RuntimeError('tried')",
        *REFUSED,
    ),
    "forks without end": _made("while True: os.fork(); load('time').sleep(0.01)", "sandbox.processes", attempt="fork"),
    "allocates without end": _made("kept = []\nwhile True: kept.append(torch.ones(1 << 22))", "sandbox.memory"),
    "sleeps": _made("load('time').sleep(600)", "sandbox.timeout"),
    "stops itself": _made("os.kill(os.getpid(), 19)", "sandbox.timeout"),
    "refuses to end": _made(
        "for n in (1, 2, 15, 24): load('signal').signal(n, load('signal').SIG_IGN)\nwhile True: pass", "sandbox.timeout"
    ),
    "exits early with success": _made("os._exit(0)", "sandbox.exit"),
    "raises an exit": _made("raise SystemExit(0)", *REFUSED),
    "crashes": _made("os.kill(os.getpid(), 11)", "sandbox.killed"),
    "kills everything": _made(
        "os.kill(-1, 9)\nraise RuntimeError('alive')", "sandbox.killed", *REFUSED, attempt="kill"
    ),
    "traces its caller": _made(
        "raise RuntimeError(load('ctypes').CDLL(None).ptrace(16, {caller}, 0, 0))", *REFUSED, attempt="ctypes.dlopen"
    ),
    "prints gigabytes": _made("while True: os.write(1, b'x' * (1 << 20))", "sandbox.timeout"),
    "floods the channel": _made("while True: os.write(3, b'x' * (1 << 20))", "sandbox.output"),
    "forges an answer": _made("os.write(3, b'{{\"result\": null}}\\n'); os._exit(0)", "sandbox.protocol"),
    "writes junk into the channel": _made("os.write(3, b'junk\\n')", "sandbox.protocol"),
    "closes everything": _made("os.closerange(0, 100)", "sandbox.exit"),
    "fills the disk": _made(
        "p = load('pathlib').Path(os.environ['TMPDIR'])\n"
        "for n in range(10**6): (p / str(n)).write_bytes(b'x' * (1 << 20))",
        "sandbox.output",
        attempt="open",
    ),
    "makes files without end": _made(
        "p = load('pathlib').Path(os.environ['TMPDIR'])\nfor n in range(10**7): (p / str(n)).touch()", cause="output"
    ),
    "leaves a daemon": _made(
        "if os.fork() == 0:\n"
        "    os.setsid()\n"
        "    words = [sys.executable, '-c', 'import time; time.sleep(60)', '{mark}']\n"
        "    if os.fork() == 0: os.execv(sys.executable, words)\n"
        "    os._exit(0)\n"
        "load('time').sleep(0.3)\nraise RuntimeError('left')",
        *REFUSED,
        attempt="fork",
    ),
    "patches torch": _loaded("setattr(F, 'cross_' 'entropy', lambda *a, **k: torch.zeros((), requires_grad=True))",
                             "sandbox.tampered", "backward.failed"),
    "patches a method of all tensors": _loaded(
        "plain = torch.Tensor.isfinite\nsetattr(torch.Tensor, 'isfinite', lambda self: plain(torch.zeros_like(self)))",
        "sandbox.tampered",
    ),
    "replaces a check in memory": _loaded(
        "setattr(load('asiarch_hpc.gate.checks.causality'), 'examine_causality', lambda *a: iter(()))",
        "sandbox.tampered",
    ),
    "replaces a module of the gate": _loaded(
        "sys.modules['asiarch_hpc.gate.checks.learning'] = type(sys)('learning')", "sandbox.tampered"
    ),
    "listens to every module": _loaded(
        "torch.nn.modules.module.register_module_forward_hook(lambda *a: None)", "sandbox.tampered"
    ),
}  # fmt: skip
