"""One process of the doctor: `python -m launch.doctor.probe FOLDER` writes what it sees to FOLDER/rank-K.json, and judges nothing."""

import os
import platform
import shutil
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from distill.errors import InputError
from distill.files import read_json, write_json
from distill.preemption import StopFlag, StoppedError, end_of_job
from distill.preflight import check_folder, looks_like_folder
from launch.doctor import disk
from launch.state import EXIT_STOPPED

if TYPE_CHECKING:
    from distill.distributed import World

PACKAGES = ("torch", "transformers", "deepspeed", "datasets", "tokenizers", "numpy", "pydantic", "submitit")
EXIT_FAILURE = 100
ALL_REDUCE_BYTES = 2**26
COLLECTIVES_SECONDS = 120.0
"""A process that the others cannot reach waits for ever."""
LAST_SECONDS = 4.0
"""Before the end of the job, where no signal has come."""


@dataclass(frozen=True)
class Request:
    """What the doctor asks its processes to look at."""

    models: tuple[str, ...] = ()
    """Folders and hub names."""
    files: tuple[str, ...] = ()
    time_limit_min: int | None = None
    """Of the job; None: no signal is waited for."""


def request_file(folder: Path) -> Path:
    return folder / "request.json"


def answer_file(folder: Path, rank: int) -> Path:
    return folder / f"rank-{rank}.json"


def requeued_file(folder: Path) -> Path:
    return folder / "requeued.json"


def versions() -> dict[str, str]:
    """Of Python and the packages, without importing them."""
    return {"python": platform.python_version()} | {package: _version(package) for package in PACKAGES}


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "missing"


class Probe:
    """The checks of one process, one after the other; the answers are on disk after each."""

    def __init__(self, folder: Path, stop: StopFlag) -> None:
        self._folder, self._stop = folder, stop
        self.request = Request(**read_json(request_file(folder)))
        self._ends_at = end_of_job(self.request.time_limit_min)
        rank = int(os.environ.get("RANK", os.environ.get("SLURM_PROCID", "0")))
        self._file = answer_file(folder, rank)
        host = os.environ.get("SLURMD_NODENAME") or platform.node()
        self.answers: dict[str, Any] = {"rank": rank, "host": host, "errors": {}, "is_whole": False}

    def have_all_answered(self) -> bool:
        """In an earlier attempt of the job."""
        files = [answer_file(self._folder, rank) for rank in range(int(os.environ["SLURM_STEP_NUM_TASKS"]))]
        return all(file.exists() and read_json(file)["is_whole"] for file in files)

    def run(self) -> None:
        request = self.request
        self._look("versions", versions)
        self._look("models", lambda: {model: model_problem(model) for model in request.models})
        self._look("files", lambda: {file: _file_problem(Path(file)) for file in request.files})
        self._look("memory_gb", host_memory_gb)
        self._look("free_gb", lambda: shutil.disk_usage(self._folder).free / 1e9)
        self._look("device", _device)
        patience = self._patience()
        with_others = threading.Timer(patience, self._give_up, [patience])
        with_others.daemon = True
        with_others.start()
        world = self._join()
        self._look("all_reduce", lambda: _all_reduce(world), is_shared=True)
        self._look("disk", lambda: disk.look(world, self._folder), is_shared=True)
        with_others.cancel()
        if request.time_limit_min is not None:
            self._look("signal", self._await_signal)
        self.answers["is_whole"] = True
        self._write()
        world.barrier()

    def _look(self, name: str, check: Callable[[], Any], is_shared: bool = False) -> None:
        """One that the others take part in must not fail alone: they would wait."""
        self.answers["at"] = name
        self._write()
        try:
            self.answers[name] = check()
        except Exception as error:
            self.answers["errors"][name] = f"{type(error).__name__}: {error}"
            if is_shared:
                self._write()
                raise

    def _join(self) -> "World":
        from distill import distributed

        joined: list[World] = []
        self._look("all_reduce", lambda: joined.append(distributed.start()), is_shared=True)
        return joined[0]

    def _write(self) -> None:
        write_json(self._file, self.answers)

    def _patience(self) -> float:
        left = COLLECTIVES_SECONDS if self._ends_at is None else self._ends_at - LAST_SECONDS - time.time()
        return max(1.0, min(COLLECTIVES_SECONDS, left))

    def _give_up(self, seconds: float) -> None:
        at = self.answers["at"]
        self.answers["errors"][at] = f"not finished after {seconds:.0f} s: it waits for other processes"
        self._write()
        os._exit(EXIT_FAILURE)

    def _await_signal(self) -> dict[str, Any] | None:
        """The first signal, and how long before the end of the job it came; None where none came."""
        assert self._ends_at is not None
        while self._stop.reason is None and time.time() < self._ends_at - LAST_SECONDS:
            time.sleep(0.1)
        if self._stop.signalled_at is None:
            return None
        return {"name": self._stop.reason, "seconds_before_end": self._ends_at - self._stop.signalled_at}


def host_memory_gb() -> float:
    """Of this node, or of the job on it where SLURM says so."""
    limits = [os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 1e9]
    if per_node := os.environ.get("SLURM_MEM_PER_NODE", ""):
        limits.append(int(per_node) * 2**20 / 1e9)
    per_cpu, cpus = os.environ.get("SLURM_MEM_PER_CPU", ""), os.environ.get("SLURM_CPUS_ON_NODE", "")
    if per_cpu and cpus:
        limits.append(int(per_cpu) * int(cpus) * 2**20 / 1e9)
    return min(limit for limit in limits if limit > 0)


def model_folder(model: str) -> Path | None:
    """Where a model lies on this machine: its folder, or that of a hub name in the cache; None where it is not there."""
    if looks_like_folder(model):
        return Path(model)
    from huggingface_hub import try_to_load_from_cache

    config = try_to_load_from_cache(model, "config.json")
    return Path(config).parent if isinstance(config, str) else None


def model_problem(model: str) -> str | None:
    """What of a model is not on this machine; None where it is whole."""
    folder = model_folder(model)
    if folder is None:
        return "not in the cache of the hub"
    try:
        check_folder(folder)
    except InputError as error:
        return str(error)
    for index in folder.glob("*.index.json"):
        missing = [name for name in set(read_json(index)["weight_map"].values()) if not (folder / name).is_file()]
        if missing:
            return f"{folder} lacks {', '.join(sorted(missing)[:3])}"
    return None


def _file_problem(file: Path) -> str | None:
    if not file.is_file():
        return "no such file"
    return None if os.access(file, os.R_OK) else "may not be read"


def _device() -> dict[str, Any]:
    """GPUs that this process sees, and whether its device computes in bf16."""
    import torch

    from distill import distributed

    on_gpu, place = torch.cuda.is_available(), distributed.place().device
    numbers = torch.ones(64, 64, dtype=torch.bfloat16, device=place)
    found = [torch.cuda.get_device_properties(gpu) for gpu in range(torch.cuda.device_count())] if on_gpu else []
    return {
        "gpus": [{"name": gpu.name, "memory_gb": gpu.total_memory / 1e9} for gpu in found],
        "cuda": torch.version.cuda,
        "has_bf16": bool((numbers @ numbers == 64).all())
        and (not on_gpu or torch.cuda.is_bf16_supported(including_emulation=False)),
    }


def _all_reduce(world: "World") -> dict[str, Any]:
    """The sum of the ranks' numbers 1, 2, ..., and the speed of a large sum, the median of three."""
    import torch

    total = int(world.sum(torch.tensor([world.rank + 1], device=world.device)))
    values = torch.ones(ALL_REDUCE_BYTES // 4, device=world.device)
    times = []
    for _ in range(4):  # the first one opens the connections
        world.barrier()
        began = time.perf_counter()
        world.sum(values.fill_(1.0))
        is_right = bool((values == world.size).all())  # waits for the device
        times.append(time.perf_counter() - began)
    return {
        "backend": "nccl" if world.device.type == "cuda" else "gloo",
        "processes": world.size,
        "is_right": is_right and total == world.size * (world.size + 1) // 2,
        "gb_per_second": ALL_REDUCE_BYTES / 1e9 / sorted(times[1:])[1],
    }


def main(folder: Path) -> None:
    """Leave with 0; with 75 once the signal of the time limit has come, so that the job is requeued; 100: a check broke off."""
    waits = Request(**read_json(request_file(folder))).time_limit_min is not None
    stop = StopFlag(at_once=not waits)
    try:
        stop.listen()
        probe = Probe(folder, stop)
        restarts = int(os.environ.get("SLURM_RESTART_COUNT") or 0)
        if restarts and probe.answers["rank"] == 0:
            write_json(requeued_file(folder), {"restarts": restarts, "host": probe.answers["host"], "at": time.time()})
        if restarts and probe.have_all_answered():
            _leave(0)
        probe.run()
    except StoppedError:
        _leave(EXIT_STOPPED)
    except Exception as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)  # noqa: T201 - into the doctor's log
        _leave(EXIT_FAILURE)
    _leave(EXIT_STOPPED if waits else 0)


def _leave(code: int) -> NoReturn:
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
