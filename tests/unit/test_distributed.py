import pytest
import torch

from distill.distributed import launched_ranks, place, start
from distill.errors import InputError

SLURM = {
    "SLURM_JOB_ID": "123", "SLURM_STEP_NUM_TASKS": "4", "SLURM_PROCID": "3", "SLURM_LOCALID": "1",
    "SLURM_STEP_NODELIST": "node[03-04]", "SLURM_NTASKS": "4",
}  # fmt: skip


def test_one_process_on_its_own() -> None:
    assert launched_ranks({}) == {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0"}


def test_a_bare_batch_script_is_one_process() -> None:
    assert launched_ranks({"SLURM_JOB_ID": "1", "SLURM_NTASKS": "4", "SLURM_PROCID": "0"})["WORLD_SIZE"] == "1"


def test_torchrun_and_the_deepspeed_launcher() -> None:
    given = {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1", "MASTER_ADDR": "h", "MASTER_PORT": "5"}
    assert launched_ranks({**given, **SLURM}) == given, "a launcher inside a SLURM job has the last word"
    with pytest.raises(InputError, match="RANK=1 is set but MASTER_ADDR, MASTER_PORT not"):
        start({"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1"})
    with pytest.raises(InputError, match="RANK=1 is set but WORLD_SIZE, LOCAL_RANK not"):
        start({"RANK": "1"})


def test_a_worker_needs_no_process_group() -> None:
    world = place({"RANK": "1", "WORLD_SIZE": "3", "LOCAL_RANK": "1"})
    assert (world.rank, world.size) == (1, 3) and not torch.distributed.is_initialized()


def test_srun() -> None:
    ranks = launched_ranks(SLURM)
    assert (ranks["RANK"], ranks["WORLD_SIZE"], ranks["LOCAL_RANK"], ranks["MASTER_ADDR"]) == ("3", "4", "1", "node03")
    requeued = launched_ranks(SLURM | {"SLURM_RESTART_COUNT": "1"})
    assert requeued["MASTER_PORT"] != ranks["MASTER_PORT"], "an old process may still hold the port"
    assert launched_ranks(SLURM | {"SLURM_STEP_NODELIST": "a1,b2"})["MASTER_ADDR"] == "a1"
