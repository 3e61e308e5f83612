"""Whether several processes see one disk, and a file that is replaced by a rename at every moment whole. Part of the probe."""

import contextlib
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from distill.files import write_text

if TYPE_CHECKING:
    from distill.distributed import World

SECONDS = 2.0
PATIENCE_SECONDS = 15.0
"""For what another node has written to appear; NFS may keep what it knew for some seconds."""
LINES = 1000


def look(world: "World", folder: Path) -> dict[str, Any]:
    """Rank 0 replaces one file again and again, the others read it meanwhile and its last state in the end."""
    file = folder / "turning"
    if world.is_main:
        write_text(file, _content(0))
    world.barrier()
    sees = _appears(file, 0) is not None
    world.barrier()
    turns = _turn(file) if world.is_main else 0
    reads = {} if world.is_main or not sees else _watch(file)
    last = world.broadcast(turns)
    return {"sees": sees, "turns": last, "lag_seconds": _appears(file, last), **reads}


def _content(number: int) -> str:
    return f"{number:08d}\n" * LINES


def _turn(file: Path) -> int:
    deadline, number = time.monotonic() + SECONDS, 0
    while time.monotonic() < deadline:
        number += 1
        write_text(file, _content(number))
    return number


def _watch(file: Path) -> dict[str, int]:
    """How often the file was read, and found torn, missing, or replaced while it was open (an error of NFS)."""
    deadline, counts = time.monotonic() + SECONDS, {"reads": 0, "torn": 0, "missing": 0, "stale": 0}
    while time.monotonic() < deadline:
        counts["reads"] += 1
        try:
            lines = file.read_text(encoding="utf-8").splitlines()
            counts["torn"] += len(lines) != LINES or len(set(lines)) != 1
        except FileNotFoundError:
            counts["missing"] += 1
        except OSError:
            counts["stale"] += 1
        time.sleep(0.001)
    return counts


def _appears(file: Path, number: int) -> float | None:
    """The seconds until the file has this content; None where it never does."""
    began = time.monotonic()
    while (seconds := time.monotonic() - began) < PATIENCE_SECONDS:
        with contextlib.suppress(OSError):  # not there yet, or just being replaced: that is what is waited for
            if file.read_text(encoding="utf-8") == _content(number):
                return seconds
        time.sleep(0.01)
    return None
