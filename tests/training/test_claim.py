import os
import socket
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from asiarch_hpc.training import claim
from asiarch_hpc.training.claim import claimed


def never() -> bool:
    return False


def ignored(holder: str) -> None:
    pass


def test_the_second_waits_for_the_first(tmp_path: Path) -> None:
    order: list[str] = []
    path = tmp_path / "claim"
    waiting = threading.Event()

    def look() -> bool:
        waiting.set()
        return False

    def second() -> None:
        with claimed(path, stale_seconds=60, finished=look, on_wait=ignored):
            order.append("second")

    with claimed(path, stale_seconds=60, finished=never, on_wait=ignored):
        thread = threading.Thread(target=second)
        thread.start()
        assert waiting.wait(20)
        order.append("first")
    thread.join(20)
    assert order == ["first", "second"]
    assert not path.exists()


def test_nobody_waits_for_finished_work(tmp_path: Path) -> None:
    path = tmp_path / "claim"
    with (
        claimed(path, stale_seconds=60, finished=never, on_wait=ignored),
        claimed(path, stale_seconds=60, finished=lambda: True, on_wait=ignored),
    ):
        assert path.exists()
    with claimed(path, stale_seconds=60, finished=never, on_wait=ignored):
        with claimed(path, stale_seconds=60, finished=lambda: True, on_wait=ignored):
            pass
        assert path.exists()  # whoever did not need it does not give it back
        path.write_text("elsewhere 1")
    assert path.exists()  # another process took it over


def test_signs_of_life_can_be_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(claim, "_BEAT_S", 0.0)
    path = tmp_path / "claim"
    with claimed(path, stale_seconds=60, finished=never, on_wait=ignored) as beat:
        os.utime(path, (1, 1))
        beat()
        assert path.stat().st_mtime > 1
        path.unlink()
        beat()  # nobody's any more
        assert not path.exists()


def test_a_claim_of_a_killed_process_is_taken_over(tmp_path: Path) -> None:
    path = tmp_path / "claim"
    code = (
        "import os, sys; from pathlib import Path; from asiarch_hpc.training.claim import claimed\n"
        "with claimed(Path(sys.argv[1]), stale_seconds=60, finished=bool, on_wait=print): os.kill(os.getpid(), 9)"
    )
    subprocess.run([sys.executable, "-c", code, str(path)], check=False)
    assert path.exists()
    with claimed(path, stale_seconds=3600, finished=never, on_wait=ignored):
        assert path.read_text() == f"{socket.gethostname()} {os.getpid()}"
    assert not path.exists()


def test_a_claim_of_another_machine_is_taken_over_when_it_gives_no_sign(tmp_path: Path) -> None:
    path = tmp_path / "claim"
    path.write_text(f"{socket.gethostname()}-other {os.getpid()}")
    with claimed(path, stale_seconds=0.3, finished=never, on_wait=ignored):
        assert path.read_text().startswith(f"{socket.gethostname()} ")


def test_what_goes_wrong_gives_the_claim_back(tmp_path: Path) -> None:
    path = tmp_path / "claim"
    with pytest.raises(RuntimeError, match="wrong"), claimed(path, stale_seconds=60, finished=never, on_wait=ignored):
        raise RuntimeError("wrong")
    assert not path.exists()
