"""The report's pictures."""

from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import pyarrow.parquet as pq

from distill.run import LabelSet, Run
from distill.scores import TITLES, central
from distill.tables import Line

MEASURES = {
    "rouge1": "ROUGE-1 to gold",
    "rouge2": "ROUGE-2 to gold",
    "rougeL": "ROUGE-L to gold",
    "length_ratio": "words / gold words",
    "copied_share": "copied bigrams %",
    "repeated_ngrams": "repeated trigrams %",
    "log_probability": "mean log-probability",
}
MARKERS = 40
"""Of a curve, at most about so many; a single point has one too."""


def plot_quality_against_speed(lines: list[Line], baseline: dict[str, Any], metric: str, path: Path) -> None:
    figure, axes = plt.subplots(figsize=(8, 5))
    labels = []
    for number, line in enumerate(line for line in lines if line.speed.is_measured):
        quality = line.scores[metric]
        height = central(quality)
        x = line.speed.latency_ms
        rounds = line.speed.values["latency_ms_rounds"]
        color = f"C{number % 10}"
        axes.errorbar(
            x,
            height,
            xerr=[[x - min(rounds)], [max(rounds) - x]],
            yerr=[[height - quality["low"]], [quality["high"] - height]],
            marker="s" if line.member.group == "teachers" else "o",
            color=color,
            capsize=3,
        )
        labels.append(axes.annotate(str(line.member), (x, height), (7, 4), textcoords="offset points", color=color))
    axes.axhline(central(baseline[metric]), color="grey", linestyle=":", label="first sentence")
    axes.set(
        xlabel="milliseconds per document (batch 1; bars: fastest and slowest round)",
        ylabel=f"{TITLES[metric]} (bars: 95 % interval)",
        xlim=(0, 1.3 * axes.get_xlim()[1]),  # room for the labels
    )
    axes.legend(fontsize=8)
    figure.tight_layout()
    _spread_labels(figure, labels)
    _save(figure, path)


def _spread_labels(figure: Any, labels: list[Any]) -> None:
    """Move labels upwards until none covers another."""
    figure.canvas.draw()
    placed: list[Any] = []
    for label in sorted(labels, key=lambda label: label.xy[1]):
        box = label.get_window_extent()
        while any(box.overlaps(other) for other in placed):
            right, up = label.get_position()
            label.set_position((right, up + 3))
            box = label.get_window_extent()
        placed.append(box)


def plot_training(lines: list[Line], run: Run, folder: Path) -> None:
    """Write training_loss.png and validation.png."""
    figure, axes = plt.subplots(figsize=(7, 4))
    for line in lines:
        # Of all terms of a student's loss the one that every model has.
        points = [(row["step"], row.get("cross_entropy", row["loss"])) for row in line.metrics if "loss" in row]
        _plot_curve(axes, points, str(line.member))
    axes.set(xlabel="optimizer step", ylabel="cross-entropy per target token (nats)")
    axes.legend(fontsize=8)
    _save(figure, folder / "training_loss.png")
    figure, axes = plt.subplots(figsize=(7, 4))
    titles = {line.member: TITLES[run.evaluate_settings(line.member).metric] for line in lines}
    differ = len(set(titles.values())) > 1
    for line in lines:
        label = f"{line.member} ({titles[line.member]})" if differ else str(line.member)
        _plot_curve(axes, line.validations(run.evaluate_settings(line.member).metric), label)
    name = "score" if differ else titles[lines[0].member]
    axes.set(xlabel="optimizer step", ylabel=f"{name} on the validation sample")
    axes.legend(fontsize=8)
    _save(figure, folder / "validation.png")


def _plot_curve(axes: Any, points: list[tuple[int, float]], label: str) -> None:
    steps = [step for step, _ in points]
    values = [value for _, value in points]
    every = max(1, len(points) // MARKERS)
    axes.plot(steps, values, marker="o", markersize=3, markevery=every, linewidth=1, label=label)


def plot_labels(labels: LabelSet, path: Path) -> None:
    """Plot how every measure is distributed over the labels, those that were dropped apart."""
    rows = pq.read_table(labels.table).to_pylist()
    measures = {name: title for name, title in MEASURES.items() if any(row[name] is not None for row in rows)}
    figure, grid = plt.subplots(2, -(-len(measures) // 2), figsize=(12, 5), squeeze=False)
    for axes, (name, title) in zip(grid.flat, measures.items(), strict=False):
        known = [row for row in rows if row[name] is not None]
        kept = [row[name] for row in known if not row["dropped"]]
        dropped = [row[name] for row in known if row["dropped"]]
        _plot_distribution(axes, kept, dropped)
        axes.set(xlabel=title, ylabel="labels")
    for axes in grid.flat[len(measures) :]:
        axes.axis("off")
    grid[0, 0].legend(fontsize=8)
    _save(figure, path)


def _plot_distribution(axes: Any, kept: list[float], dropped: list[float]) -> None:
    lowest, highest = min(kept + dropped), max(kept + dropped)
    bins: Any = 30
    if lowest == highest:  # one bar, with the one value below it
        bins = [lowest - 0.5, lowest + 0.5]
        axes.set(xlim=(lowest - 2, lowest + 2), xticks=[lowest])
    axes.hist([kept, dropped], bins=bins, stacked=True, label=["kept", "dropped"], color=["tab:blue", "lightgrey"])


def _save(figure: Any, path: Path) -> None:
    figure.tight_layout()
    figure.savefig(path, dpi=120, metadata={"Software": None})
    plt.close(figure)
