"""What is allowed in a recipe or on a command line, and rarely meant: warnings before a run begins."""

import os

from distill.run import Run
from launch.local import Processes
from launch.steps import planned_steps


def warnings(run: Run, processes: Processes | None) -> list[str]:
    """Return a line for each thing that is rarely meant. `processes` are those of this machine, None on a cluster."""
    return [*_warmups(run), *(_processes(processes) if processes else [])]


def _warmups(run: Run) -> list[str]:
    """Name the trainings whose learning rate would only rise."""
    names: dict[tuple[int, int], list[str]] = {}
    for member in run.members():
        train = run.train_settings(member)
        steps = planned_steps(run, member)
        if train and steps and train.warmup_steps and train.warmup_steps >= steps:
            names.setdefault((train.warmup_steps, steps), []).append(str(member))
    return [
        f"train.warmup_steps: {warmup} given, but the training of {', '.join(members)} has {steps} steps, so the learning rate only rises. "
        "Give fewer, or leave it out for 5 % of the steps."
        for (warmup, steps), members in names.items()
    ]


def _processes(processes: Processes) -> list[str]:
    cores = len(os.sched_getaffinity(0))
    if processes.gpus or processes.count <= cores:
        return []
    return [
        f"--processes: {processes.count} given, but this machine has {cores} CPU core(s). They take turns, and each needs "
        f"memory of its own: expect it to be slower than --processes {cores}."
    ]
