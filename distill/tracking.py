"""What a training tells the outside: metrics.jsonl, TensorBoard, Weights & Biases, a progress bar or log lines. Rank 0 only."""

import logging
import shutil
import time
from collections.abc import Callable
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from distill.files import append_jsonl, read_jsonl, write_jsonl
from distill.run import Member
from distill.weights_and_biases import WandbRun

log = logging.getLogger(__name__)


SAVE = "save_seconds"


class NullTracker:
    """Tells nobody: the tracker of ranks other than 0."""

    records = 0
    """Records written so far."""

    def record(self, step: int, values: dict[str, Any]) -> None:
        """Add one record; `values` are numbers by name."""

    def advance(self, step: int, tokens: int, padded_tokens: int, seconds: float) -> None:
        """Step `step` is done, which read so many tokens (source and target, all ranks; without and with padding)."""

    def speed(self) -> dict[str, float]:
        """Tokens per second, share of padding and seconds left, since the last call."""
        return {}

    def close(self) -> None:
        """Flush and end the display."""


class Tracker(NullTracker):
    """Writes the records of one training; those that a killed attempt wrote after its last checkpoint go first."""

    def __init__(
        self,
        member: Member,
        step: int,
        steps: int,
        records: int,
        before_write: Callable[[], None] = lambda: None,
        wandb: WandbRun | None = None,
    ) -> None:
        """`records`: how many there were when the checkpoint of `step`, from which the training goes on, was written."""
        from torch.utils.tensorboard import SummaryWriter

        self._before_write, self._wandb = before_write, wandb
        self._before_write()
        rows = read_jsonl(member.metrics)
        kept = rows[:records] + [row for row in rows[records:] if row["step"] == step and SAVE in row]
        write_jsonl(member.metrics, kept)
        shutil.rmtree(member.tensorboard, ignore_errors=True)
        self._file, self.records = member.metrics, len(kept)
        self._board = SummaryWriter(str(member.tensorboard))
        for row in kept:
            self._plot(row)
        self._steps, self._step = steps, step
        self._clear(step)
        console = Console(stderr=True)
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[rate]}"),
            TimeRemainingColumn(),
            console=console,
            disable=not console.is_terminal,
        )
        self._task = self._bar.add_task(str(member), total=steps, completed=step, rate="")
        self._bar.start()

    def record(self, step: int, values: dict[str, Any]) -> None:
        row = {"step": step, "time": time.time(), **values}
        self._before_write()
        append_jsonl(self._file, row)
        self.records += 1
        self._plot(row)
        if self._wandb:
            self._wandb.record(row)
        shown = "  ".join(f"{name} {_short(value)}" for name, value in values.items())
        log.info("step %d/%d  %s", step, self._steps, shown)

    def advance(self, step: int, tokens: int, padded_tokens: int, seconds: float) -> None:
        self._step = step
        self._tokens += tokens
        self._padded += padded_tokens
        self._seconds += seconds
        self._bar.update(self._task, completed=step)

    def _plot(self, row: dict[str, Any]) -> None:
        for name, value in row.items():
            if isinstance(value, int | float) and name not in ("step", "time"):
                self._board.add_scalar(name, value, row["step"], walltime=row["time"])

    def speed(self) -> dict[str, float]:
        seconds, done = max(self._seconds, 1e-9), self._step - self._last_step
        values = {
            "tokens_per_second": round(self._tokens / seconds, 1),
            "padding": round(1 - self._tokens / max(1, self._padded), 4),
            "seconds_left": round(seconds / max(1, done) * (self._steps - self._step), 1),
        }
        self._clear(self._step)
        self._bar.update(self._task, rate=f"{values['tokens_per_second']:,.0f} tokens/s")
        return values

    def _clear(self, step: int) -> None:
        """Begin an interval: only the seconds of training steps count, not those of validation and saving."""
        self._last_step = step
        self._seconds = 0.0
        self._tokens = self._padded = 0

    def close(self) -> None:
        self._bar.stop()
        self._board.close()
        if self._wandb:
            self._wandb.close()


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
