"""A SLURM of three nodes for the session, by slurm/dev; it leaves nothing behind, or the session fails."""

import contextlib
import os
import random
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import PATIENCE_SECONDS, ROOT, make_model, write_corpus
from tests.ports import check_free, reserved_port

DEV = ROOT / "slurm" / "dev"
FIRST_JOB = 4_000_000
PATIENT = {"GRACE": "120", "KILL_WAIT": "60", "NODE_TIMEOUT": "120"}
"""A busy machine may be slow to save, and slow to answer. Jobs that leave by themselves wait for none of these."""
LEAVE_SECONDS = 60.0
ENDED = ("CANCELLED", "COMPLETED", "FAILED", "NODE_FAIL", "TIMEOUT")


@dataclass(frozen=True)
class Cluster:
    """Commands on a cluster; `environment` is what they need."""

    folder: Path
    environment: dict[str, str]

    def run(self, *command: str, cwd: Path | None = None) -> str:
        """What the command printed; a failure shows its errors."""
        done = subprocess.run(
            command,
            cwd=cwd or self.folder,
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=PATIENCE_SECONDS,
        )
        assert done.returncode == 0, f"{command} ended with {done.returncode}\n{done.stdout}{done.stderr}"
        return done.stdout.strip()

    def sbatch(self, script: Path, *options: str) -> str:
        """The id of the new job."""
        return self.run("sbatch", "--parsable", *options, str(script), cwd=script.parent)

    def squeue(self, *arguments: str) -> list[str]:
        """One line for each job, ended ones too."""
        return self.run("squeue", "--noheader", "--states=all", *arguments).splitlines()

    def job(self, job: str) -> dict[str, str]:
        """The keys of `scontrol show job` for a job that is no array."""
        words = self.run("scontrol", "--oneliner", "show", "job", job).split()
        return dict(word.split("=", 1) for word in words if "=" in word)

    def wait_for(self, job: str, *states: str) -> dict[str, str]:
        """Wait until the job's state is one of these. Fail as soon as it has ended in another one."""
        self.until(
            lambda: self.job(job)["JobState"] in (*states, *ENDED), lambda: f"{self.job(job)}, expected {states}"
        )
        found = self.job(job)
        assert found["JobState"] in states, f"{found}, expected {states}"
        return found

    def until(self, condition: Callable[[], bool], message: Callable[[], str]) -> None:
        end = time.monotonic() + PATIENCE_SECONDS
        while not condition():
            assert time.monotonic() < end, f"not within {PATIENCE_SECONDS} s: {message()}"
            time.sleep(0.1)

    @contextlib.contextmanager
    def no_starts(self) -> Iterator[None]:
        """Let no job of the partition `low` start inside the block; those that are submitted wait."""
        self.run("scontrol", "update", "partitionname=low", "state=down")
        try:
            yield
        finally:
            self.run("scontrol", "update", "partitionname=low", "state=up")

    def node(self, action: str, name: str) -> None:
        """kill, fail, start, unplug or plug a node (slurm/dev/node.sh)."""
        self.run(str(DEV / "node.sh"), action, name)

    @property
    def isolation(self) -> str:
        settings = (self.folder / "etc" / "settings").read_text(encoding="utf-8")
        return settings.split("DEV_CLUSTER_ISOLATION=")[1].split()[0]


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    with running_cluster(**PATIENT, FIRST_JOB=str(FIRST_JOB)) as running:
        yield running


@contextlib.contextmanager
def running_cluster(**settings: str) -> Iterator[Cluster]:
    """A cluster with these DEV_CLUSTER_ settings; it ends with a look for what it may have left."""
    # Not tmp_path: the paths of its sockets must be short.
    folder = Path(tempfile.mkdtemp(prefix="dist", dir="/tmp")) / "c"
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("SLURM", "DEV_CLUSTER"))}
    with reserved_ports() as port:
        yield from _run_cluster(folder, environment, {"DIR": str(folder), "PORT": str(port), **settings})


def _run_cluster(folder: Path, environment: dict[str, str], settings: dict[str, str]) -> Iterator[Cluster]:
    if isolation := os.environ.get("DEV_CLUSTER_ISOLATION"):
        settings["ISOLATION"] = isolation
    environment |= {f"DEV_CLUSTER_{name}": value for name, value in settings.items()}
    try:
        started = run_script(environment, "start.sh")
        if started.returncode == 2:
            pytest.exit(started.stderr, returncode=2)
        assert started.returncode == 0, started.stdout + started.stderr + read_logs(folder)
        yield Cluster(folder, environment | {"SLURM_CONF": str(folder / "etc" / "slurm.conf")})
    finally:
        stopped = run_script(environment, "stop.sh", "--wipe")
        traces = remaining_traces(folder, settings["PORT"])
        shutil.rmtree(folder.parent, ignore_errors=True)
    assert stopped.returncode == 0, stopped.stdout + stopped.stderr
    assert traces == []


def run_script(environment: dict[str, str], name: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(DEV / name), *arguments], env=environment, capture_output=True, text=True, timeout=PATIENCE_SECONDS
    )


def read_logs(folder: Path) -> str:
    """The ends of the daemons' logs: stop.sh removes them."""
    logs = sorted((folder / "log").glob("*"))
    return "".join(f"{log.name}:\n{log.read_text(encoding='utf-8', errors='replace')[-2000:]}\n" for log in logs)


@contextlib.contextmanager
def reserved_ports() -> Iterator[int]:
    """The first of a cluster's ports, below those that the kernel gives to clients.

    SLURM does not use the first one. It is held, so that no cluster of another test process gets the same ports.
    """
    candidates = list(range(20000, 32000, 50))
    random.shuffle(candidates)
    with contextlib.ExitStack() as held:
        for first in candidates:
            with contextlib.suppress(OSError), contextlib.ExitStack() as attempt:
                attempt.enter_context(reserved_port(first))
                for port in (first + 1, *range(first + 11, first + 14)):
                    check_free(port)
                held.enter_context(attempt.pop_all())
                break
        else:
            raise AssertionError("no free ports between 20000 and 32000")
        yield first


def remaining_traces(folder: Path, port: str) -> list[str]:
    """What stays: on a busy machine a process that was killed needs a while to go."""
    end = time.monotonic() + LEAVE_SECONDS
    while (traces := find_traces(folder, port)) and time.monotonic() < end:
        time.sleep(0.1)
    return traces


def find_traces(folder: Path, port: str) -> list[str]:
    """What a stopped cluster has left: files, processes that had its configuration or files, mounts, network, names."""
    traces = [str(folder)] if folder.exists() else []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            texts = [(process / name).read_bytes() for name in ("environ", "cmdline")]
            texts += [os.fsencode(file.readlink()) for file in (process / "fd").iterdir()]
        except OSError:  # another user's, or it ended
            continue
        if any(os.fsencode(folder) in text for text in texts):
            traces.append(f"{process}: {texts[1]!r}")
    for file in ("/proc/self/mounts", "/etc/hosts"):
        lines = Path(file).read_text(encoding="utf-8").splitlines()
        traces += [f"{file}: {line}" for line in lines if str(folder) in line]
    return traces + [str(link) for link in Path("/sys/class/net").glob(f"dv{port}*")]


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory, tokenizer: Any) -> tuple[Path, Path]:
    """(a tiny teacher, a tiny corpus)"""
    folder = tmp_path_factory.mktemp("tiny")
    make_model("bart", tokenizer).save_pretrained(folder / "teacher")
    tokenizer.save_pretrained(folder / "teacher")
    return folder / "teacher", write_corpus(folder / "corpus")
