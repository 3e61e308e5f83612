import multiprocessing
import os
import signal
import socket
from pathlib import Path

import pytest

from distill.errors import InputError
from distill.files import (
    append_jsonl,
    atomic_file,
    atomic_folder,
    check_writable,
    clear_leftovers,
    read_jsonl,
    restore_replaced,
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


def die_while_writing(folder: Path) -> None:
    with atomic_folder(folder / "corpus") as partial, atomic_file(folder / "tokens.arrow") as file:
        (partial / "half").write_text("half")
        file.write_text("half")
        os.kill(os.getpid(), signal.SIGKILL)


def test_what_a_killed_attempt_left_is_removed_and_nothing_of_a_living_one(tmp_path: Path) -> None:
    child = multiprocessing.get_context("fork").Process(target=die_while_writing, args=(tmp_path,))
    child.start()
    child.join()
    assert len(list(tmp_path.glob("*.partial"))) == 2
    living = tmp_path / f"corpus.{socket.gethostname()}-{os.getppid()}.partial"
    elsewhere = tmp_path / f"corpus.another-node-{child.pid}.partial"
    for folder in (living, elsewhere):
        folder.mkdir()
    with atomic_folder(tmp_path / "corpus") as partial:
        assert not list(partial.iterdir())
        (partial / "whole").write_text("whole")
    clear_leftovers(tmp_path / "tokens.arrow")
    assert sorted(tmp_path.iterdir()) == sorted([tmp_path / "corpus", living, elsewhere])


def test_a_file_that_others_may_have_mapped_stays(tmp_path: Path) -> None:
    target = tmp_path / "x"
    with atomic_file(target, keep=True) as partial:
        partial.write_text("late")
        target.write_text("first")
    assert target.read_text() == "first" and list(tmp_path.iterdir()) == [target]
