"""On this machine: runs the missing stages of a run one after the other, with the DeepSpeed launcher where it pays."""

import itertools
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from rich.console import Console

from distill.errors import InputError
from distill.run import Run
from distill.stages import Stage, stages
from launch.state import GraphState
from launch.status import progress

CPU_PROCESSES = 2
LOG_LINES = 25
POLL_SECONDS = 0.5


@dataclass(frozen=True)
class Processes:
    """How many processes a training stage gets, and on what."""

    count: int
    gpus: tuple[str, ...]  # the ids of those that are used; none: CPU processes

    @property
    def device(self) -> str:
        return "GPU" if self.gpus else "CPU"

    @property
    def threads(self) -> int:
        """Per process, on the CPU."""
        return max(1, (os.cpu_count() or 1) // self.count)


def processes_here(asked: int | None) -> Processes:
    """All visible GPUs, or on a machine without any, CPU processes; `asked` overrides the number."""
    gpus = _visible_gpus()
    if not gpus:
        return Processes(asked or min(CPU_PROCESSES, os.cpu_count() or 1), ())
    if asked and asked > len(gpus):
        raise InputError(f"--processes: {asked} given, but {len(gpus)} GPUs are visible; one process needs one GPU.")
    return Processes(asked or len(gpus), tuple(gpus[:asked]))


def run_graph(run: Run, processes: Processes, console: Console) -> int:
    """Run what is missing. Returns 0, or the exit code of the stage that failed, whose log's end is shown."""
    graph = stages(run)
    missing = [stage for stage in graph if not stage.is_complete()]
    if not missing:
        console.print(f"nothing to do: {run.folder} is complete, see {run.report / 'report.md'}", soft_wrap=True)
        return 0
    state = GraphState(run.logs)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # so that the running job is ended too
    for stage in graph:
        if stage.is_complete():
            continue
        number = f"[{graph.index(stage) + 1}/{len(graph)}]"
        code = _run_stage(run, stage, processes, state, console, number)
        if code:
            _explain_failure(run, stage, code, console)
            return code
    console.print(f"report: {run.report / 'report.md'}", soft_wrap=True)
    return 0


def command(run: Run, stage: Stage, processes: Processes, recipe_file: Path | None = None) -> list[str]:
    """The command line of a stage; exactly what a user would type to run it by hand."""
    job = [f"jobs.{stage.job}", str(recipe_file or run.recipe_file), *stage.arguments, "--runs", str(run.folder.parent)]
    if stage.kind != "process group" or processes.count == 1:
        return [sys.executable, "-m", *job]
    launcher = [str(Path(sys.executable).with_name("deepspeed"))]
    if processes.device == "CPU":  # the GPUs come by CUDA_VISIBLE_DEVICES
        launcher += ["--num_accelerators", str(processes.count)]
    return [*launcher, "--master_port", str(_free_port()), "--module", *job]


def workers(stage: Stage, processes: Processes) -> int:
    """How many times the command of a stage is started: for workers one on every GPU or CPU process, at most one a shard."""
    if stage.kind != "workers" or stage.shards_done is None:
        return 1
    return min(processes.count, stage.shards_done()[1])


def _run_stage(run: Run, stage: Stage, processes: Processes, state: GraphState, console: Console, number: str) -> int:
    log_file = run.logs / f"{stage.name}.log"
    began = time.monotonic()
    line, count = command(run, stage, processes), workers(stage, processes)
    with log_file.open("ab") as log, console.status("") as display:
        children = [
            subprocess.Popen(
                line,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=os.environ | _environment(stage, processes, worker, count),
            )
            for worker in range(count)
        ]
        state.started(stage.name, line, children[0].pid)
        try:
            while any(child.poll() is None for child in children):  # a worker that fails stops none of the others
                display.update(f"{number} {stage.name}  {progress(stage).text()}")
                time.sleep(POLL_SECONDS)
        finally:  # Ctrl-C: no job is left behind
            for child in children:
                child.terminate()
            codes = [child.wait() for child in children]
    code = next((code if code > 0 else 128 - code for code in codes if code), 0)
    if code == 0 and not stage.is_complete():
        code = 1  # a job that ends well without its output is a failure, whatever it says
    state.ended(stage.name, code)
    outcome = "done" if code == 0 else f"failed with exit code {code}"
    console.print(f"{number} {stage.name}: {outcome} after {time.monotonic() - began:.0f} s", highlight=False)
    return code


def _explain_failure(run: Run, stage: Stage, code: int, console: Console) -> None:
    log_file = run.logs / f"{stage.name}.log"
    with log_file.open("rb") as file:
        lines = list(_last_lines(file))
    console.print(*lines, sep="\n", markup=False, highlight=False, soft_wrap=True)
    console.print(f"{stage.name} failed with exit code {code}; its log: {log_file}", style="red", soft_wrap=True)


def _last_lines(file: IO[bytes]) -> Iterator[str]:
    file.seek(0, os.SEEK_END)
    file.seek(max(0, file.tell() - 20_000))
    yield from file.read().decode(errors="replace").splitlines()[-LOG_LINES:]


def _environment(stage: Stage, processes: Processes, worker: int, count: int) -> dict[str, str]:
    environment = {}
    if count > 1:
        environment = {"RANK": str(worker), "WORLD_SIZE": str(count), "LOCAL_RANK": str(worker)}
    if processes.gpus:
        return environment | {"CUDA_VISIBLE_DEVICES": ",".join(processes.gpus)}
    if "OMP_NUM_THREADS" in os.environ or stage.kind == "one process":
        return environment
    return environment | {"OMP_NUM_THREADS": str(processes.threads)}


def _visible_gpus() -> list[str]:
    """GPUs of this machine, without torch: CUDA_VISIBLE_DEVICES, else what nvidia-smi lists."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    nvidia_smi = shutil.which("nvidia-smi")
    if nvidia_smi is None:
        return []
    if visible is not None:  # CUDA itself ends the list at the first -1
        return [*itertools.takewhile(lambda device: device and device != "-1", map(str.strip, visible.split(",")))]
    listed = subprocess.run([nvidia_smi, "--list-gpus"], capture_output=True, text=True, check=False)
    return [str(number) for number in range(listed.stdout.count("GPU "))] if listed.returncode == 0 else []


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
