from pathlib import Path

import pytest

from distill import checkpoint
from distill.errors import InputError
from distill.files import (
    append_jsonl,
    atomic_file,
    atomic_folder,
    check_writable,
    read_jsonl,
    restore_replaced,
    write_json,
)


def test_a_file_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    target = tmp_path / "a.txt"
    with pytest.raises(RuntimeError), atomic_file(target) as partial:
        partial.write_text("half")
        raise RuntimeError
    assert list(tmp_path.iterdir()) == []
    with atomic_file(target) as partial:
        partial.write_text("whole")
        assert not target.exists()
    assert target.read_text() == "whole" and list(tmp_path.iterdir()) == [target]


def test_a_folder_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    target = tmp_path / "f"
    with pytest.raises(RuntimeError), atomic_folder(target) as partial:
        (partial / "x").write_text("half")
        raise RuntimeError
    assert list(tmp_path.iterdir()) == []
    for text in ("one", "two"):  # the second replaces the first
        with atomic_folder(target) as partial:
            (partial / text).write_text(text)
    assert [p.name for p in target.iterdir()] == ["two"] and list(tmp_path.iterdir()) == [target]


def test_a_folder_that_was_being_replaced_comes_back(tmp_path: Path) -> None:
    (tmp_path / "best.replaced").mkdir()
    restore_replaced(tmp_path / "best")
    assert [path.name for path in tmp_path.iterdir()] == ["best"]
    (tmp_path / "best.replaced").mkdir()
    restore_replaced(tmp_path / "best")  # the new one stands: the old one stays aside
    assert (tmp_path / "best.replaced").exists()


def test_a_torn_last_line_is_dropped(tmp_path: Path) -> None:
    path = tmp_path / "m.jsonl"
    assert read_jsonl(path) == []
    append_jsonl(path, {"text": "line\nbreak \u2028 é"})
    with path.open("a") as file:
        file.write('{"torn": tr')
    assert read_jsonl(path) == [{"text": "line\nbreak \u2028 é"}]


def test_a_place_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for place in (tmp_path / "file" / "run", Path("/proc/nowhere")):
        with pytest.raises(InputError, match="cannot write to .* Expected a folder this user may write to"):
            check_writable(place)


def make_checkpoint(folder: Path, step: int) -> Path:
    partial = checkpoint.partial_folder(folder, step)
    partial.mkdir(parents=True)
    (partial / "weights.pt").write_bytes(b"x" * 100)
    return checkpoint.complete(folder, step, world_size=2)


def test_the_newest_complete_checkpoint_is_chosen(tmp_path: Path) -> None:
    assert checkpoint.newest_complete(tmp_path) is None
    first, second, third = (make_checkpoint(tmp_path, step) for step in (5, 50, 500))
    checkpoint.partial_folder(tmp_path, 600).mkdir()
    assert checkpoint.newest_complete(tmp_path) == third
    (third / "weights.pt").write_bytes(b"x" * 99)  # torn
    assert checkpoint.newest_complete(tmp_path) == second
    (second / "manifest.json").unlink()
    assert checkpoint.newest_complete(tmp_path) == first


def test_another_number_of_processes_is_refused(tmp_path: Path) -> None:
    folder = make_checkpoint(tmp_path, 5)
    checkpoint.check_world_size(folder, 2)
    with pytest.raises(InputError, match="was saved by 2 process.* but 3 are running now.*--processes 2"):
        checkpoint.check_world_size(folder, 3)


def test_only_the_last_checkpoints_are_kept(tmp_path: Path) -> None:
    for step in (1, 2, 3, 4):
        make_checkpoint(tmp_path, step)
    checkpoint.prune(tmp_path, keep=2)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["step-00000003", "step-00000004"]
    write_json(tmp_path / "step-00000004" / "manifest.json", {"step": 4, "files": {"weights.pt": 1}})  # now torn
    checkpoint.prune(tmp_path, keep=1)
    assert checkpoint.newest_complete(tmp_path) == tmp_path / "step-00000003"
    checkpoint.clear_partial(tmp_path)
