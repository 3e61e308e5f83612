"""The doctor over two nodes: its job is signalled at the time limit, requeued, and gone in the end."""

import subprocess
import sys
from pathlib import Path

import pytest

from distill.files import read_json, write_text
from tests.cluster.conftest import Cluster
from tests.conftest import PATIENCE_SECONDS, ROOT
from tests.distributed.test_doctor import rows

pytestmark = pytest.mark.cluster

# The doctor gives its job 75 seconds beside the lead, in whole minutes: with this lead there is most room for a busy machine.
PROFILE = "partition: low\nprocesses_per_node: 2\nmemory_gb_per_process: 1\nsignal_lead_seconds: 46\n"


def doctor(cluster: Cluster, profile: Path | str, runs: Path, *options: str) -> "subprocess.Popen[str]":
    command = [sys.executable, "-m", "launch", "doctor", "--on", str(profile), "--runs", str(runs), *options]
    pipe = subprocess.PIPE
    return subprocess.Popen(command, cwd=ROOT, env=cluster.environment, stdout=pipe, stderr=pipe, text=True)


def write_profile(folder: Path, text: str = "") -> Path:
    write_text(folder / "profile.yaml", PROFILE + text)
    return folder / "profile.yaml"


def test_two_nodes_and_a_requeue_that_is_refused(cluster: Cluster, tmp_path: Path) -> None:
    """Both wait for their time limits at the same time; the second one begins its checks when the first one has done them."""
    refused = doctor(cluster, write_profile(tmp_path / "refused", "gpus_per_node: 2\n"), tmp_path / "runs")
    (job,) = wait_for_job(cluster)
    cluster.run("scontrol", "update", f"JobId={job}", "Requeue=0")
    cluster.until(lambda: refused.poll() is not None or are_waiting(tmp_path / "runs", 2), lambda: "checks go on")
    examined = doctor(cluster, write_profile(tmp_path / "two", "nodes: 2\n"), tmp_path / "runs")
    output, errors = examined.communicate(timeout=PATIENCE_SECONDS)
    assert examined.returncode == 0, output + errors
    found = rows(output)
    checked = ("processes", "versions", "GPUs", "bf16", "all-reduce", "shared disk", "room", "signal", "requeue")
    assert [found[name] for name in checked] == ["ok"] * len(checked), output
    assert "gloo over 4 process(es)" in output and "SIGUSR2 on 4 process(es)" in output
    output, errors = refused.communicate(timeout=PATIENCE_SECONDS)
    assert refused.returncode == 1, output + errors
    failed = [name for name, result in rows(output).items() if result == "FAILED"]
    assert {"GPUs", "requeue"} <= set(failed) and "processes" not in failed, output
    assert "presently disabled" in output and "JobRequeue=1" in output, output
    assert ", expected 2" in output, "the GPUs of this cluster are none for torch"
    assert list((tmp_path / "runs").iterdir()) == [] and queued(cluster) == []


def test_interrupted_it_cancels_its_job(cluster: Cluster, tmp_path: Path) -> None:
    examined = doctor(cluster, write_profile(tmp_path), tmp_path / "runs")
    (job,) = wait_for_job(cluster)
    cluster.wait_for(job, "RUNNING")
    examined.terminate()
    output, errors = examined.communicate(timeout=PATIENCE_SECONDS)
    assert examined.returncode == 75, output + errors
    assert list((tmp_path / "runs").iterdir()) == [] and queued(cluster) == []


def test_a_job_that_gets_no_nodes_is_cancelled(cluster: Cluster, tmp_path: Path) -> None:
    examined = doctor(cluster, write_profile(tmp_path, "options: {begin: now+1hour}\n"), tmp_path, "--wait-min", "0.1")
    output, errors = examined.communicate(timeout=PATIENCE_SECONDS)
    assert examined.returncode == 1, output + errors
    assert rows(output)["processes"] == "FAILED" and "PENDING (BeginTime)" in output and queued(cluster) == []


def test_what_sbatch_refuses_is_wrong_input(cluster: Cluster, tmp_path: Path) -> None:
    examined = doctor(cluster, write_profile(tmp_path, "qos: nothing\nconstraint: nothing\n"), tmp_path / "runs")
    output, errors = examined.communicate(timeout=PATIENCE_SECONDS)
    assert examined.returncode == 2 and "SLURM did not take the doctor's job" in errors, output + errors
    assert list((tmp_path / "runs").iterdir()) == []


def queued(cluster: Cluster) -> list[str]:
    """The ids of the doctor's jobs that have not ended."""
    lines = cluster.run("squeue", "--noheader", "--format=%i %j").splitlines()
    return [line.split()[0] for line in lines if "doctor-" in line]


def wait_for_job(cluster: Cluster) -> list[str]:
    """Wait until the doctor has submitted."""
    cluster.until(lambda: bool(queued(cluster)), lambda: "no job")
    return queued(cluster)


def are_waiting(runs: Path, processes: int) -> bool:
    """Whether so many processes have done their checks and wait for the signal of the time limit."""
    answers = [read_json(file) for file in runs.glob(".doctor-*/rank-*.json")]
    return [answer["at"] for answer in answers] == ["signal"] * processes
