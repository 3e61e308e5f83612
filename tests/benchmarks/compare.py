"""python -m tests.benchmarks.compare STUDENT OTHER RUN [RUN ...]

The difference of two students of the same recipe, run with several seeds: mean over the test documents of all runs, with
a 95 % interval of a paired bootstrap over the documents, and for each run by itself.
"""

import argparse
from pathlib import Path

import numpy as np

from distill.corpus import read_references
from distill.files import read_jsonl
from distill.scores import interval, rouge


def differences(run: Path, student: str, other: str, metric: str) -> tuple[np.ndarray, float, float]:
    """(other's score minus the student's for each document, the mean of each)."""
    references = read_references(run / "corpus" / "test.parquet")
    scores = []
    for name in (student, other):
        rows = read_jsonl(run / "students" / name / "evaluation" / "test" / "predictions.jsonl")
        scores.append(np.array(rouge([row["summary"] for row in rows], references)[metric]))
    return scores[1] - scores[0], scores[0].mean(), scores[1].mean()


def _bounds(values: np.ndarray) -> tuple[float, float]:
    found = interval(values.tolist(), seed=0)
    return found["low"], found["high"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("student")
    parser.add_argument("other")
    parser.add_argument("runs", nargs="+", type=Path)
    options = parser.parse_args()
    for metric in ("rouge1", "rouge2", "rougeL"):
        found = [differences(run, options.student, options.other, metric) for run in options.runs]
        for run, (values, mine, theirs) in zip(options.runs, found, strict=True):
            low, high = _bounds(values)
            shown = f"{options.student} {mine:.2f}, {options.other} {theirs:.2f}"
            print(f"{metric} {run.name}: {shown}, difference {values.mean():+.2f} [{low:+.2f}, {high:+.2f}]")
        pooled = np.concatenate([values for values, _, _ in found])
        low, high = _bounds(pooled)
        print(f"{metric} all: difference {pooled.mean():+.2f} [{low:+.2f}, {high:+.2f}]")


if __name__ == "__main__":
    main()
