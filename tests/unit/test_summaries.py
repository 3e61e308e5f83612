"""Summaries in shards: killed, out of memory, altered, and put together."""

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from distill.errors import InputError
from distill.files import read_json, write_json
from distill.generation import Candidate
from distill.summaries import Contents, SummaryWriter, is_out_of_memory, read_summaries, shard_documents

LENGTHS = [(i * 37) % 60 + 3 for i in range(40)]
SOURCE = [[i] * length for i, length in enumerate(LENGTHS)]
IDS = [f"d{i}" for i in range(len(SOURCE))]
CONTENTS = Contents("documents", "tokens", "model", {"num_beams": 2}, {"name": "huggingface"}, shards=3)
UGLY = 'two\nlines, a \u2028 separator, \r return, \N{GRINNING FACE} and "quotes"\t'


class KilledError(Exception):
    pass


class FakeEngine:
    """Says which documents it was given together; dies at a call, and has a memory of so many padded tokens."""

    def __init__(self, dies_at: int | None = None, memory: int = 10**9) -> None:
        self.dies_at, self.memory, self.calls = dies_at, memory, 0
        self.batches: list[list[int]] = []

    def __call__(self, source: Sequence[list[int]]) -> list[list[Candidate]]:
        self.calls += 1
        if self.calls == self.dies_at:
            raise KilledError
        if len(source) * max(map(len, source)) > self.memory:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1 GiB")
        self.batches.append([row[0] for row in source])
        return [[Candidate(f"{UGLY}{row[0]} of {len(source)}", -1 / 3, len(row), True)] for row in source]


def writer(folder: Path, engine: Any, contents: Contents = CONTENTS) -> SummaryWriter:
    return SummaryWriter(folder, contents, engine, IDS, SOURCE, batch_tokens=200)


def write_all(folder: Path, engine: Any) -> None:
    for number in range(CONTENTS.shards):
        writer(folder, engine).write(number)


def read(folder: Path, contents: Contents = CONTENTS) -> list[list[Candidate]]:
    return read_summaries(folder, contents, IDS, SOURCE, "jobs.label --labels t")


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_every_document_has_its_summary_whatever_characters_it_has(tmp_path: Path) -> None:
    write_all(tmp_path, FakeEngine())
    summaries = read(tmp_path)
    assert len(summaries) == len(IDS)
    assert all(one.text.startswith(f"{UGLY}{i} of") for i, (one,) in enumerate(summaries))
    assert sorted(path.suffix for path in tmp_path.iterdir()) == [".json"] * 3 + [".jsonl"] * 3


def test_a_plan_fits_its_budget_and_begins_with_the_longest() -> None:
    for number in range(CONTENTS.shards):
        plan = writer(Path(), FakeEngine()).plan(number)
        assert all(len(batch) * max(LENGTHS[i] for i in batch) <= 200 for batch in plan)
        lengths = [LENGTHS[i] for batch in plan for i in batch]
        assert lengths == sorted(lengths, reverse=True)


@pytest.mark.parametrize("memory", [10**9, 130, 64])
def test_killed_at_every_call_it_ends_byte_for_byte_the_same(memory: int, tmp_path: Path) -> None:
    """Also where batches do not fit the memory and are halved."""
    write_all(tmp_path / "whole", FakeEngine(memory=memory))
    calls = 0
    for attempt in range(200):
        engine = FakeEngine(dies_at=2 + attempt % 7, memory=memory)
        try:
            write_all(tmp_path / "killed", engine)
        except KilledError:
            calls += 1
            continue
        break
    assert calls > 1 and files(tmp_path / "killed") == files(tmp_path / "whole")


def test_a_batch_that_does_not_fit_is_halved_and_the_size_is_remembered(tmp_path: Path) -> None:
    engine = FakeEngine(memory=100)
    writer(tmp_path, engine).write(0)
    failed = engine.calls - len(engine.batches)
    assert failed <= 2, "not tried again at every batch"
    assert all(len(batch) * max(LENGTHS[i] for i in batch) <= 100 for batch in engine.batches)
    assert sorted(i for batch in engine.batches for i in batch) == sorted(shard_documents(SOURCE, 3)[0])


def test_one_document_that_does_not_fit_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(torch.OutOfMemoryError):
        writer(tmp_path, FakeEngine(memory=20)).write(0)


def test_what_is_out_of_memory() -> None:
    assert is_out_of_memory(MemoryError()) and is_out_of_memory(torch.OutOfMemoryError("x"))
    assert is_out_of_memory(RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"))
    assert is_out_of_memory(RuntimeError("CUDA failed with error out of memory"))
    assert not is_out_of_memory(RuntimeError("shapes do not match"))


def test_missing_altered_and_foreign_shards_are_refused_by_name(tmp_path: Path) -> None:
    write_all(tmp_path, FakeEngine())
    second = tmp_path / "shard-00001-of-00003.jsonl"
    text = second.read_bytes()
    second.write_bytes(text.replace(b"d", b"e", 1))
    with pytest.raises(InputError, match="shard-00001-of-00003.jsonl was altered"):
        read(tmp_path)
    second.write_bytes(text)
    for field, reason in (("documents", "the documents have changed"), ("model", "the model has other weights"),
                          ("decoding", "decoding was {'num_beams': 2}, is other"), ("tokens", "the documents are cut into other tokens")):  # fmt: skip
        with pytest.raises(InputError, match=f"shard-00000-of-00003.jsonl cannot be used: {reason}"):
            read(tmp_path, dataclasses.replace(CONTENTS, **{field: "other"}))
    manifest = tmp_path / "shard-00001-of-00003.json"
    whole = manifest.read_bytes()
    for torn in (whole[:40], b"{}", b'{"contents": {"documents": "x"}}'):
        manifest.write_bytes(torn)
        with pytest.raises(InputError, match="shard-00001-of-00003.json is torn"):
            read(tmp_path)
    manifest.write_bytes(whole)
    second.unlink()
    with pytest.raises(InputError, match="shard 1 of 3 is not finished. Run jobs.label --labels t --shard 1"):
        read(tmp_path)
    writer(tmp_path / "four", FakeEngine(), dataclasses.replace(CONTENTS, shards=4)).write(2)
    (tmp_path / "four" / "shard-00002-of-00004.json").rename(tmp_path / "shard-00002-of-00004.json")
    with pytest.raises(InputError, match="shards of another division: shard-00002-of-00004.json"):
        read(tmp_path)


def test_gaps_and_duplicates_are_refused_by_name(tmp_path: Path) -> None:
    """Even where a shard's manifest was made to agree."""
    write_all(tmp_path, FakeEngine())
    data, manifest = tmp_path / "shard-00002-of-00003.jsonl", tmp_path / "shard-00002-of-00003.json"
    lines = data.read_text().split("\n")[:-1]
    first, second = (json.loads(line)["id"] for line in lines[:2])

    def forge(lines: list[str]) -> None:
        data.write_text("".join(line + "\n" for line in lines), newline="\n")
        import hashlib

        write_json(manifest, read_json(manifest) | {"sha256": hashlib.sha256(data.read_bytes()).hexdigest()})

    forge(lines[1:])
    with pytest.raises(InputError, match=rf"shard-00002-of-00003.jsonl: 1 documents are missing \({first}\)"):
        read(tmp_path)
    foreign = json.loads(lines[0]) | {"number": shard_documents(SOURCE, 3)[0][0]}
    forge([*lines, json.dumps(foreign)])
    with pytest.raises(InputError, match=rf"1 documents belong elsewhere \({foreign['number']}\)"):
        read(tmp_path)
    forge([lines[1], lines[1], *lines[2:]])
    with pytest.raises(InputError, match=rf"missing \({first}\); 1 documents are there twice \({second}\)"):
        read(tmp_path)
