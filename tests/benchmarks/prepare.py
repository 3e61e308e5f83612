"""python -m tests.benchmarks.prepare [--rows 1000000]

Time and peak memory of `jobs.prepare` on a generated corpus: rows of random words, 100 to a document on average, with the
demo's teacher, whose tokenizer makes the files of token ids.
"""

import argparse
import json
import random
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import yaml

from tests.conftest import ROOT

TEACHER = ROOT / "jobs" / "recipes" / "demo-teacher"
HELD_OUT = 2000


def write_rows(path: Path, count: int, seed: int) -> None:
    """JSON lines of random words of many lengths; every thousandth document is the one before it, nearly."""
    generator = random.Random(seed)
    letters = "etaoinshrdlucmfwypvbgk"
    words = ["".join(generator.choices(letters, k=generator.randint(2, 9))) for _ in range(20_000)]
    text = ""
    with path.open("w", encoding="utf-8") as file:
        for number in range(count):
            if number % 1000 != 999:
                text = " ".join(generator.choices(words, k=generator.randint(20, 180)))
            row = {"id": str(number), "document": text + ".", "summary": " ".join(text.split()[:10])}
            file.write(json.dumps(row) + "\n")


def measure(folder: Path, rows: int) -> tuple[float, int, dict[str, object]]:
    """(seconds, peak resident bytes, counts of the training split)"""
    corpus = folder / "corpus"
    corpus.mkdir()
    for split, count in (("train", rows), ("validation", HELD_OUT), ("test", HELD_OUT)):
        write_rows(corpus / f"{split}.jsonl", count, seed=len(split))
    recipe = {
        "name": "prepared",
        "corpus": {"train": str(corpus), "max_source_tokens": 128, "max_target_tokens": 32},
        "teachers": {"t": {"model": str(TEACHER)}},
    }
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    command = [sys.executable, "-m", "jobs.prepare", str(folder / "recipe.yaml"), "--runs", str(folder / "runs")]
    began, peak = time.monotonic(), 0
    with subprocess.Popen(command, cwd=ROOT) as process:
        while process.poll() is None:
            peak = max(peak, _peak_resident_bytes(process.pid))
            time.sleep(0.2)
    if process.returncode:
        raise SystemExit(f"jobs.prepare left with {process.returncode}")
    manifest = json.loads((folder / "runs" / "prepared" / "corpus" / "manifest.json").read_text())
    return time.monotonic() - began, peak, manifest["splits"]["train"]


def _peak_resident_bytes(process: int) -> int:
    status = Path(f"/proc/{process}/status").read_text(encoding="ascii")
    found = re.search(r"VmHWM:\s+(\d+) kB", status)
    return int(found[1]) * 1024 if found else 0


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.prepare")
    parser.add_argument("--rows", type=int, default=1_000_000)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        seconds, peak, counts = measure(Path(folder), options.rows)
    print(f"{options.rows:,} rows: {seconds:.0f} s, peak resident memory {peak / 2**20:.0f} MiB")
    print({name: counts[name] for name in ("examples", "duplicate_documents", "near_duplicates")})


if __name__ == "__main__":
    main()
