"""A SLURM of three nodes for the session, by slurm/dev; it leaves nothing behind, or the session fails."""

import contextlib
import os
import random
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import ROOT, make_model, write_corpus

DEV = ROOT / "slurm" / "dev"
FIRST_JOB = 4_000_000


@dataclass(frozen=True)
class Cluster:
    """Commands on a cluster; `environment` is what they need."""

    folder: Path
    environment: dict[str, str]

    def run(self, *command: str, cwd: Path | None = None, timeout: float = 60) -> str:
        """What the command printed; a failure shows its errors."""
        done = subprocess.run(
            command, cwd=cwd or self.folder, env=self.environment, capture_output=True, text=True, timeout=timeout
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

    def wait_for(self, job: str, *states: str, seconds: float = 20) -> dict[str, str]:
        """Until the job's state is one of these."""
        self.until(lambda: self.job(job)["JobState"] in states, seconds, lambda: f"{self.job(job)}, expected {states}")
        return self.job(job)

    def until(self, condition: Callable[[], bool], seconds: float, message: Callable[[], str]) -> None:
        end = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < end, f"not within {seconds} s: {message()}"
            time.sleep(0.1)

    def node(self, action: str, name: str) -> None:
        """kill, fail, start, unplug or plug a node (slurm/dev/node.sh)."""
        self.run(str(DEV / "node.sh"), action, name)

    @property
    def isolation(self) -> str:
        settings = (self.folder / "etc" / "settings").read_text(encoding="utf-8")
        return settings.split("DEV_CLUSTER_ISOLATION=")[1].split()[0]


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    with running_cluster(GRACE="10", FIRST_JOB=str(FIRST_JOB)) as running:
        yield running


@contextlib.contextmanager
def running_cluster(**settings: str) -> Iterator[Cluster]:
    """A cluster with these DEV_CLUSTER_ settings; it ends with a look for what it may have left."""
    # Not tmp_path: the paths of its sockets must be short.
    folder = Path(tempfile.mkdtemp(prefix="dist", dir="/tmp")) / "c"
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("SLURM", "DEV_CLUSTER"))}
    settings = {"DIR": str(folder), "PORT": str(free_ports()), **settings}
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
        traces = find_traces(folder, settings["PORT"])
        shutil.rmtree(folder.parent, ignore_errors=True)
    assert stopped.returncode == 0, stopped.stdout + stopped.stderr
    assert traces == []


def run_script(environment: dict[str, str], name: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([str(DEV / name), *arguments], env=environment, capture_output=True, text=True, timeout=120)


def read_logs(folder: Path) -> str:
    """The ends of the daemons' logs: stop.sh removes them."""
    logs = sorted((folder / "log").glob("*"))
    return "".join(f"{log.name}:\n{log.read_text(encoding='utf-8', errors='replace')[-2000:]}\n" for log in logs)


def free_ports() -> int:
    """The first of a cluster's ports; below those that the kernel gives to clients."""
    candidates = list(range(20000, 32000, 50))
    random.shuffle(candidates)
    for first in candidates:
        try:
            for port in (first + 1, *range(first + 11, first + 14)):
                with socket.socket() as server:
                    server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                    server.bind(("", port))
        except OSError:
            continue
        return first
    raise AssertionError("no free ports between 20000 and 32000")


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
