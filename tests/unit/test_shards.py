"""A shard that is killed, disturbed or crowded ends byte for byte as an undisturbed one."""

import errno
import multiprocessing
import time
from pathlib import Path
from typing import Any

import pytest

from distill.errors import InputError
from distill.files import read_json
from distill.shards import Shard, TakenOverError, equal_shards, fill, fill_each
from tests.conftest import PATIENCE_SECONDS

PLAN = [[3, 1], [0], [2, 5, 4]]


class KilledError(Exception):
    pass


def make(batch: list[int]) -> bytes:
    return b"".join(b"item %d\n" % item for item in batch)


def whole(path: Path) -> tuple[int, int]:
    lines, done, size = path.read_bytes().split(b"\n")[:-1], 0, 0
    for batch in PLAN:
        if len(lines) < len(batch):
            break
        size += sum(len(line) + 1 for line in lines[: len(batch)])
        done, lines = done + 1, lines[len(batch) :]
    return done, size


def run(shard: Shard, make=make, key: str = "k") -> None:  # type: ignore[no-untyped-def]
    fill(shard, {"settings": key}, key, PLAN, whole, make)


def shard_in(folder: Path) -> Shard:
    return Shard(folder, 0, 1, ".txt")


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture
def undisturbed(tmp_path: Path) -> dict[str, bytes]:
    run(shard_in(tmp_path / "undisturbed"))
    return files(tmp_path / "undisturbed")


def test_a_whole_shard_has_a_manifest_and_nothing_else(undisturbed: dict[str, bytes], tmp_path: Path) -> None:
    assert sorted(undisturbed) == ["shard-00000-of-00001.json", "shard-00000-of-00001.txt"]
    manifest = read_json(tmp_path / "undisturbed" / "shard-00000-of-00001.json")
    assert (manifest["items"], manifest["contents"]) == (6, {"settings": "k"})


@pytest.mark.parametrize("torn", [0, 3])
def test_killed_at_every_batch(torn: int, undisturbed: dict[str, bytes], tmp_path: Path) -> None:
    shard, made = shard_in(tmp_path / "killed"), []

    def dies_once_a_batch(batch: list[int]) -> bytes:
        if batch not in made:
            made.append(batch)
            raise KilledError
        return make(batch)

    for _ in PLAN:
        with pytest.raises(KilledError):
            run(shard, dies_once_a_batch)
        (leftover,) = shard.leftovers()
        with leftover.open("ab") as file:
            file.write(b"item 9"[:torn])
    run(shard, dies_once_a_batch)
    assert files(shard.folder) == undisturbed and made == PLAN


def test_no_batch_is_made_twice_after_a_kill(tmp_path: Path) -> None:
    shard, made = shard_in(tmp_path), []

    def counts(batch: list[int]) -> bytes:
        made.append(batch)
        if len(made) == 3:
            raise KilledError
        return make(batch)

    with pytest.raises(KilledError):
        run(shard, counts)
    run(shard, counts)
    assert made == [*PLAN, PLAN[2]]
    run(shard, counts)
    assert len(made) == 4, "a complete shard is left alone"


def test_the_newest_of_two_attempts_wins_and_the_other_says_so(undisturbed: dict[str, bytes], tmp_path: Path) -> None:
    shard = shard_in(tmp_path / "two")

    def first(batch: list[int]) -> bytes:
        if batch == PLAN[1]:  # a second worker begins, and is killed in its own second batch

            def second(batch: list[int]) -> bytes:
                if batch == PLAN[2]:
                    raise KilledError
                return make(batch)

            with pytest.raises(KilledError):
                run(shard, second)
        return make(batch)

    with pytest.raises(InputError, match="was taken over by another process .* this one stops; nothing is lost"):
        run(shard, first)
    run(shard)
    assert files(shard.folder) == undisturbed


def test_an_attempt_that_comes_back_after_the_shard_was_finished(undisturbed: dict[str, bytes], tmp_path: Path) -> None:
    shard = shard_in(tmp_path / "back")

    def cut_off(batch: list[int]) -> bytes:
        if batch == PLAN[0]:
            run(shard)
        return make(batch)

    with pytest.raises(TakenOverError, match="which has finished it"):
        run(shard, cut_off)
    assert files(shard.folder) == undisturbed


def test_one_that_comes_back_at_its_end_publishes_nothing(undisturbed: dict[str, bytes], tmp_path: Path) -> None:
    """A newer attempt has the shard and is in its first batch when the older one has finished its last."""
    shard = shard_in(tmp_path / "end")

    def old(batch: list[int]) -> bytes:
        if batch == PLAN[2]:
            with pytest.raises(KilledError):
                run(shard, lambda _: _die())
        return make(batch)

    with pytest.raises(TakenOverError):
        run(shard, old)
    assert not shard.is_complete() and not shard.data.exists()
    run(shard)
    assert files(shard.folder) == undisturbed


def test_killed_between_the_manifest_and_the_last_rename(
    undisturbed: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shard, made = shard_in(tmp_path / "late"), []

    def killed(self: Path, target: Path) -> Path:
        if target == shard.data:
            raise KilledError
        return real(self, target)

    real = Path.replace
    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", killed)
        with pytest.raises(KilledError):
            run(shard)
    assert not shard.is_complete()
    run(shard, lambda batch: made.append(batch) or make(batch))  # type: ignore[func-returns-value]
    assert made == [] and files(shard.folder) == undisturbed


def race(folder: str, barrier: Any, result: Any) -> None:
    shard = shard_in(Path(folder))
    barrier.wait()
    try:
        run(shard, lambda batch: (time.sleep(0.002), make(batch))[1])
        result.put("done")
    except TakenOverError:
        result.put("taken over")


def test_workers_that_start_together_lose_nothing_and_one_finishes(
    undisturbed: dict[str, bytes], tmp_path: Path
) -> None:
    context = multiprocessing.get_context("fork")
    for number in range(25):
        shard = shard_in(tmp_path / str(number))
        with pytest.raises(KilledError):  # a leftover that all of them want
            run(shard, lambda batch: make(batch) if batch != PLAN[2] else _die())
        barrier, result = context.Barrier(3), context.Queue()
        workers = [context.Process(target=race, args=(str(shard.folder), barrier, result)) for _ in range(3)]
        for worker in workers:
            worker.start()
        outcomes = [result.get(timeout=PATIENCE_SECONDS) for _ in workers]
        for worker in workers:
            worker.join()
        assert "done" in outcomes and set(outcomes) <= {"done", "taken over"}
        left = files(shard.folder)
        assert {name: left[name] for name in undisturbed} == undisturbed


def test_of_several_shards_one_that_is_taken_over_does_not_stop_the_others() -> None:
    made = []

    def write(number: int) -> None:
        if number == 1:
            raise TakenOverError("somebody has it")
        made.append(number)

    fill_each([0, 1, 2], write)
    assert made == [0, 2]
    with pytest.raises(TakenOverError):
        fill_each([1], write)


def test_the_furthest_attempt_is_continued(tmp_path: Path) -> None:
    shard, made = shard_in(tmp_path), []
    shard.folder.mkdir(exist_ok=True)
    for name, batches in (("a", 1), ("b", 2), ("c", 0)):
        content = b"".join(make(batch) for batch in PLAN[:batches])
        (tmp_path / f"{shard.data.name}.k.{name}.partial").write_bytes(content + b"torn")
    run(shard, lambda batch: made.append(batch) or make(batch))  # type: ignore[func-returns-value]
    assert made == [PLAN[2]]


def test_what_other_settings_left_is_not_continued_and_goes(undisturbed: dict[str, bytes], tmp_path: Path) -> None:
    shard = shard_in(tmp_path / "other")
    with pytest.raises(KilledError):
        run(shard, lambda batch: b"other\n" * len(batch) if batch == PLAN[0] else _die(), key="x")
    assert len(shard.leftovers("x")) == 1
    run(shard)
    assert files(shard.folder) == undisturbed


def _die() -> bytes:
    raise KilledError


def test_a_disk_that_is_full_loses_nothing(undisturbed: dict[str, bytes], tmp_path: Path) -> None:
    shard = shard_in(tmp_path / "full")

    def full(batch: list[int]) -> bytes:
        if batch == PLAN[2]:
            raise OSError(errno.ENOSPC, "No space left on device")
        return make(batch)

    for _ in range(2):
        with pytest.raises(OSError, match="No space left"):
            run(shard, full)
    made: list[list[int]] = []
    run(shard, lambda batch: made.append(batch) or make(batch))  # type: ignore[func-returns-value]
    assert made == [PLAN[2]] and files(shard.folder) == undisturbed


@pytest.mark.parametrize("shards", [1, 3, 16])
def test_shards_have_equal_work_and_every_item_once(shards: int) -> None:
    work = [(i * 7919) % 251 + 20.0 for i in range(600)]
    parts = equal_shards(work, shards)
    assert sorted(item for part in parts for item in part) == list(range(600))
    loads = [sum(work[i] for i in part) for part in parts]
    assert max(loads) <= 1.01 * sum(loads) / shards
    assert all(work[part[0]] == max(work[i] for i in part) for part in parts), "longest first"


def test_more_shards_than_items() -> None:
    assert sorted(map(len, equal_shards([1.0, 2.0], 4))) == [0, 0, 1, 1]
