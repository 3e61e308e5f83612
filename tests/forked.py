"""Processes that are forked from one which has imported everything: milliseconds, not seconds.

A test process has one such server, so commands and the ranks of `tests/distributed/harness.py` share it.
"""

import multiprocessing
import os
import runpy
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path

from tests.conftest import PATIENCE_SECONDS, ROOT

IMPORTED = ["pytest", "launch.cli", "jobs.start", "distill.data", "distill.task", "distill.student", "datasets"]
IMPORTED += ["distill.trainer", "distill.scoring"]
FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(["tests.forked", *IMPORTED])
os.environ["DS_ACCELERATOR"] = "cpu"  # DeepSpeed reads it when the server imports it


def run_forked(
    *command: str,
    cwd: Path = ROOT,
    environment: Mapping[str, str | None] | None = None,
    before: Callable[[], None] | None = None,
) -> subprocess.CompletedProcess[str]:
    """Run `python -m COMMAND` and leave as it does. `before` happens first in its process; None unsets a variable."""
    with tempfile.TemporaryDirectory() as folder:
        files = [Path(folder) / name for name in ("stdout", "stderr")]
        process = FORKS.Process(target=_run, args=(command, cwd, dict(environment or {}), before, *map(str, files)))
        process.start()
        process.join(PATIENCE_SECONDS)
        if process.is_alive():
            process.kill()
            raise subprocess.TimeoutExpired(list(command), PATIENCE_SECONDS)
        texts = [file.read_text(encoding="utf-8", errors="replace") for file in files]
        assert process.exitcode is not None
        return subprocess.CompletedProcess(list(command), process.exitcode, *texts)


def _run(
    command: tuple[str, ...],
    cwd: Path,
    environment: dict[str, str | None],
    before: Callable[[], None] | None,
    *files: str,
) -> None:
    for descriptor, file in enumerate(files, start=1):
        os.dup2(os.open(file, os.O_WRONLY | os.O_CREAT), descriptor)
    for name, value in environment.items():
        os.environ.pop(name, None)
        if value is not None:
            os.environ[name] = value
    os.chdir(cwd)
    sys.argv = list(command)
    if before:
        before()
    try:
        runpy.run_module(command[0], run_name="__main__", alter_sys=True)
        code = 0
    except SystemExit as leave:
        code = leave.code if isinstance(leave.code, int) else int(leave.code is not None)
    except BaseException:
        traceback.print_exc()
        code = 1
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
