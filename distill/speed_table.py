"""What the report says of speed and size, read from the models' benchmark.json."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from distill.benchmark_plan import MIN_ROUNDS
from distill.markdown import markdown_table

TOLERATED_RATIO = 1.2
"""Models of equal shape and decoding whose speeds differ by more are marked."""
MARK = "†"


@dataclass(frozen=True)
class Speed:
    """The benchmark of one model."""

    name: str
    layers: str
    teacher: str
    """Whose speed it is compared with: its own name for a teacher."""
    values: dict[str, Any]
    """Its benchmark.json."""

    @property
    def is_measured(self) -> bool:
        """False for a model that did not fit into memory."""
        return not self.values["unfit"]

    @property
    def latency_ms(self) -> float:
        value: float = self.values["latency_ms"]
        return value

    def has_twin_shape(self, other: "Speed") -> bool:
        """Return True if nothing explains a difference in speed: same layers, parameters and beams."""
        keys = ("parameters", "num_beams")
        return self.layers == other.layers and all(self.values[key] == other.values[key] for key in keys)

    def is_much_slower(self, other: "Speed") -> bool:
        """Return True if it is slower both per document and per token. One alone may come from longer summaries."""
        keys = ("latency_ms", "ms_per_token")
        return all(self.values[key] > TOLERATED_RATIO * other.values[key] for key in keys)


def unreliable(speeds: Sequence[Speed]) -> list[tuple[Speed, Speed]]:
    """Return the pairs (faster, slower) of equal shape whose speeds differ by more than 20 %."""
    measured = [speed for speed in speeds if speed.is_measured]
    return [
        (faster, slower)
        for faster in measured
        for slower in measured
        if faster.has_twin_shape(slower) and slower.is_much_slower(faster)
    ]


def worst_pairs(speeds: Sequence[Speed]) -> list[tuple[Speed, Speed]]:
    """Return of each shape the pair that differs most, if it differs too much."""
    worst: dict[tuple[str, int], tuple[Speed, Speed]] = {}
    for faster, slower in unreliable(speeds):
        shape = (faster.layers, faster.values["parameters"])
        known = worst.get(shape)
        if known is None or slower.latency_ms / faster.latency_ms > known[1].latency_ms / known[0].latency_ms:
            worst[shape] = (faster, slower)
    return list(worst.values())


def parameters_cell(speed: Speed) -> str:
    return f"{speed.values['parameters'] / 1e6:.1f}" if speed.is_measured else "-"


def latency_cell(speed: Speed, speeds: Sequence[Speed]) -> str:
    """Return the milliseconds per document, with a mark if they are unreliable."""
    if not speed.is_measured:
        return "-"
    marked = any(speed in pair for pair in unreliable(speeds))
    return f"{speed.latency_ms:.1f}" + (f" {MARK}" if marked else "")


def speed_up_cell(speed: Speed, speeds: Sequence[Speed]) -> str:
    """Return the latency of its teacher divided by its own; "-" if it was measured in one round only."""
    teacher = next(other for other in speeds if other.name == speed.teacher)
    if not speed.is_measured or not teacher.is_measured or _rounds(speed) < MIN_ROUNDS:
        return "-"
    return f"{teacher.latency_ms / speed.latency_ms:.2f}"


def speed_table(speeds: Sequence[Speed]) -> str:
    """Return the table of speed and size."""
    head = ["model", "ms/doc", "ms/token", "tokens/doc", "docs/s", "batch", "peak MB", "MB on disk"]
    return markdown_table(head, [_cells(speed, speeds) for speed in speeds])


def speed_notes(speeds: Sequence[Speed]) -> str:
    """Return what the table means, on what it was measured, and what is wrong with it."""
    first = speeds[0].values
    machine, plan = first["machine"], first["plan"]
    notes = [
        "ms/doc: latency at batch 1, the median over the rounds, with the fastest and the slowest round in brackets. "
        "ms/token: latency for each token of the summary. docs/s: at the best batch size, "
        "which is also that of peak MB, the memory of a process of its own. speed-up: latency of the student's own teacher divided by the student's.",
        f"Measured on {machine['device']} (threads: {machine['threads']}, cores: {machine['cores']}, "
        f"{machine['precision']}), all models in turn: {plan['documents']} documents, {plan['rounds_measured']} rounds, "
        f"batches of {', '.join(map(str, plan['batch_sizes']))}. Load average of one minute: "
        f"{machine['load_before']:.1f} before, at most {machine['load_during']:.1f} during the rounds. Other processes "
        f"kept {machine['other_cores']:.1f} cores busy.",
        *_warnings(speeds),
    ]
    return "\n\n".join(notes) + "\n"


def _cells(speed: Speed, speeds: Sequence[Speed]) -> list[str]:
    values = speed.values
    disk = _megabytes(values["disk_bytes"], ".1f")
    if not speed.is_measured:
        return [speed.name, *["-"] * 6, disk]
    throughput = values["documents_per_second_rounds"].get(str(values["best_batch"]), [])
    return [
        speed.name,
        f"{latency_cell(speed, speeds)} {_spread(values['latency_ms_rounds'])}",
        f"{values['ms_per_token']:.2f}",
        f"{values['tokens_per_document']:.1f}",
        f"{values['documents_per_second']:.1f} {_spread(throughput)}" if throughput else "-",
        str(values["best_batch"]) if throughput else "-",
        _megabytes(values["peak_memory_bytes"], ".0f"),
        disk,
    ]


def _warnings(speeds: Sequence[Speed]) -> list[str]:
    first = speeds[0].values
    machine, plan = first["machine"], first["plan"]
    notes = []
    if machine["is_busy"]:
        notes.append("**The machine was busy with other work while it was measured: the times are not reliable.**")
    for faster, slower in worst_pairs(speeds):
        percent = 100 * (slower.latency_ms / faster.latency_ms - 1)
        notes.append(
            f"**{MARK} Not reliable: {faster.name} ({faster.latency_ms:.1f} ms) and {slower.name} "
            f"({slower.latency_ms:.1f} ms) have the same shape and should be equally fast, but differ by "
            f"{percent:.0f} %.** Delete the benchmark.json files and run again on a quiet machine."
        )
    if plan["note"]:
        notes.append(plan["note"])
    if plan["rounds_measured"] < plan["rounds"]:
        notes.append(
            f"It ended after {plan['rounds_measured']} of the {plan['rounds']} planned rounds: they took longer than "
            "the warm-up had shown."
        )
    if plan["rounds_measured"] < MIN_ROUNDS:
        notes.append("No speed-up is shown: one round has no spread. Set benchmark.rounds to 2 or more.")
    notes += [f"{speed.values['unfit']}: its speed is not measured." for speed in speeds if not speed.is_measured]
    without_memory = [speed for speed in speeds if speed.is_measured and speed.values["peak_memory_bytes"] is None]
    notes += [
        f"{speed.name} does not fit into memory in a process of its own with a batch of {speed.values['best_batch']}."
        for speed in without_memory
    ]
    return notes


def _rounds(speed: Speed) -> int:
    return len(speed.values["latency_ms_rounds"])


def _spread(values: Sequence[float]) -> str:
    """Return the smallest and the largest; nothing if there is one value only."""
    if len(values) < 2:
        return ""
    return f"[{min(values):.1f}, {max(values):.1f}]"


def _megabytes(count: int | None, digits: str) -> str:
    return "-" if count is None else f"{count / 1e6:{digits}}"
