"""Whether DeepSpeed compiles one of its libraries now. Reads torch's folder of compiled libraries, imports no torch."""

import os
import sys
import time
from dataclasses import dataclass
from pathlib import Path

COMMUNICATION = "deepspeed_shm_comm"
NAMES = {COMMUNICATION: "communication library", "cpu_adam": "optimizer for the CPU"}
USUAL_TIME = "30 s to 5 min"
FIRST_SECONDS = 3.0
"""torch takes the lock for a moment at every start, also if there is nothing to compile."""
SUSPICIOUS_SECONDS = 900.0


@dataclass(frozen=True)
class Compilation:
    """A library that is being compiled, and since when."""

    library: str
    lock: Path
    seconds: float

    def text(self) -> str:
        """Return one sentence for the user."""
        name = NAMES.get(self.library, self.library)
        if self.seconds > SUSPICIOUS_SECONDS:
            minutes = round(self.seconds / 60)
            return f"waits for DeepSpeed's {name} since {minutes} min; if nothing compiles it, delete {self.lock}"
        return f"compiling DeepSpeed's {name}, once ({USUAL_TIME}): {round(self.seconds)} s"


def compilation() -> Compilation | None:
    """Return what is being compiled; None if nothing is.

    torch holds a file named `lock` in the library's folder while it compiles. A killed process leaves the file
    there, and every later process waits for it without a word.
    """
    for folder in _cache_folders():
        for lock in sorted(folder.glob("*/lock")):
            try:
                seconds = time.time() - lock.stat().st_mtime
            except FileNotFoundError:  # released since the folder was listed
                continue
            if seconds >= FIRST_SECONDS:
                return Compilation(lock.parent.name, lock, seconds)
    return None


def is_compiled(library: str) -> bool:
    """Return True if the library was compiled before, for this version of Python."""
    return any((folder / library / f"{library}.so").exists() for folder in _cache_folders())


def _cache_folders() -> list[Path]:
    """Return the folders in which torch.utils.cpp_extension keeps libraries; one for each kind of device."""
    if given := os.environ.get("TORCH_EXTENSIONS_DIR"):
        return [Path(given)]
    cache = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    version = f"py{sys.version_info.major}{sys.version_info.minor}"
    return sorted((Path(cache) / "torch_extensions").glob(f"{version}*_*"))
