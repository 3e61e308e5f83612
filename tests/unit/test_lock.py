"""One launcher for one run, whoever dies and whoever comes at the same time."""

import json
import multiprocessing
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from distill.errors import InputError
from launch import lock as lock_module
from launch.lock import LockLostError, RunLock
from tests.conftest import PATIENCE_SECONDS


def holder(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "launcher.lock").read_text())
    return found


def forge(folder: Path, **changes: Any) -> None:
    with RunLock(folder):
        text = json.dumps(holder(folder) | changes)
    (folder / "launcher.lock").write_text(text)


def test_a_second_launcher_is_refused_and_told_who_has_the_run(tmp_path: Path) -> None:
    with (
        RunLock(tmp_path / "logs"),
        pytest.raises(InputError, match=rf"is being run by process {os.getpid()} on .* \(since .*\). Wait for it"),
        RunLock(tmp_path / "logs"),
    ):
        pass
    with RunLock(tmp_path / "logs"):
        pass
    assert not list((tmp_path / "logs").iterdir()), "nothing is left"


def test_the_lock_of_a_dead_process_is_taken_over(tmp_path: Path) -> None:
    dead = subprocess.run([sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, text=True)
    forge(tmp_path, process=int(dead.stdout), id="dead")
    with RunLock(tmp_path):
        assert holder(tmp_path)["process"] == os.getpid()


def test_a_process_that_got_the_number_of_a_dead_one_is_not_its_holder(tmp_path: Path) -> None:
    forge(tmp_path, started="1", id="dead")
    with RunLock(tmp_path):
        assert holder(tmp_path)["started"] != "1"


def test_a_job_that_slurm_runs_again_has_the_run_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its node may have died a moment ago, with the launcher on it."""
    monkeypatch.setenv("SLURM_JOB_ID", "17")
    forge(tmp_path, host="elsewhere", id="far")
    with pytest.raises(InputError, match="on elsewhere"), RunLock(tmp_path):  # not a restart: both may be alive
        pass
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    with RunLock(tmp_path):
        assert holder(tmp_path)["restart"] == 1


def test_a_holder_on_another_machine_lives_by_its_heartbeat(tmp_path: Path) -> None:
    forge(tmp_path, host="elsewhere", id="far")
    with pytest.raises(InputError, match="on elsewhere"), RunLock(tmp_path):
        pass
    old = time.time() - lock_module.STALE_SECONDS - 5
    os.utime(tmp_path / "launcher.lock", (old, old))
    with RunLock(tmp_path):
        assert holder(tmp_path)["host"] != "elsewhere"


def test_who_was_taken_for_dead_notices(tmp_path: Path) -> None:
    with RunLock(tmp_path) as first:
        first.check()
        (tmp_path / "launcher.lock").write_text(json.dumps(holder(tmp_path) | {"id": "another", "host": "there"}))
        with pytest.raises(LockLostError, match="held by process .* on there"):
            first.check()
    assert holder(tmp_path)["id"] == "another", "and leaves the other's lock alone"


def test_the_heart_beats(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lock_module, "HEARTBEAT_SECONDS", 0.01)
    with RunLock(tmp_path):
        os.utime(tmp_path / "launcher.lock", (0, 0))
        deadline = time.monotonic() + PATIENCE_SECONDS
        while (tmp_path / "launcher.lock").stat().st_mtime == 0:
            assert time.monotonic() < deadline
            time.sleep(0.01)


def compete(folder: str, barrier: Any, result: Any) -> None:
    barrier.wait()
    try:
        with RunLock(Path(folder)):
            result.put("held")
            barrier.wait()  # until all others have tried
    except InputError:
        result.put("refused")
        barrier.wait()


def test_of_many_that_see_the_same_dead_holder_one_gets_the_lock(tmp_path: Path) -> None:
    for _ in range(5):
        forge(tmp_path, process=2**22 + 1, id="dead")
        context = multiprocessing.get_context("fork")
        barrier, result = context.Barrier(6), context.Queue()
        racers = [context.Process(target=compete, args=(str(tmp_path), barrier, result)) for _ in range(6)]
        for racer in racers:
            racer.start()
        outcomes = sorted(result.get(timeout=PATIENCE_SECONDS) for _ in racers)
        for racer in racers:
            racer.join()
        assert outcomes == ["held", *["refused"] * 5]


def test_a_zombie_holds_nothing(tmp_path: Path) -> None:
    child = subprocess.Popen([sys.executable, "-c", ""])
    while lock_module._process_start(child.pid) is not None:
        time.sleep(0.02)
    assert Path(f"/proc/{child.pid}").exists(), "not yet waited for"
    forge(tmp_path, process=child.pid, started="1", id="dead")
    with RunLock(tmp_path):
        pass
    child.wait()


def test_a_marker_that_somebody_died_with_is_removed(tmp_path: Path) -> None:
    forge(tmp_path, process=2**22 + 1, id="dead")
    marker = tmp_path / "launcher.lock.dead-dead"
    marker.touch()
    old = time.time() - lock_module.STALE_SECONDS - 5
    os.utime(marker, (old, old))
    with RunLock(tmp_path):
        assert not marker.exists()
