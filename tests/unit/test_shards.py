"""A shard that is killed, disturbed or crowded ends byte for byte as an undisturbed one."""

import errno
from pathlib import Path

import pytest

from distill.errors import InputError
from distill.files import read_json
from distill.shards import Shard, equal_shards, fill

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

    with pytest.raises(InputError, match="which has finished it"):
        run(shard, cut_off)
    assert files(shard.folder) == undisturbed


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
