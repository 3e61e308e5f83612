"""The doctor over two nodes: its job is signalled at the time limit, requeued, and gone in the end."""

import subprocess
import sys
import time
from pathlib import Path

import pytest

from distill.files import write_text
from tests.cluster.conftest import Cluster
from tests.conftest import ROOT
from tests.distributed.test_doctor import rows

pytestmark = pytest.mark.cluster

PROFILE = "partition: low\nprocesses_per_node: 2\nmemory_gb_per_process: 1\nsignal_lead_seconds: 10\n"


def doctor(cluster: Cluster, profile: Path | str, runs: Path, *options: str) -> "subprocess.Popen[str]":
    command = [sys.executable, "-m", "launch", "doctor", "--on", str(profile), "--runs", str(runs), *options]
    pipe = subprocess.PIPE
    return subprocess.Popen(command, cwd=ROOT, env=cluster.environment, stdout=pipe, stderr=pipe, text=True)


def write_profile(folder: Path, text: str = "") -> Path:
    write_text(folder / "profile.yaml", PROFILE + text)
    return folder / "profile.yaml"


def test_two_nodes_and_a_requeue_that_is_refused(cluster: Cluster, tmp_path: Path) -> None:
    """At the same time: each waits for its time limit."""
    refused = doctor(cluster, write_profile(tmp_path / "refused", "gpus_per_node: 2\n"), tmp_path / "runs")
    cluster.until(lambda: len(queued(cluster)) == 1, 20, lambda: "no job")
    job = cluster.run("squeue", "--noheader", "--format=%i")
    cluster.run("scontrol", "update", f"JobId={job}", "Requeue=0")
    examined = doctor(cluster, write_profile(tmp_path / "two", "nodes: 2\n"), tmp_path / "runs")
    output, errors = examined.communicate(timeout=240)
    assert examined.returncode == 0, output + errors
    found = rows(output)
    checked = ("processes", "versions", "GPUs", "bf16", "all-reduce", "shared disk", "room", "signal", "requeue")
    assert [found[name] for name in checked] == ["ok"] * len(checked), output
    assert "gloo over 4 process(es)" in output and "SIGUSR2 on 4 process(es)" in output
    output, errors = refused.communicate(timeout=60)
    assert refused.returncode == 1, output + errors
    failed = [name for name, result in rows(output).items() if result == "FAILED"]
    assert {"GPUs", "requeue"} <= set(failed) and "processes" not in failed, output
    assert "presently disabled" in output and "JobRequeue=1" in output, output
    assert ", expected 2" in output, "the GPUs of this cluster are none for torch"
    assert list((tmp_path / "runs").iterdir()) == [] and queued(cluster) == []


def test_interrupted_it_cancels_its_job(cluster: Cluster, tmp_path: Path) -> None:
    examined = doctor(cluster, write_profile(tmp_path), tmp_path / "runs")
    cluster.until(lambda: len(queued(cluster)) == 1, 20, lambda: "no job")
    time.sleep(1)
    examined.terminate()
    output, errors = examined.communicate(timeout=90)
    assert examined.returncode == 75, output + errors
    assert list((tmp_path / "runs").iterdir()) == [] and queued(cluster) == []


def test_a_job_that_gets_no_nodes_is_cancelled(cluster: Cluster, tmp_path: Path) -> None:
    examined = doctor(cluster, write_profile(tmp_path, "options: {begin: now+1hour}\n"), tmp_path, "--wait-min", "0.1")
    output, errors = examined.communicate(timeout=90)
    assert examined.returncode == 1, output + errors
    assert rows(output)["processes"] == "FAILED" and "PENDING (BeginTime)" in output and queued(cluster) == []


def test_what_sbatch_refuses_is_wrong_input(cluster: Cluster, tmp_path: Path) -> None:
    examined = doctor(cluster, write_profile(tmp_path, "qos: nothing\nconstraint: nothing\n"), tmp_path / "runs")
    output, errors = examined.communicate(timeout=60)
    assert examined.returncode == 2 and "SLURM did not take the doctor's job" in errors, output + errors
    assert list((tmp_path / "runs").iterdir()) == []


def queued(cluster: Cluster) -> list[str]:
    """The doctor's jobs that have not ended."""
    return [line for line in cluster.run("squeue", "--noheader", "--format=%j").splitlines() if "doctor-" in line]
