"""Run a test's body on several gloo processes: `run_distributed(body, world_size, *arguments)`."""

import multiprocessing
import multiprocessing.connection
import os
import pickle
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from distill import distributed
from distill.distributed import World
from tests.conftest import PATIENCE_SECONDS
from tests.forked import FORKS
from tests.ports import reserved_port

AFTER_FAILURE_SECONDS = 20.0
"""After one rank has failed, the others get this long to say why they fail too."""


def run_distributed(body: Callable[..., Any], world_size: int, *arguments: Any) -> list[Any]:
    """What `body(world, *arguments)` returned on every rank; a body of a test module's top level.

    A failure on any rank ends the others and is raised here with its traceback. The processes are forked from one that has
    imported the libraries and done nothing else.
    """
    with tempfile.TemporaryDirectory() as folder, reserved_port() as port:
        ranks = [
            FORKS.Process(target=_run, args=(body, rank, world_size, port, folder, arguments))
            for rank in range(world_size)
        ]
        for process in ranks:
            process.start()
        try:
            _wait(ranks)
            errors = [path.read_text() for path in sorted(Path(folder).glob("*.error"))]
            assert not errors, "\n".join(errors)
            assert all(process.exitcode == 0 for process in ranks), [process.exitcode for process in ranks]
        finally:
            for process in ranks:
                if process.is_alive():
                    process.kill()
        return [pickle.loads((Path(folder) / f"{rank}.result").read_bytes()) for rank in range(world_size)]


def _wait(ranks: list[Any]) -> None:
    """Until all have ended; after a failure, or if they hang, not for ever."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while alive := [process for process in ranks if process.is_alive()]:
        if any(process.exitcode for process in ranks):
            deadline = min(deadline, time.monotonic() + AFTER_FAILURE_SECONDS)
        left = deadline - time.monotonic()
        if left <= 0:
            break
        multiprocessing.connection.wait([process.sentinel for process in alive], left)


def benchmark_by_forks() -> None:
    """The benchmark's process for each model is forked too, from a server of the caller's own: 0.3 s in place of 5."""
    server = multiprocessing.get_context("forkserver")
    server.set_forkserver_preload(["distill.speed"])
    multiprocessing.get_context = lambda method=None: server  # type: ignore[assignment,misc]


def _run(body: Callable[..., Any], rank: int, size: int, port: int, folder: str, arguments: tuple[Any, ...]) -> None:
    environment = {
        "RANK": rank,
        "WORLD_SIZE": size,
        "LOCAL_RANK": rank,
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": port,
    }
    os.environ.update({name: str(value) for name, value in environment.items()})
    code = 1
    try:
        world: World = distributed.start()
        result = body(world, *arguments)
        (Path(folder) / f"{rank}.result").write_bytes(pickle.dumps(result))
        world.barrier()
        code = 0
    except BaseException:
        (Path(folder) / f"{rank}.error").write_text(f"rank {rank}:\n{traceback.format_exc()}")
    sys.stdout.flush()
    os._exit(code)  # a live engine may abort in the interpreter's teardown
