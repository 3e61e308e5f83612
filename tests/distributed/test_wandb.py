"""Weights & Biases, the real package, offline: what it keeps of a training that was stopped and went on."""

import json
import os
import shutil
import struct
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from distill.compiling import _cache_folders
from distill.distributed import World
from distill.errors import InputError
from distill.files import read_json, read_jsonl
from distill.preflight import check_recipe
from distill.recipe_file import parse_recipe
from distill.sections import Wandb
from tests.distributed.harness import run_distributed
from tests.distributed.test_training import make_trainer
from tests.unit.test_recipe import recipe

pytestmark = pytest.mark.distributed


def train_twice(world: World, folder: str) -> None:
    """To the end; then again from the checkpoint of step 3, as if killed."""
    os.environ["WANDB_MODE"] = "offline"
    place = Path(folder)
    for _ in range(2):
        trainer = make_trainer(world, folder, zero_stage=0, steps=5, save_every_steps=3, log_every_steps=1)
        trainer.wandb = Wandb(project="distil")
        trainer.run()
        if world.is_main:
            shutil.rmtree(place / "final")
        world.barrier()


def records(file: Path) -> Iterator[Any]:
    """What an offline file holds: a log of blocks as LevelDB has it, of protocol buffers."""
    from wandb.proto import wandb_internal_pb2

    data, at, whole = file.read_bytes(), 7, b""
    while at + 7 <= len(data):
        _, length, kind = struct.unpack("<IHB", data[at : at + 7])
        whole += data[at + 7 : at + 7 + length]
        if kind in (1, 4):  # a whole record, or the last part of one
            yield wandb_internal_pb2.Record.FromString(whole)
            whole = b""
        at += 7 + length
        if 32768 - at % 32768 < 7:
            at += 32768 - at % 32768


def history(file: Path) -> tuple[set[str], list[dict[str, Any]]]:
    """(the names of the runs, the rows) of an offline file."""
    found = list(records(file))
    rows = [{item.key or item.nested_key[0]: json.loads(item.value_json) for item in record.history.item}
            for record in found if record.HasField("history")]  # fmt: skip
    return {record.run.run_id for record in found if record.HasField("run")}, rows


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run") / "students" / "s"
    folder.mkdir(parents=True)
    run_distributed(train_twice, 2, str(folder))
    return folder


def test_every_attempt_is_the_same_run_and_rank_0_tells_it(folder: Path) -> None:
    files = sorted(folder.glob("wandb/offline-run-*/*.wandb"))
    assert len(files) == 2, "of two attempts on two ranks"
    assert {name for file in files for name in history(file)[0]} == {read_json(folder / "wandb.json")["id"]}


def test_it_is_told_what_the_metrics_say(folder: Path) -> None:
    first, second = (history(file)[1] for file in sorted(folder.glob("wandb/offline-run-*/*.wandb")))
    own = {row["step"]: row["loss"] for row in read_jsonl(folder / "metrics.jsonl") if "loss" in row}
    assert {row["step"]: row["loss"] for row in first if "loss" in row} == own
    assert {row["step"]: row["loss"] for row in second if "loss" in row} == {step: own[step] for step in (4, 5)}
    assert [row["step"] for row in first if "rouge2" in row] == [0, 4, 5]
    assert [row["step"] for row in second if "rouge2" in row] == [4, 5], "also those of the step it went on from"


def test_a_missing_package_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    asks = parse_recipe(recipe(wandb={"project": "distil"}))
    check_recipe(asks)
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(InputError, match=r"not installed. Run `pip install -e .\[wandb\]`"):
        check_recipe(asks)
    check_recipe(parse_recipe(recipe()))


def refuse(world: World, folder: str) -> str:
    """Online, without a login."""
    for compiled in _cache_folders():  # DeepSpeed's library stays where it is: compiling it takes minutes
        os.environ["TORCH_EXTENSIONS_DIR"] = str(compiled)
    os.environ |= {"WANDB_MODE": "online", "HOME": folder, "NETRC": f"{folder}/netrc", "WANDB_CONFIG_DIR": folder}
    trainer = make_trainer(world, folder, zero_stage=0, steps=1)
    trainer.wandb = Wandb(project="distil")
    try:
        trainer.run()
    except InputError as error:
        return str(error)
    return "no error"


def test_a_missing_login_is_said_before_the_first_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    assert "Log in with `wandb login`, set WANDB_MODE=offline" in run_distributed(refuse, 1, str(tmp_path))[0]
    assert not (tmp_path / "final").exists()
