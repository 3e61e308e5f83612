"""Summaries of a set of documents in shards, for labels and for scores: made batch by batch, put together exactly.

A shard is a growing file of JSON lines, one for each document, in an order that follows from the documents' lengths.
"""

import gc
import json
import logging
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from distill.errors import InputError
from distill.files import read_json, sha256_file, write_text
from distill.generation import Candidate, Engine, plan_batches
from distill.shards import Shard, content_key, equal_shards, fill, shards_of

log = logging.getLogger(__name__)

# What a document costs beside its source tokens, in such tokens: the steps of the decoder, alike for all.
DECODING_TOKENS = 64

REASONS = {
    "documents": "the documents have changed since it was made",
    "tokens": "the documents are cut into other tokens (another tokenizer, or other limits)",
    "model": "the model has other weights than when it was made",
}


@dataclass(frozen=True)
class Contents:
    """What summaries were made of and how: equal contents, equal summaries."""

    documents: str
    """Hash of the file of the documents."""
    tokens: str
    """Hash of their token ids: other for another tokenizer, or other limits."""
    model: str
    """Hash of the weights, or the name and revision of a hub model."""
    decoding: dict[str, Any]
    engine: dict[str, Any]
    shards: int

    def reasons(self, now: "Contents") -> list[str]:
        """How these contents differ from those of now."""
        mine, theirs = asdict(self), asdict(now)
        return [
            REASONS.get(name, f"{name} was {mine[name]}, is {theirs[name]}")
            for name in mine
            if mine[name] != theirs[name]
        ]


@dataclass(frozen=True)
class SummaryWriter:
    """Fills the shards of a set of documents with an engine's summaries."""

    folder: Path
    contents: Contents
    engine: Engine
    ids: Sequence[str]
    source: Sequence[list[int]]
    batch_tokens: int
    """Most source tokens, padding included, of one batch."""
    before_batch: Callable[[], None] = lambda: None
    """May raise, to stop."""

    def write(self, number: int) -> None:
        """Fill shard `number`, from where a killed attempt left off."""
        shard = Shard(self.folder, number, self.contents.shards, ".jsonl")
        key = content_key([asdict(self.contents), self.batch_tokens])
        plan = self.plan(number)
        log.info("%s: %d documents, %s", shard.data.name, sum(map(len, plan)), self._padding(plan))
        limit = shard.data.with_name(f"{shard.data.name}.{key}.limit")
        fill(
            shard,
            contents=asdict(self.contents),
            key=key,
            plan=plan,
            whole=lambda path: whole_records(path, plan),
            make=lambda batch: self._lines(batch, limit),
            before_batch=self.before_batch,
        )

    def plan(self, number: int) -> list[list[int]]:
        """The documents of a shard in batches, longest first."""
        documents = shard_documents(self.source, self.contents.shards)[number]
        batches = plan_batches([len(self.source[i]) for i in documents], self.batch_tokens)
        return [[documents[i] for i in batch] for batch in batches]

    def _lines(self, batch: list[int], limit: Path) -> bytes:
        began = time.monotonic()
        made = self._fitting(batch, limit)
        log.info("%d documents, %.2f a second", len(batch), len(batch) / (time.monotonic() - began))
        return b"".join(_line(index, self.ids[index], made[index]) for index in batch)

    def _fitting(self, batch: list[int], limit: Path) -> dict[int, list[Candidate]]:
        """The batch's summaries, made in pieces that fit the memory.

        What fits is kept beside the growing file, so that whoever continues it computes in the same pieces.
        """
        most = int(limit.read_text()) if limit.exists() else self.batch_tokens
        made: dict[int, list[Candidate]] = {}
        for piece in plan_batches([len(self.source[i]) for i in batch], most):
            documents = [batch[i] for i in piece]
            longest = max(len(self.source[i]) for i in documents)
            try:
                made |= zip(documents, self.engine([self.source[i] for i in documents]), strict=True)
            except (MemoryError, RuntimeError) as error:
                if not is_out_of_memory(error) or len(documents) == 1:
                    raise
                half = longest * (len(documents) // 2)
            else:
                continue
            _free_memory()  # here the failed attempt's tensors are no longer referred to
            log.warning(
                "%d documents of up to %d tokens do not fit the memory: from here on %d tokens",
                len(documents),
                longest,
                half,
            )
            write_text(limit, str(half))
            return self._fitting(batch, limit)
        return made

    def _padding(self, plan: list[list[int]]) -> str:
        padded = sum(len(batch) * max(len(self.source[i]) for i in batch) for batch in plan)
        real = sum(len(self.source[i]) for batch in plan for i in batch)
        return f"{100 * (1 - real / padded):.1f} % padding" if padded else "nothing to do"


def shard_documents(source: Sequence[list[int]], shards: int) -> list[list[int]]:
    """The documents of every shard, of nearly equal work, longest first."""
    return equal_shards([len(row) + DECODING_TOKENS for row in source], shards)


def is_out_of_memory(error: Exception) -> bool:
    """Also where torch's CPU allocator or another engine says so in words only."""
    words = ("out of memory", "can't allocate memory", "cannot allocate memory")
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or any(word in str(error).lower() for word in words)


def _free_memory() -> None:
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def _line(index: int, name: str, candidates: list[Candidate]) -> bytes:
    shown = [asdict(one) | {"log_probability": round(one.log_probability, 6)} for one in candidates]
    return (json.dumps({"number": index, "id": name, "candidates": shown}, ensure_ascii=False) + "\n").encode()


def whole_records(path: Path, plan: Sequence[list[int]]) -> tuple[int, int]:
    """(whole batches of `plan`, their bytes) at the beginning of a growing file."""
    done, size = 0, 0
    with path.open("rb") as file:
        for batch in plan:
            lines = [file.readline() for _ in batch]
            if [_number(line) for line in lines] != batch:
                break
            done, size = done + 1, size + sum(map(len, lines))
    return done, size


def _number(line: bytes) -> int | None:
    """Of a line's document; None where the line is torn."""
    try:
        record = json.loads(line) if line.endswith(b"\n") else None
    except ValueError:
        return None
    return record.get("number") if isinstance(record, dict) else None


# ------------------------------------------------------------------------------------------------ putting together


def read_summaries(
    folder: Path, contents: Contents, ids: Sequence[str], source: Sequence[list[int]], job: str
) -> list[list[Candidate]]:
    """The candidates of every document, in the documents' order.

    InputError, by name, where a shard is missing, altered, of other settings or documents, or where a document is
    missing or there twice. `job` is the command that makes shards.
    """
    _refuse_strays(folder, contents.shards)
    everything: dict[int, list[Candidate]] = {}
    expected = shard_documents(source, contents.shards)
    for shard in shards_of(folder, contents.shards, ".jsonl"):
        _check_shard(shard, contents, job)
        records = [json.loads(line) for line in shard.data.read_bytes().split(b"\n")[:-1]]
        _check_documents(shard, records, expected[shard.number], ids, job)
        everything |= {r["number"]: [Candidate(**one) for one in r["candidates"]] for r in records}
    assert len(everything) == len(ids), "a document was lost on its way"
    return [everything[number] for number in range(len(ids))]


def _refuse_strays(folder: Path, shards: int) -> None:
    ours = {shard.manifest.name for shard in shards_of(folder, shards, ".jsonl")}
    strays = sorted(path.name for path in folder.glob("shard-*-of-*.json") if path.name not in ours)
    if strays:
        raise InputError(
            f"{folder} has shards of another division: {', '.join(strays)}. Expected {shards} shards; "
            "remove these and their .jsonl files."
        )


def _check_shard(shard: Shard, contents: Contents, job: str) -> None:
    again = f"Delete {shard.data.name} and {shard.manifest.name}, and run {job} --shard {shard.number} again."
    if not shard.is_complete() or not shard.data.exists():
        raise InputError(
            f"{shard.data} is missing: shard {shard.number} of {shard.of} is not finished. "
            f"Run {job} --shard {shard.number}."
        )
    try:
        found = read_json(shard.manifest)
        made_of, sha256 = Contents(**found["contents"]), found["sha256"]
    except (ValueError, KeyError, TypeError):
        raise InputError(f"{shard.manifest} is torn: it is no manifest of a shard. {again}") from None
    reasons = made_of.reasons(contents)
    if reasons:
        raise InputError(f"{shard.data} cannot be used: {'; '.join(reasons)}. {again}")
    if sha256_file(shard.data) != sha256:
        raise InputError(f"{shard.data} was altered since it was written: its SHA-256 is another. {again}")


def _check_documents(shard: Shard, records: list[Any], expected: list[int], ids: Sequence[str], job: str) -> None:
    found = Counter(record["number"] for record in records)
    missing = [ids[number] for number in expected if number not in found]
    twice = [ids[number] for number in expected if found[number] > 1]
    others = sorted(found.keys() - set(expected))
    wrong = [
        f"{len(names)} documents {what} ({', '.join(map(str, names[:5]))}{' ...' if len(names) > 5 else ''})"
        for what, names in (("are missing", missing), ("are there twice", twice), ("belong elsewhere", others))
        if names
    ]
    if wrong:
        raise InputError(
            f"{shard.data}: {'; '.join(wrong)}. Expected each of its {len(expected)} documents once. "
            f"Delete {shard.data.name} and {shard.manifest.name}, and run {job} --shard {shard.number} again."
        )
