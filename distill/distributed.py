"""Rank and world from the DeepSpeed launcher, torchrun or SLURM; the few collectives that are used."""

import contextlib
import os
import re
import subprocess
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch._C._distributed_c10d import HashStore

from distill.errors import InputError
from distill.preemption import GPU_VARIABLE

TIMEOUT = timedelta(hours=2)  # rank 0 may score a large validation set while the others wait


@dataclass(frozen=True)
class World:
    """One process among all: `rank` of `size`, `local_rank` on its machine, and its device."""

    rank: int
    size: int
    local_rank: int
    device: torch.device
    control: dist.ProcessGroup | None = None
    """A gloo group for small agreements, which never waits for a GPU; None: the default group."""

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    def barrier(self) -> None:
        if self.size > 1:
            dist.barrier()

    @contextlib.contextmanager
    def main_first(self) -> Iterator[None]:
        """The others enter when rank 0 has left, also by an exception. All ranks must enter."""
        if not self.is_main:
            self.barrier()
        try:
            yield
        finally:
            if self.is_main:
                self.barrier()

    def sum(self, values: torch.Tensor) -> torch.Tensor:
        """The sum over all ranks, in place."""
        if self.size > 1:
            dist.all_reduce(values)
        return values

    def any(self, flag: bool) -> bool:
        """True on every rank where it is on one. A collective."""
        if self.size == 1:
            return flag
        flags = torch.tensor(int(flag))
        dist.all_reduce(flags, op=dist.ReduceOp.MAX, group=self.control)
        return bool(flags)

    def gather(self, value: Any) -> list[Any] | None:
        """The picklable `value` of every rank in rank order, on rank 0; None elsewhere."""
        if self.size == 1:
            return [value]
        gathered = [None] * self.size if self.is_main else None
        dist.gather_object(value, gathered)
        return gathered

    def broadcast(self, value: Any) -> Any:
        """Rank 0's picklable `value`, on every rank."""
        if self.size == 1:
            return value
        box = [value]
        dist.broadcast_object_list(box)
        return box[0]


def launched_ranks(environment: Mapping[str, str]) -> dict[str, str]:
    """RANK, WORLD_SIZE, LOCAL_RANK, and where there is a launcher MASTER_ADDR, MASTER_PORT for torch.

    The DeepSpeed launcher and torchrun set them; inside an `srun` step they come from SLURM's variables; otherwise
    this is one process on its own.
    """
    if "RANK" in environment:
        missing = [k for k in ("WORLD_SIZE", "LOCAL_RANK") if k not in environment]
        if missing:
            raise InputError(_missing(environment, missing))
        for k in ("RANK", "WORLD_SIZE", "LOCAL_RANK"):
            if not environment[k].isdecimal():
                raise InputError(
                    f"{k}={environment[k]!r} in the environment, expected a whole number from 0; unset RANK."
                )
        if int(environment["RANK"]) >= int(environment["WORLD_SIZE"]):
            raise InputError(
                f"RANK={environment['RANK']} in the environment, expected less than {environment['WORLD_SIZE']}, the WORLD_SIZE."
            )
        known = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
        return {k: environment[k] for k in known if k in environment}
    if "SLURM_STEP_NUM_TASKS" in environment:  # set by srun only, never in a bare batch script
        return _from_slurm(environment)
    return {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0"}


def place(environment: Mapping[str, str] = os.environ) -> World:
    """This process's place among those of its launcher, without a process group: for work without collectives."""
    launched = launched_ranks(environment)
    rank, size, local_rank = (int(launched[key]) for key in ("RANK", "WORLD_SIZE", "LOCAL_RANK"))
    if not torch.cuda.is_available():
        if environment.get(GPU_VARIABLE):
            raise InputError(
                f"{environment[GPU_VARIABLE]} GPUs per node were asked for, but torch {torch.__version__} finds none here. "
                "Install a build for them (python -m launch doctor), or ask for gpus_per_node: 0."
            )
        return World(rank, size, local_rank, torch.device("cpu"))
    device = torch.device("cuda", local_rank % torch.cuda.device_count())
    torch.cuda.set_device(device)
    return World(rank, size, local_rank, device)


def start(environment: Mapping[str, str] = os.environ) -> World:
    """Join the process group (NCCL where there is a GPU, else gloo) and return this process's place in it."""
    world, launched = place(environment), launched_ranks(environment)
    missing = [k for k in ("MASTER_ADDR", "MASTER_PORT") if k not in launched]
    if world.size > 1 and missing:
        raise InputError(_missing(environment, missing))
    os.environ.update(launched)
    if world.device.type == "cpu":
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    if not dist.is_initialized():
        backend = "nccl" if world.device.type == "cuda" else "gloo"
        if world.size > 1:
            dist.init_process_group(backend, timeout=TIMEOUT)
            if backend == "nccl":
                return replace(world, control=dist.new_group(backend="gloo", timeout=TIMEOUT))
        else:  # DeepSpeed wants a group even for one process: a store in memory needs no port
            dist.init_process_group(backend, store=HashStore(), rank=0, world_size=1)
    return world


def _missing(environment: Mapping[str, str], missing: list[str]) -> str:
    return (
        f"RANK={environment.get('RANK')} is set but {', '.join(missing)} not; start the job with deepspeed, "
        "torchrun or srun, or unset RANK."
    )


def stop() -> None:
    if dist.is_initialized():
        dist.destroy_process_group()


def _from_slurm(environment: Mapping[str, str]) -> dict[str, str]:
    # A port of the job's own; another one after a requeue, since an old process may still hold the first.
    job, restarts = int(environment["SLURM_JOB_ID"]), int(environment.get("SLURM_RESTART_COUNT", "0"))
    return {
        "RANK": environment["SLURM_PROCID"],
        "WORLD_SIZE": environment["SLURM_STEP_NUM_TASKS"],
        "LOCAL_RANK": environment["SLURM_LOCALID"],
        "MASTER_ADDR": environment.get("MASTER_ADDR") or _first_host(environment["SLURM_STEP_NODELIST"]),
        "MASTER_PORT": environment.get("MASTER_PORT") or str(20000 + (job * 17 + restarts) % 20000),
    }


def _first_host(nodes: str) -> str:
    """The first host of SLURM's compressed list: `n[03-07,9],m1` -> n03."""
    if "[" not in nodes:
        return nodes.split(",")[0]
    simple = re.fullmatch(r"([^,\[]+)\[(\d+)[-,\d]*\].*", nodes)
    if simple:
        return simple[1] + simple[2]
    command = ["scontrol", "show", "hostnames", nodes]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()[0]
