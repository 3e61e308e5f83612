"""One training at a time: the newest attempt has it."""

from pathlib import Path

import pytest

from distill.claim import Claim, TakenOverError


def job(number: int, restart: int) -> dict[str, str]:
    return {"SLURM_JOB_ID": str(number)} | ({"SLURM_RESTART_COUNT": str(restart)} if restart else {})


def test_the_newer_attempt_has_the_work(tmp_path: Path) -> None:
    old = Claim(tmp_path / "claim", {})
    old.check()
    new = Claim(tmp_path / "claim", {})
    new.check()
    with pytest.raises(TakenOverError, match="taken over by another attempt"):
        old.check()


def test_a_slow_attempt_does_not_push_a_later_restart_aside(tmp_path: Path) -> None:
    later = Claim(tmp_path / "claim", job(7, 2))
    with pytest.raises(TakenOverError, match="job 7, restart 2"):
        Claim(tmp_path / "claim", job(7, 1))
    later.check()
    Claim(tmp_path / "claim", job(7, 3)).check()
    Claim(tmp_path / "claim", job(8, 0)).check()  # another job begins to count anew


def test_tasks_of_an_array_are_jobs_of_their_own(tmp_path: Path) -> None:
    array = {"SLURM_ARRAY_JOB_ID": "7", "SLURM_JOB_ID": "9"}
    Claim(tmp_path / "claim", array | {"SLURM_ARRAY_TASK_ID": "1", "SLURM_RESTART_COUNT": "4"})
    Claim(tmp_path / "claim", array | {"SLURM_ARRAY_TASK_ID": "2"}).check()


def test_without_its_file_nobody_writes(tmp_path: Path) -> None:
    claim = Claim(tmp_path / "claim", {})
    (tmp_path / "claim").unlink()
    with pytest.raises(TakenOverError, match="is gone"):
        claim.check()
