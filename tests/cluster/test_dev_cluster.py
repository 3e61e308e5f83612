"""What the other cluster tests, and the profiles in slurm/, rely on: of the cluster of slurm/dev and of SLURM itself."""

from pathlib import Path

import pytest

from tests.cluster.conftest import FIRST_JOB, Cluster

pytestmark = pytest.mark.cluster

# A job as a preemptible training is: signals go to the step, which ends with 75; then the batch script asks to be requeued.
TRAINING = """#!/bin/bash
echo "start ${SLURM_RESTART_COUNT:-0}"
srun bash -c 'trap "echo step USR1; exit 75" USR1; trap "echo step USR2; exit 75" USR2; echo ready; while :; do sleep 0.1; done'
code=$?
echo "srun $code"
[ $code != 75 ] || scontrol requeue "$SLURM_JOB_ID"
sleep infinity
"""


def write(folder: Path, name: str, text: str) -> Path:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


def start_training(cluster: Cluster, folder: Path, nodes: int, *options: str) -> tuple[str, Path]:
    """A job whose tasks wait for signals, and its output."""
    script, output = write(folder, "training.sh", TRAINING), folder / "training.out"
    output.touch()
    job = cluster.sbatch(script, f"--nodes={nodes}", "--requeue", "--open-mode=append", f"--output={output}", *options)
    cluster.until(lambda: output.read_text().count("ready") == nodes, output.read_text)
    return job, output


def submit_high(cluster: Cluster) -> str:
    """A job on all nodes that ends at once."""
    options = ("--partition=high", "--nodes=3", "--exclusive", "--output=/dev/null")
    return cluster.run("sbatch", "--parsable", *options, "--wrap=true")


def test_every_node_runs_tasks_under_its_name(cluster: Cluster) -> None:
    names = cluster.run("srun", "--nodes=3", "--ntasks=3", "hostname").split()
    assert len(names) == 3
    if cluster.isolation != "none":
        assert set(names) == {"n1", "n2", "n3"}


def test_job_ids_begin_where_they_were_told(cluster: Cluster) -> None:
    assert FIRST_JOB <= int(cluster.run("sbatch", "--parsable", "--wrap=true", "--output=/dev/null")) < FIRST_JOB + 1000


def test_a_node_has_gpus_to_give(cluster: Cluster) -> None:
    tasks = ["srun", "--nodes=1", "--ntasks=2", "--gpus-per-node=2", "sh", "-c", "echo $CUDA_VISIBLE_DEVICES"]
    assert cluster.run(*tasks).split() == ["0,1", "0,1"]


@pytest.mark.parametrize("signal", ["USR1", "USR2"])
def test_a_preempted_step_gets_its_signal_and_the_job_returns(cluster: Cluster, tmp_path: Path, signal: str) -> None:
    job, output = start_training(cluster, tmp_path, 3, "--partition=low", "--exclusive", f"--signal={signal}@60")
    high = submit_high(cluster)
    cluster.wait_for(high, "COMPLETED")
    cluster.until(lambda: "start 1" in output.read_text(), output.read_text)
    cluster.run("scancel", job)
    assert cluster.job(job)["Restarts"] == "1"
    assert output.read_text().count(f"step {signal}\n") == 3
    assert output.read_text().count("srun 75\n") == 1


def test_the_time_of_preemption_is_told_while_a_job_may_save(cluster: Cluster, tmp_path: Path) -> None:
    script = write(tmp_path, "deaf.sh", "#!/bin/bash\ntrap '' USR1\nwhile :; do sleep 0.1; done\n")
    job = cluster.sbatch(
        script, "--partition=low", "--exclusive", "--nodes=3", "--signal=B:USR1@60", "--output=/dev/null"
    )
    assert cluster.wait_for(job, "RUNNING")["PreemptTime"] == "None"
    high = submit_high(cluster)
    cluster.until(lambda: cluster.job(job)["PreemptTime"] != "None", lambda: str(cluster.job(job)))
    assert cluster.job(job)["JobState"] == "RUNNING"
    cluster.run("scancel", high)
    cluster.run("scancel", job)


def test_a_cancelled_job_is_not_a_preempted_one(cluster: Cluster, tmp_path: Path) -> None:
    script = write(tmp_path, "deaf.sh", "#!/bin/bash\ntrap '' TERM\nwhile [ ! -e enough ]; do sleep 0.1; done\n")
    job = cluster.sbatch(script, "--requeue", "--output=/dev/null")
    cluster.wait_for(job, "RUNNING")
    cluster.run("scancel", job)
    told = cluster.job(job)  # it is deaf, so it stays in this state for KILL_WAIT, which is a minute here
    assert (told["JobState"], told["PreemptTime"], told["Restarts"]) == ("COMPLETING", "None", "0")
    (tmp_path / "enough").touch()


def test_a_failed_node_gives_its_job_to_another(cluster: Cluster, tmp_path: Path) -> None:
    job, output = start_training(cluster, tmp_path, 1)
    node = cluster.job(job)["NodeList"]
    cluster.node("fail", node)
    try:
        cluster.until(lambda: "start 1" in output.read_text(), output.read_text)
        assert cluster.job(job)["NodeList"] not in (node, "(null)")
    finally:
        cluster.node("start", node)
    cluster.run("scancel", job)


FAILS_WHEN_TOLD = "#!/bin/bash\nwhile [ ! -e fail ]; do sleep 0.1; done\nexit 3\n"


def test_what_depends_on_a_failure_is_cancelled(cluster: Cluster, tmp_path: Path) -> None:
    first = cluster.sbatch(write(tmp_path, "fails.sh", FAILS_WHEN_TOLD), "--output=/dev/null")
    options = ["--output=/dev/null", f"--dependency=afterok:{first}", "--kill-on-invalid-dep=yes"]
    second = cluster.sbatch(write(tmp_path, "never.sh", "#!/bin/bash\n"), *options)
    (tmp_path / "fail").touch()
    cluster.wait_for(second, "CANCELLED")
    assert cluster.job(first)["ExitCode"] == "3:0"


ARRAY = """#!/bin/bash
echo "$SLURM_ARRAY_TASK_ID ${SLURM_RESTART_COUNT:-0}" >> runs.txt
[ "$SLURM_ARRAY_TASK_ID" = 2 ] && [ -z "$SLURM_RESTART_COUNT" ] || exit 0
while [ ! -e requeue ]; do sleep 0.1; done
scontrol requeue "${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID"
sleep infinity
"""


def test_a_task_of_an_array_requeues_itself_alone(cluster: Cluster, tmp_path: Path) -> None:
    """By its number in the array: the last task's own id is the array's, and would requeue the tasks that are done."""
    job = cluster.sbatch(write(tmp_path, "array.sh", ARRAY), "--array=0-2", "--requeue", "--output=/dev/null")

    def states() -> list[str]:
        return sorted(cluster.squeue("--array", "--format=%T", f"--jobs={job}"))

    cluster.until(lambda: states() == ["COMPLETED", "COMPLETED", "RUNNING"], lambda: str(states()))
    (tmp_path / "requeue").touch()
    cluster.until(lambda: states() == ["COMPLETED"] * 3, lambda: str(states()))
    assert sorted((tmp_path / "runs.txt").read_text().splitlines()) == ["0 0", "1 0", "2 0", "2 1"]
