"""A checkpoint counts only where every byte is as it was written; deletion never leaves less than one."""

import logging
from pathlib import Path

import pytest

from distill.checkpoint import MANIFEST, clear_partial, complete, damage, newest_intact, partial_folder, prune

FILES = {"weights.pt": b"x" * 100, "zero/rank0.pt": b"y" * 50}


def make(folder: Path, step: int) -> Path:
    partial = partial_folder(folder, step)
    for name, content in FILES.items():
        (partial / name).parent.mkdir(parents=True, exist_ok=True)
        (partial / name).write_bytes(content)
    made, size = complete(folder, step, {"world_size": 2, "zero_stage": 1})
    assert size == 150
    return made


def flip_a_byte(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


def truncate(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-1])


@pytest.mark.parametrize("harm", [flip_a_byte, truncate, Path.unlink], ids=lambda harm: harm.__name__)
@pytest.mark.parametrize("name", [*FILES, MANIFEST])
def test_every_damaged_file_is_detected_named_and_the_previous_checkpoint_resumed(
    name: str, harm: object, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    first, second = make(tmp_path, 5), make(tmp_path, 10)
    assert newest_intact(tmp_path) == second
    harm(second / name)  # type: ignore[operator]
    with caplog.at_level(logging.WARNING):
        assert newest_intact(tmp_path) == first
    assert f"{second} is damaged: {name}" in caplog.text and damage(first) is None


def test_without_any_there_is_nothing_to_resume(tmp_path: Path) -> None:
    assert newest_intact(tmp_path) is None
    partial_folder(tmp_path, 600).mkdir(parents=True)
    assert newest_intact(tmp_path) is None
    clear_partial(tmp_path)
    assert not list(tmp_path.iterdir())


def steps(folder: Path) -> list[int]:
    return sorted(int(path.name.removeprefix("step-")) for path in folder.iterdir())


def test_the_newest_the_best_and_every_so_many_are_kept(tmp_path: Path) -> None:
    for step in range(1, 11):
        make(tmp_path, step)
        prune(tmp_path, keep=2, keep_every_steps=4, best_step=3)
    assert steps(tmp_path) == [3, 4, 8, 9, 10]


def test_a_torn_newest_one_is_not_counted(tmp_path: Path) -> None:
    for step in (1, 2, 3, 4):
        make(tmp_path, step)
    truncate(tmp_path / "step-00000004" / "weights.pt")
    prune(tmp_path, keep=1, keep_every_steps=None, best_step=None)
    assert steps(tmp_path) == [3, 4] and newest_intact(tmp_path) == tmp_path / "step-00000003"


def test_where_all_are_torn_none_is_deleted(tmp_path: Path) -> None:
    for step in (1, 2):
        (make(tmp_path, step) / MANIFEST).unlink()
    prune(tmp_path, keep=1, keep_every_steps=None, best_step=None)
    assert steps(tmp_path) == [1, 2]


def test_no_byte_of_the_manifest_changes_unseen(tmp_path: Path) -> None:
    manifest = make(tmp_path, 5) / MANIFEST
    text = manifest.read_bytes()
    for place in range(len(text)):
        manifest.write_bytes(text[:place] + bytes([text[place] ^ 1]) + text[place + 1 :])
        assert damage(manifest.parent) is not None, place
