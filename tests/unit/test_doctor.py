"""Every kind of trouble is FAILED, and told what to change; what could not be looked at is not called ok."""

import copy
import shutil
from pathlib import Path
from typing import Any

import pytest

from distill.errors import InputError
from distill.recipe_file import load_recipe
from launch.doctor import disk
from launch.doctor.findings import Check, Expected, Seen
from launch.doctor.judge import judge
from launch.doctor.needs import Needs, needs_of
from tests.conftest import ROOT

VERSIONS = {"python": "3.11.7", "torch": "2.13.0", "transformers": "5.23.0", "deepspeed": "0.19.8"}
GPU = {"name": "H200", "memory_gb": 140.0}
NEEDS = Needs(("model",), ("train.jsonl",), room_gb=20.0, memory_gb={"student a": 30.0}, wants_bf16=True)
ON_GPUS = Expected(4, 2, VERSIONS, NEEDS, signal_lead_seconds=60, given_by="gpu.yaml")
REQUEUED = {"restarts": 1, "host": "n1", "at": 0.0}


def answer(rank: int) -> dict[str, Any]:
    """Of a rank on one of two nodes with two GPUs, where all is well."""
    disk = {"sees": True, "turns": 200, "lag_seconds": 0.1}
    return {
        "rank": rank,
        "host": f"n{1 + rank // 2}",
        "errors": {},
        "is_whole": True,
        "at": "signal",
        "versions": dict(VERSIONS),
        "models": {"model": None},
        "files": {"train.jsonl": None},
        "memory_gb": 256.0,
        "free_gb": 500.0,
        "device": {"gpus": [GPU, GPU], "cuda": "12.8", "has_bf16": True},
        "all_reduce": {"backend": "nccl", "processes": 4, "is_right": True, "gb_per_second": 20.0},
        "disk": disk | ({} if rank == 0 else {"reads": 900, "torn": 0, "missing": 0, "stale": 0}),
        "signal": {"name": "SIGUSR2", "seconds_before_end": 75.0},
    }


def answers(rank: int = 3, **changes: Any) -> tuple[dict[str, Any], ...]:
    """All four, that of one rank changed: `disk={"torn": 1}` changes a key of a block."""
    four = [answer(number) for number in range(4)]
    for key, value in changes.items():
        merges = isinstance(value, dict) and isinstance(four[rank].get(key), dict)
        four[rank][key] = four[rank][key] | value if merges else value
    return tuple(four)


def check(name: str, seen: Seen, expected: Expected = ON_GPUS) -> Check:
    return next(one for one in judge(seen, expected) if one.name == name)


def test_nothing_fails_where_all_is_well() -> None:
    judged = judge(Seen(answers(), requeued=REQUEUED), ON_GPUS)
    assert {one.result for one in judged} == {"ok"}, judged
    assert not any(one.change for one in judged)


NO_MODEL = {"model": "not in the cache of the hub"}
TROUBLE: dict[str, tuple[str, dict[str, Any], str, str]] = {
    "other torch": ("versions", {"versions": {"torch": "2.9.0"}}, "torch 2.9.0 on n2, 2.13.0 here", "one environment"),
    "missing package": ("versions", {"versions": {"deepspeed": "missing"}}, "deepspeed missing on n2", "requirements.lock"),
    "fewer GPUs": ("GPUs", {"device": {"gpus": [GPU]}}, "1 on n2, expected 2", "gpus_per_node of gpu.yaml"),
    "torch without CUDA": ("GPUs", {"device": {"gpus": []}}, "0 on n2, expected 2", "build with CUDA"),
    "old driver": ("GPUs", {"errors": {"device": "RuntimeError: driver too old"}}, "driver too old", "nvidia-smi"),
    "no bf16": ("bf16", {"device": {"has_bf16": False}}, "not on n2", "precision: fp32"),
    "wrong sum": ("all-reduce", {"all_reduce": {"is_right": False}}, "the sum is wrong", "NCCL_SOCKET_IFNAME"),
    "two worlds": ("all-reduce", {"all_reduce": {"processes": 1}}, "expected 4", "srun and the profile"),
    "hanging": ("all-reduce", {"errors": {"all_reduce": "not finished after 90 s"}}, "rank 3 (n2)", "allow traffic"),
    "a disk of its own": ("shared disk", {"disk": {"sees": False}}, "n2 did not see", "another --runs"),
    "an old state": ("shared disk", {"disk": {"lag_seconds": None}}, "old state", "another --runs"),
    "torn file": ("shared disk", {"disk": {"torn": 2}}, "2 torn", "rename is atomic"),
    "missing file": ("shared disk", {"disk": {"missing": 1}}, "1 missing", "rename is atomic"),
    "full disk": ("room", {"free_gb": 5.0}, "5.0 GB free below runs, about 20.0 GB needed", "train.keep_checkpoints"),
    "model": ("models", {"models": NO_MODEL}, "model: not in the cache of the hub (on n2)", "hf download"),
    "corpus": ("corpus", {"files": {"train.jsonl": "no such file"}}, "no such file (on n2)", "all nodes see"),
    "small GPU": ("memory", {"device": {"gpus": [GPU, GPU | {"memory_gb": 16.0}]}}, "(student a), 16.0 GB", "zero_stage"),
    "no signal": ("signal", {"signal": None}, "none before the time limit on rank 3 (n2)", "--signal=USR2@60"),
    "only TERM": ("signal", {"signal": {"name": "SIGTERM"}}, "SIGTERM", "preempt_send_user_signal"),
    "late": ("signal", {"signal": {"seconds_before_end": 20.0}}, "20 s before", "raise signal_lead_seconds by 40"),
    "unfinished": ("processes", {"is_whole": False, "at": "disk"}, "rank 3 (n2) stopped at disk", "log below"),
}  # fmt: skip


@pytest.mark.parametrize("name", TROUBLE)
def test_each_trouble_is_told_with_what_to_change(name: str) -> None:
    subject, changes, seen, change = TROUBLE[name]
    found = check(subject, Seen(answers(**changes), requeued=REQUEUED))
    assert found.result == "FAILED", found
    assert seen in found.seen and change in found.change, found


def test_processes_that_never_started() -> None:
    judged = judge(Seen(end="its job was PENDING (Resources) for 15 min and is cancelled"), ON_GPUS)
    assert [one.name for one in judged if one.result == "FAILED"] == ["processes"]
    assert not any(one.result == "ok" for one in judged)
    assert "PENDING (Resources)" in judged[0].seen and "setup" in judged[0].change


def test_requeue() -> None:
    refused = check("requeue", Seen(answers(), refusal="Requested operation is presently disabled"))
    assert refused.result == "FAILED" and "presently disabled" in refused.seen and "JobRequeue=1" in refused.change
    assert check("requeue", Seen(answers(), is_requeued=True)).result == "ok"
    assert check("requeue", Seen(answers())).result == "not checked"


def test_a_job_that_was_preempted_says_nothing_of_its_time_limit() -> None:
    early = Seen(answers(signal={"seconds_before_end": 170.0}))
    assert check("signal", early).result == "not checked"


def test_on_the_cpu_processes_share_the_memory_of_their_node() -> None:
    four = tuple(copy.deepcopy(one) | {"device": {"gpus": [], "has_bf16": True}} for one in answers())
    expected = Expected(4, 0, VERSIONS, NEEDS)
    assert "128.0 GB there" in check("memory", Seen(four), expected).seen
    for one in four:
        one["memory_gb"] = 40.0
    assert check("memory", Seen(four), expected).result == "FAILED"


def test_this_machine_has_no_time_limit_and_one_process_no_other() -> None:
    alone = answer(0) | {"device": {"gpus": [], "has_bf16": False}}
    alone["all_reduce"] |= {"processes": 1}
    judged = judge(Seen((alone,)), Expected(1, 0, VERSIONS, Needs()))
    unchecked = {one.name for one in judged if one.result == "not checked"}
    assert unchecked == {"shared disk", "models", "corpus", "memory", "signal", "requeue"}
    assert not any(one.result == "FAILED" for one in judged), "bf16 is missing, but not asked for"


def test_needs_of_a_recipe() -> None:
    recipe = load_recipe(ROOT / "jobs/recipes/demo-kd.yaml")
    needs = needs_of(recipe, 2)
    assert needs.models == ("jobs/recipes/demo-teacher",) and not needs.files and not needs.unknown
    assert set(needs.memory_gb) == {f"student {name}" for name in recipe.students}
    assert needs.room_gb > 1 and not needs.wants_bf16
    more = needs_of(load_recipe(ROOT / "jobs/recipes/demo-kd.yaml", ["train.keep_checkpoints=9"]), 2)
    assert more.room_gb > needs.room_gb
    cached = needs_of(load_recipe(ROOT / "jobs/recipes/demo-kd-cached.yaml"), 2)
    assert needs.memory_gb["student kd-2-2"] > cached.memory_gb["student kd-2-2"], (
        "a live teacher is beside the student"
    )


def test_models_of_the_hub_are_known_once_they_are_whole_in_the_cache(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    recipe = load_recipe(ROOT / "jobs/recipes/demo-kd.yaml", ["teachers.docstring-bart.model=some/model"])
    nothing = needs_of(recipe, 2)
    assert nothing.models == ("some/model",) and not nothing.memory_gb
    assert set(nothing.unknown) == {f"student {name}" for name in recipe.students}
    cached = tmp_path / "models--some--model"
    snapshot = cached / "snapshots" / "a1"
    shutil.copytree(ROOT / "jobs/recipes/demo-teacher", snapshot)
    (cached / "refs").mkdir()
    (cached / "refs" / "main").write_text("a1")
    assert needs_of(recipe, 2).memory_gb == needs_of(load_recipe(ROOT / "jobs/recipes/demo-kd.yaml"), 2).memory_gb
    (snapshot / "model.safetensors").unlink()
    assert needs_of(recipe, 2) == nothing


def test_a_missing_corpus_is_wrong_input(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="correct the path"):
        needs_of(load_recipe(ROOT / "jobs/recipes/demo.yaml", [f"corpus.train={tmp_path}/nothing.jsonl"]), 1)


def test_a_file_that_is_not_replaced_by_a_rename_is_found_torn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As it is found between two writes of somebody who writes it in place."""
    monkeypatch.setattr(disk, "SECONDS", 0.5)
    file = tmp_path / "turning"
    for content in (disk._content(1)[:5000], disk._content(1)[:4500] + disk._content(0)[4500:]):
        file.write_text(content)
        counts = disk._watch(file)
        assert counts["torn"] == counts["reads"] > 0
