"""python -m tests.drills.labels [--documents 2000] [--shards 16] [--workers 2] [--kills 20] [--corpus FILE]

Labels documents with several workers while one of them, at random, is killed (SIGKILL) every few seconds and started
again; then compares with an undisturbed run: no label lost, none double, files byte for byte the same, and how much work
was done twice.
"""

import argparse
import itertools
import json
import os
import random
import re
import subprocess
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from distill.formats import read_records

ROOT = Path(__file__).parents[2]
CORPUS = ROOT.parent / "shared" / "data" / "arxiv_title" / "train.jsonl.xz"


@dataclass(frozen=True)
class Outcome:
    """What the drill saw."""

    documents: int
    kills: int
    lost: int
    double: int
    identical: bool
    items_begun: int
    seconds: float

    @property
    def done_twice(self) -> float:
        """Share of documents that were begun again, at most: a killed batch counts as a whole."""
        return self.items_begun / self.documents - 1


def drill(recipe: Path, folder: Path, workers: int, kills: int, pause: tuple[float, float], seed: int = 0) -> Outcome:
    """Run the recipe's first labels undisturbed, then with kills, and compare."""
    name, settings = next(iter(yaml.safe_load(recipe.read_text())["labels"].items()))
    _job(recipe, folder / "calm", "prepare")
    _finish(recipe, folder / "calm", name, workers)
    _job(recipe, folder / "killed", "prepare")
    began = time.monotonic()
    done = _with_kills(recipe, folder / "killed", name, workers, kills, pause, random.Random(seed))
    _finish(recipe, folder / "killed", name, workers)
    seconds = time.monotonic() - began
    runs = [next((folder / which).iterdir()) / "labels" / name for which in ("calm", "killed")]
    shards = [{path.name: path.read_bytes() for path in sorted(run.glob("shard-*"))} for run in runs]
    assert len(shards[0]) == 2 * settings["shards"]
    numbers = Counter(
        json.loads(line)["number"]
        for file, data in shards[1].items()
        if file.endswith(".jsonl")
        for line in data.split(b"\n")[:-1]
    )
    documents = json.loads((runs[0] / "manifest.json").read_text())["documents"]
    logs = (runs[1].parents[1] / "logs").glob(f"label-{name}.rank*.log")
    begun = sum(int(n) for log in logs for n in re.findall(r"batch \d+ of \d+, (\d+) items", log.read_text()))
    return Outcome(
        documents=documents,
        kills=done,
        lost=sum(number not in numbers for number in range(documents)),
        double=sum(count > 1 for count in numbers.values()),
        identical=shards[0] == shards[1] and _tables(runs),
        items_begun=begun,
        seconds=seconds,
    )


def _tables(runs: list[Path]) -> bool:
    calm, killed = ((run / "labels.parquet").read_bytes() for run in runs)
    return calm == killed


def _with_kills(
    recipe: Path, runs: Path, name: str, workers: int, kills: int, pause: tuple[float, float], chance: random.Random
) -> int:
    """Kill a random worker after every pause and start it again, until all have finished; the number of kills."""
    running = {rank: _worker(recipe, runs, name, rank, workers) for rank in range(workers)}
    begun = dict.fromkeys(running, 0)
    done = 0
    try:
        for _ in range(kills):
            time.sleep(chance.uniform(*pause))
            alive = [rank for rank, process in running.items() if process.poll() is None]
            if not alive:
                break
            victim = chance.choice(alive)
            _wait_for_a_batch(running[victim], runs, name, victim, begun[victim])
            if running[victim].poll() is not None:
                continue
            running[victim].kill()
            running[victim].wait()
            done += 1
            begun[victim] = _batches(runs, name, victim)
            running[victim] = _worker(recipe, runs, name, victim, workers)
    finally:
        for process in running.values():
            process.kill()
            process.wait()
    return done


def _wait_for_a_batch(process: subprocess.Popen[bytes], runs: Path, name: str, rank: int, before: int) -> None:
    """Until a worker has begun a batch since its start, so that there is something to lose; or has ended."""
    while process.poll() is None and _batches(runs, name, rank) <= before:
        time.sleep(0.01)


def _batches(runs: Path, name: str, rank: int) -> int:
    logs = list(runs.glob(f"*/logs/label-{name}.rank{rank}.log"))
    return len(re.findall(r"batch \d+ of", logs[0].read_text())) if logs else 0


def _finish(recipe: Path, runs: Path, name: str, workers: int) -> None:
    processes = [_worker(recipe, runs, name, rank, workers) for rank in range(workers)]
    codes = [process.wait() for process in processes]
    assert codes == [0] * workers, codes
    _job(recipe, runs, "merge", "--labels", name)


def _worker(recipe: Path, runs: Path, name: str, rank: int, workers: int) -> subprocess.Popen[bytes]:
    environment = {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(workers), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "jobs.label", str(recipe), "--labels", name, "--runs", str(runs)]
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    return subprocess.Popen(command, cwd=ROOT, env=os.environ | environment, **quiet)  # type: ignore[call-overload, no-any-return]


def _job(recipe: Path, runs: Path, job: str, *arguments: str) -> None:
    command = [sys.executable, "-m", f"jobs.{job}", str(recipe), *arguments, "--runs", str(runs)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)


def write_recipe(folder: Path, corpus: Path, teacher: Path, documents: int, **labels: Any) -> Path:
    """A recipe that labels the first `documents` of a JSON-lines file, and that file cut to them."""
    folder.mkdir(parents=True, exist_ok=True)
    for split, count in (("train", documents), ("validation", 2), ("test", 2)):
        rows = [row for _, row in itertools.islice(read_records(corpus, ()), count)]
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    recipe = {
        "name": "drill",
        "corpus": {"train": str(folder), "max_source_tokens": 128, "max_target_tokens": 32},
        "teachers": {"t": {"model": str(teacher)}},
        "labels": {"t": labels},
    }
    (folder / "drill.yaml").write_text(yaml.safe_dump(recipe))
    return folder / "drill.yaml"


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.drills.labels")
    for option, default in (("documents", 2000), ("shards", 16), ("workers", 2), ("kills", 20)):
        parser.add_argument(f"--{option}", type=int, default=default)
    parser.add_argument("--corpus", type=Path, default=CORPUS)
    parser.add_argument("--teacher", type=Path, default=ROOT / "jobs" / "recipes" / "demo-teacher")
    parser.add_argument("--pause", type=float, nargs=2, default=(6, 16), help="seconds between two kills, from and to")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        recipe = write_recipe(
            Path(folder) / "corpus", options.corpus, options.teacher, options.documents,
            shards=options.shards, num_beams=4, batch_tokens=2048,
        )  # fmt: skip
        outcome = drill(recipe, Path(folder), options.workers, options.kills, tuple(options.pause))
    print(outcome)
    print(f"work done twice: at most {100 * outcome.done_twice:.1f} %")
    assert (outcome.lost, outcome.double, outcome.identical) == (0, 0, True)


if __name__ == "__main__":
    main()
