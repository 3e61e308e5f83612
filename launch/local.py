"""On this machine: runs the missing stages of a run one after the other, on all its GPUs or on CPU processes.

A stage's processes are started here and not by the DeepSpeed launcher, which tells neither a signal from a failure nor lets
a worker outlive another; by hand both work.
"""

import ctypes
import itertools
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from distill.errors import InputError
from distill.failure import FAILURES_VARIABLE, read_failures
from distill.files import check_writable
from distill.preemption import END_VARIABLE, GRACE_VARIABLE, SIGNALS, StopFlag, end_of_job
from distill.run import Run
from distill.stages import Stage
from launch.command import command
from launch.failures import EXIT_INPUT, Exit, Place, exit_code, explain
from launch.lock import LockLostError, RunLock
from launch.order import Order
from launch.screen import Screen
from launch.slurm import refuse_queued
from launch.state import EXIT_STOPPED, GraphState, cancelled_file

CPU_PROCESSES = 2
POLL_SECONDS = 0.5
LEAVE_SECONDS = 600.0  # for a save, when asked to leave
AFTER_FAILURE_SECONDS = 15.0  # for the other ranks of a group, which wait for one that is gone
PR_SET_PDEATHSIG = 1


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


def run_graph(
    order: Order,
    processes: Processes,
    console: Console,
    time_limit_min: float | None = None,
    grace_seconds: float | None = None,
) -> int:
    """Run what is missing. Returns 0; 75 where a signal or the time limit stopped it; or the code of the stage that failed.

    InputError where another launcher has the run.
    """
    run, graph = order.run, order.stages()
    if order.is_done():
        console.print(f"nothing to do: {run.folder} is complete. {order.end()}", soft_wrap=True)
        return 0
    ends_at = end_of_job(time_limit_min)
    stop = StopFlag(ends_at)
    stop.listen(signal.SIGINT)
    if ends_at is not None:  # a training needs longer to leave than this launcher, and knows how long
        os.environ[END_VARIABLE] = str(int(ends_at))
    if grace_seconds is not None:
        os.environ[GRACE_VARIABLE] = str(grace_seconds)
    check_writable(run.folder)
    with RunLock(run.logs) as lock:
        refuse_queued(run, console, moves=bool(order.examine().stages))
        cancelled_file(run.logs).unlink(missing_ok=True)
        state = GraphState(run.logs)
        state.wait_for_orphans(stop)
        if stop.is_set():
            return _say_stopped(run, stop, console)
        order.begin(console)
        with Screen(run, graph, state, console) as screen:
            code = _run_stages(run, graph, processes, state, screen, lock, stop)
        if code == EXIT_STOPPED:
            return _say_stopped(run, stop, console)
        if code:
            return code
    console.print(order.end(), soft_wrap=True)
    return 0


def _run_stages(
    run: Run,
    graph: list[Stage],
    processes: Processes,
    state: GraphState,
    screen: Screen,
    lock: RunLock,
    stop: StopFlag,
) -> int:
    """Run what is missing, up to the first stage that does not end well; return the exit code."""
    for stage in graph:
        if stage.is_complete():
            continue
        if stop.is_set():
            return EXIT_STOPPED
        code = _run_stage(run, stage, processes, state, screen, lock, stop)
        if code:
            return code
    return 0


def _say_stopped(run: Run, stop: StopFlag, console: Console) -> int:
    canceller = _cancelled_by(run, stop)
    what = f"cancelled by {canceller}" if canceller else f"stopped ({stop.reason or 'by a signal'})"
    console.print(f"{what}; run the same command again to continue", highlight=False)
    return EXIT_STOPPED


def _cancelled_by(run: Run, stop: StopFlag) -> str | None:
    """Return what the user cancelled the run with; None if a signal or the time limit stopped it."""
    if cancelled_file(run.logs).exists():
        return "launch cancel"
    return "Ctrl-C" if stop.reason == signal.SIGINT.name else None


def count_of(stage: Stage, processes: Processes) -> int:
    """How many processes a stage gets; of workers, which share shards out, at most one for each shard."""
    if stage.kind == "one process":
        return 1
    if stage.kind == "workers" and stage.shards_done:
        return min(processes.count, stage.shards_done()[1])
    return processes.count


def _run_stage(
    run: Run,
    stage: Stage,
    processes: Processes,
    state: GraphState,
    screen: Screen,
    lock: RunLock,
    stop: StopFlag,
) -> int:
    line = command(run, stage)
    log_file = run.logs / f"{stage.name}.log"
    screen.begin(stage)
    with log_file.open("ab") as log, tempfile.TemporaryDirectory(prefix="distill-") as failures:
        begin = log_file.stat().st_size
        children: list[subprocess.Popen[bytes]] = []
        try:
            for environment in environments(stage, processes):
                there = os.environ | environment | {FAILURES_VARIABLE: failures}
                children.append(subprocess.Popen(line, stdout=log, stderr=log, env=there, **OF_THIS_LAUNCHER))
            state.started(stage.name, line, [child.pid for child in children])
            while any(child.poll() is None for child in children):
                screen.update(stage)
                _check_lock(lock, children)
                if stop.is_set() or (stage.kind == "process group" and any(child.poll() for child in children)):
                    break  # they are asked to leave; of a group none can go on without the others
                time.sleep(POLL_SECONDS)
            if stop.is_set():
                screen.leaving(stage)
        finally:
            exits = end(children)
        code = exit_code(exits)
        reason = None
        if code == 0 and not stage.is_complete():
            code = 1  # a job that ends well without its output is a failure, whatever it says
            reason = "it reported success, but its output is missing"
        elif code not in (0, EXIT_STOPPED):
            reason = explain(Place(stage.name, len(exits)), exits, read_failures(Path(failures)), log_file, begin)
    canceller = _cancelled_by(run, stop) if code == EXIT_STOPPED else None
    state.ended(stage.name, code, reason, canceller)
    outcome = f"cancelled by {canceller}" if canceller else OUTCOMES.get(code, f"failed with exit code {code}")
    screen.end(stage, code, outcome)
    if reason:
        _say_why(code, reason, log_file, screen.console)
    return code


OUTCOMES = {0: "done", EXIT_STOPPED: "stopped", EXIT_INPUT: "wrong input"}


def _say_why(code: int, reason: str, log_file: Path, console: Console) -> None:
    """Print why a stage failed; of wrong input the message alone says what to change."""
    console.print(reason, style="red", markup=False, highlight=False, soft_wrap=True)
    if code != EXIT_INPUT:
        console.print(f"its log: {log_file}", markup=False, highlight=False, soft_wrap=True)


def _check_lock(lock: RunLock, children: list[subprocess.Popen[bytes]]) -> None:
    """Where another launcher has the run now, what these processes would save must not get in its way."""
    try:
        lock.check()
    except LockLostError:
        for child in children:
            child.kill()
        raise


def end(children: list[subprocess.Popen[bytes]]) -> list[Exit]:
    """Ask those that are alive to save and leave, and wait for all of them; kill them if they take too long.

    Return how they ended, those that left by themselves first. One that died of the request had not begun anything.
    """
    left = [Exit(rank, child.returncode) for rank, child in enumerate(children) if child.poll() is not None]
    asked = {rank: child for rank, child in enumerate(children) if child.poll() is None}
    for child in asked.values():
        child.terminate()
    patience = LEAVE_SECONDS if {each.code for each in left} <= {0, EXIT_STOPPED} else AFTER_FAILURE_SECONDS
    deadline = time.monotonic() + patience
    killed = set()
    for rank, child in asked.items():
        try:
            child.wait(max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()
            killed.add(rank)
    codes = {rank: child.returncode for rank, child in asked.items()}
    codes |= {rank: EXIT_STOPPED for rank, code in codes.items() if code == -signal.SIGTERM}
    return left + [Exit(rank, code, was_killed_here=rank in killed) for rank, code in codes.items()]


def _die_with_parent() -> None:
    """In a child: SIGTERM (save and leave) when its launcher is killed, so that no orphan goes on with the run.

    The signals wait until the job listens to them.
    """
    signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    LIBC.prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


LIBC = ctypes.CDLL(None)
# A session of their own: Ctrl-C reaches the launcher alone, which asks them to save and leave.
OF_THIS_LAUNCHER: dict[str, Any] = {"start_new_session": True, "preexec_fn": _die_with_parent}


def environments(stage: Stage, processes: Processes) -> list[dict[str, str]]:
    """What each process of a stage finds in its environment beside the launcher's own."""
    count = count_of(stage, processes)
    common = {"CUDA_VISIBLE_DEVICES": ",".join(processes.gpus)} if processes.gpus else {}
    if not processes.gpus and "OMP_NUM_THREADS" not in os.environ and stage.kind != "one process":
        common["OMP_NUM_THREADS"] = str(processes.threads)
    if count == 1:
        return [common]
    if stage.kind == "process group":
        common |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(_free_port())}
    ranks = [{"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(count)} for rank in range(count)]
    return [common | rank for rank in ranks]


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
