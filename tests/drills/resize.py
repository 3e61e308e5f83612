"""python -m tests.drills.resize [--steps 40]

A training that is stopped and resumed on other numbers of processes, 2 -> 1 -> 3 -> 2, at every ZeRO stage, against one that
nobody stops, on two: the largest relative difference of a step's loss.
"""

import argparse
import tempfile
from pathlib import Path
from typing import Any

from distill.distributed import World
from tests.distributed.harness import run_distributed
from tests.distributed.test_preemption import STAGES, go_on
from tests.distributed.test_training import losses

PROCESSES = (2, 1, 3, 2)


def largest_difference(folder: Path, name: str) -> float:
    stopped, whole = losses(folder / "stopped" / name), losses(folder / "whole" / name)
    assert len(stopped) == len(whole)
    return max(abs(one - other) / other for one, other in zip(stopped, whole, strict=True))


def train(world: World, folder: str, cases: dict[str, dict[str, Any]], step: int) -> None:
    assert go_on(world, folder, cases, step) == []


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.drills.resize")
    parser.add_argument("--steps", type=int, default=40)
    steps = parser.parse_args().steps
    cases = {name: {**settings, "steps": steps} for name, settings in STAGES.items()}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        run_distributed(train, 2, str(folder / "whole"), cases, steps)
        for part, processes in enumerate(PROCESSES, start=1):
            run_distributed(train, processes, str(folder / "stopped"), cases, steps * part // len(PROCESSES))
        for stage in cases:
            print(f"{stage}: {largest_difference(folder, stage):.1e}", flush=True)


if __name__ == "__main__":
    main()
