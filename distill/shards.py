"""Shards: files that grow batch by batch, each made by one process, which may be killed at any moment.

An attempt at a shard writes only to a file of its own. It begins with a copy of the whole batches that the furthest
earlier attempt left, and takes the shard over: an attempt that is still alive (a second worker by mistake, or one on a
node that was cut off and came back) notices before its next batch, says so and stops. So nothing is locked, no shard
knows of another, and what two attempts wrote is never mixed. A whole shard gets its manifest, then its final name.
"""

import hashlib
import heapq
import json
import logging
import os
import secrets
import socket
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from distill.claim import TakenOverError
from distill.files import PARTIAL, fsync, sha256_file, write_json, write_text

log = logging.getLogger(__name__)

COPIED_BYTES = 2**24  # at a time

Whole = Callable[[Path], tuple[int, int]]
"""A growing file -> (its whole batches, their bytes)."""


def equal_shards(work: Sequence[float], shards: int) -> list[list[int]]:
    """Indices of `work` in parts of nearly equal work, each with the most first.

    Longest processing time first (Graham 1969): the next largest goes to the part that has least so far.
    """
    parts: list[list[int]] = [[] for _ in range(shards)]
    loads = [(0.0, number) for number in range(shards)]
    for index in sorted(range(len(work)), key=lambda i: (-work[i], i)):
        load, number = loads[0]
        parts[number].append(index)
        heapq.heapreplace(loads, (load + work[index], number))
    return parts


@dataclass(frozen=True)
class Shard:
    """Shard `number` of `of` in a folder."""

    folder: Path
    number: int
    of: int
    suffix: str

    @property
    def data(self) -> Path:
        return self.folder / f"shard-{self.number:05d}-of-{self.of:05d}{self.suffix}"

    @property
    def manifest(self) -> Path:
        """Says that the shard is whole, and what it holds."""
        return self.data.with_suffix(".json")

    @property
    def claim(self) -> Path:
        """Names the attempt that has the shard."""
        return self.data.with_name(f"{self.data.name}.claim")

    def is_complete(self) -> bool:
        return self.manifest.exists() and self.data.exists()

    def leftovers(self, key: str = "*") -> list[Path]:
        """The growing files of attempts, by default of all."""
        return sorted(self.folder.glob(f"{self.data.name}.{key}.*{PARTIAL}"))


def shards_of(folder: Path, count: int, suffix: str) -> list[Shard]:
    return [Shard(folder, number, count, suffix) for number in range(count)]


def count_done(shards: Sequence[Shard]) -> tuple[int, int]:
    """(whole shards, all shards)"""
    return sum(shard.is_complete() for shard in shards), len(shards)


def content_key(settings: Any) -> str:
    """Short hash of all that decides a growing file's bytes, so that others are never continued."""
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:12]


def fill(
    shard: Shard,
    contents: Mapping[str, Any],
    key: str,
    plan: Sequence[list[int]],
    whole: Whole,
    make: Callable[[list[int]], bytes],
    before_batch: Callable[[], None] = lambda: None,
) -> None:
    """Fill a shard batch by batch, from where an earlier attempt was killed; nothing to do where it is complete.

    `make` gives a batch's bytes, which must follow from the batch alone. The manifest holds `contents`, the number of
    items of `plan`, bytes and SHA-256. TakenOverError where another attempt took the shard over.
    """
    if shard.is_complete():
        log.info("%s is complete", shard.data)
        return
    shard.folder.mkdir(parents=True, exist_ok=True)
    owner = f"{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(4)}"
    growing = shard.data.with_name(f"{shard.data.name}.{key}.{owner}{PARTIAL}")
    try:
        write_text(shard.claim, owner)
        if shard.is_complete():  # while this attempt began
            shard.claim.unlink()
            return
        _grow(shard, owner, key, growing, plan, whole, make, before_batch)
        items, size = sum(map(len, plan)), growing.stat().st_size
        record = {"items": items, "bytes": size, "sha256": sha256_file(growing)}
        _check_owner(shard, owner)
        write_json(shard.manifest, {"contents": dict(contents), **record})
        growing.replace(shard.data)  # last: before it the shard is not complete, and can be continued
    except FileNotFoundError:  # whoever finished the shard has removed the files of all attempts
        _check_owner(shard, owner)
        raise
    for leftover in [*shard.leftovers(), *shard.folder.glob(f"{shard.data.name}.*.limit"), shard.claim]:
        leftover.unlink(missing_ok=True)
    log.info("%s: %d items, %.1f MB", shard.data, items, size / 1e6)


def _grow(
    shard: Shard,
    owner: str,
    key: str,
    growing: Path,
    plan: Sequence[list[int]],
    whole: Whole,
    make: Callable[[list[int]], bytes],
    before_batch: Callable[[], None],
) -> None:
    """Write all batches to the attempt's own file, beginning with those of the furthest earlier attempt."""
    with growing.open("wb") as file:
        earlier, done = _copy_furthest(shard, key, growing, whole)
        _check_owner(shard, owner)
        # Whoever takes the shard over from here on finds the copy; the files of attempts that began later than this one
        # are not among these, since their claims would have been seen.
        for path in earlier:
            path.unlink(missing_ok=True)
        if done:
            log.info("%s: continuing after %d whole batches of an earlier attempt", shard.data.name, done)
        file.seek(0, os.SEEK_END)
        for number, batch in enumerate(plan[done:], start=done + 1):
            before_batch()
            _check_owner(shard, owner)
            log.info("%s: batch %d of %d, %d items", shard.data.name, number, len(plan), len(batch))
            file.write(make(batch))
            file.flush()
        os.fsync(file.fileno())


def _copy_furthest(shard: Shard, key: str, growing: Path, whole: Whole) -> tuple[list[Path], int]:
    """Copy the whole batches of the earlier attempt that has most; (the files of all, the number of batches)."""
    while True:
        earlier = [path for path in shard.leftovers(key) if path != growing]
        try:
            (done, size), furthest = max(((whole(path), path) for path in earlier), default=((0, 0), None))
            if furthest:
                with furthest.open("rb") as source, growing.open("r+b") as target:
                    while part := source.read(min(COPIED_BYTES, size - source.tell())):
                        target.write(part)
                fsync(growing)
            return earlier, done
        except FileNotFoundError:  # another attempt copied and removed one of them; its copy is there now
            if not growing.exists():
                raise


def _check_owner(shard: Shard, owner: str) -> None:
    try:
        now = shard.claim.read_text(encoding="utf-8")
    except FileNotFoundError:  # the other attempt has finished the shard
        now = ""
    if now != owner:
        raise TakenOverError(
            f"{shard.data} was taken over by another process ({now or 'which has finished it'}), so this one stops; "
            "nothing is lost. Expected one process for each shard; give every worker shards of its own (--shard)."
        )


def fill_each(numbers: Iterable[int], write: Callable[[int], None]) -> None:
    """Fill several shards; one that another process takes over is left to it, and the others are made.

    TakenOverError where there was but that one.
    """
    asked = list(numbers)
    for number in asked:
        try:
            write(number)
        except TakenOverError as error:
            if len(asked) == 1:
                raise
            log.warning("%s The other shards go on.", error)
