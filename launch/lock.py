"""One launcher for one run: a lock file that names its holder, and that a dead holder loses, on any machine."""

import contextlib
import json
import logging
import os
import secrets
import socket
import threading
import time
from pathlib import Path
from types import TracebackType
from typing import Any

from distill.claim import slurm_attempt
from distill.errors import InputError
from distill.files import write_text

log = logging.getLogger(__name__)

HEARTBEAT_SECONDS = 15.0
STALE_SECONDS = 120.0
"""After so long without a heartbeat a holder on another machine is taken for dead."""


class LockLostError(InputError):
    """Another launcher took this one for dead, and has the run now."""


class RunLock:
    """Held by `with`: InputError where another launcher has the run."""

    def __init__(self, logs: Path) -> None:
        self._file, self._over = logs / "launcher.lock", threading.Event()
        self._own = {
            "host": socket.gethostname(),
            "process": os.getpid(),
            "started": _process_start(os.getpid()),
            **slurm_attempt(),
            "since": time.strftime("%Y-%m-%d %H:%M:%S"),
            "id": secrets.token_hex(8),
        }

    def __enter__(self) -> "RunLock":
        self._file.parent.mkdir(parents=True, exist_ok=True)
        mine = self._file.with_name(f"{self._file.name}.{self._own['id']}")
        write_text(mine, json.dumps(self._own))
        try:
            while not self._try(mine):
                pass
        finally:
            mine.unlink(missing_ok=True)
        threading.Thread(target=self._beat, daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._over.set()
        if self._holder() == self._own:
            self._file.unlink()

    def check(self) -> None:
        """LockLostError where the run was taken over."""
        try:
            holder = self._holder()
        except (OSError, ValueError):  # a disk that hiccups takes nobody's lock away
            return
        if holder != self._own:
            raise LockLostError(f"{self._file} is held by {_who(holder)}; this launcher was taken for dead and stops.")

    def _try(self, mine: Path) -> bool:
        """True where the lock is ours now; False to try again; InputError where a living launcher has it."""
        with contextlib.suppress(FileExistsError):
            os.link(mine, self._file)  # atomic on network file systems too
            return True
        holder = self._holder()
        if holder is None:
            return False
        if self._is_alive(holder):
            raise InputError(
                f"{self._file.parent.parent} is being run by {_who(holder)}. Wait for it, or stop it; "
                "one run has one launcher."
            )
        return self._take_over(mine, holder)

    def _take_over(self, mine: Path, dead: dict[str, Any]) -> bool:
        """Of several that see the same dead holder one alone may replace its lock: who can make the marker."""
        marker = self._file.with_name(f"{self._file.name}.dead-{dead['id']}")
        try:
            os.link(mine, marker)
        except FileExistsError:
            if self._age(marker) > STALE_SECONDS:
                marker.unlink(missing_ok=True)
            time.sleep(0.1)
            return False
        try:
            if self._holder() != dead:  # somebody was faster, and has removed the marker again
                return False
            new = self._file.with_name(f"{mine.name}.new")
            os.link(mine, new)
            new.replace(self._file)
            return True
        finally:
            marker.unlink(missing_ok=True)

    def _is_alive(self, holder: dict[str, Any]) -> bool:
        job = self._own["job"]
        if job is not None and holder.get("job") == job and holder["restart"] < self._own["restart"]:
            return False  # SLURM has ended it, or lost its node
        if holder["host"] == self._own["host"]:
            return bool(_process_start(holder["process"]) == holder["started"])
        return self._age(self._file) < STALE_SECONDS

    def _holder(self) -> dict[str, Any] | None:
        try:
            holder: dict[str, Any] = json.loads(self._file.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return None
        return holder

    def _age(self, file: Path) -> float:
        """Seconds since a file was touched, by the clock of its own file system."""
        probe = self._file.with_name(f"{self._file.name}.{self._own['id']}.now")
        probe.touch()
        try:
            return probe.stat().st_mtime - file.stat().st_mtime
        except FileNotFoundError:
            return 0.0
        finally:
            probe.unlink()

    def _beat(self) -> None:
        while not self._over.wait(HEARTBEAT_SECONDS):
            try:
                if self._holder() == self._own:
                    os.utime(self._file)
            except (OSError, ValueError) as error:
                log.warning("the lock %s could not be renewed (%s); trying again", self._file, error)


def holder_of(logs: Path) -> dict[str, Any] | None:
    """The living launcher that has a run; None where there is none."""
    lock = RunLock(logs)
    holder = lock._holder()
    return holder if holder and lock._is_alive(holder) else None


def _process_start(process: int) -> str | None:
    """When a process of this machine began (a number that no other process of its id has); None where there is none."""
    try:
        stat = Path(f"/proc/{process}/stat").read_text(encoding="utf-8")
    except (FileNotFoundError, ProcessLookupError):
        return None
    state, *fields = stat.rpartition(")")[2].split()
    return None if state == "Z" else fields[18]


def _who(holder: dict[str, Any] | None) -> str:
    if holder is None:
        return "nobody"
    return f"process {holder['process']} on {holder['host']} (since {holder['since']})"
