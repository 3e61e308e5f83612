"""The sbatch scripts for labels and for a whole recipe, and SLURM's numbers that begin again."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from distill.files import read_json
from tests.cluster.conftest import FIRST_JOB, Cluster, running_cluster
from tests.cluster.runs import (
    LABELS,
    STUDENT,
    codes,
    job_of,
    launch,
    states,
    wait,
    write_profile,
    write_recipe,
    write_yaml,
)
from tests.conftest import ROOT

pytestmark = pytest.mark.cluster


def sbatch(cluster: Cluster, folder: Path, script: str, *arguments: str | Path, options: tuple[str, ...] = ()) -> str:
    environment = cluster.environment | {"PYTHON": sys.executable, "OMP_NUM_THREADS": "1"}
    line = ["sbatch", "--parsable", f"--output={folder}/%x-%j.log", "--mem-per-cpu=1500", *options]
    line += [str(ROOT / "slurm" / script), *map(str, arguments)]
    done = subprocess.run(line, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_an_array_of_shards_then_a_whole_recipe_in_one_job(
    cluster: Cluster, tiny: tuple[Path, Path], tmp_path: Path
) -> None:
    recipe = write_recipe(tmp_path, *tiny, labels=LABELS, students={"b": STUDENT | {"train_on": ["t"]}})
    runs = ("--runs", tmp_path / "runs")
    run = tmp_path / "runs" / "tiny"
    subprocess.run([sys.executable, "-m", "jobs.prepare", str(recipe), *map(str, runs)], cwd=ROOT, check=True, capture_output=True)  # fmt: skip
    sbatch(cluster, tmp_path, "label.sbatch", recipe, "--labels", "t", *runs, options=("--array=0-3%2",))
    wait(lambda: len(list((run / "labels" / "t").glob("shard-*-of-00004.json"))) == 4, run)
    job = sbatch(cluster, tmp_path, "run.sbatch", recipe, *runs)
    cluster.wait_for(job, "COMPLETED", "FAILED")
    assert cluster.job(job)["JobState"] == "COMPLETED", (tmp_path / f"distill-run-{job}.log").read_text()[-3000:]
    assert (run / "report" / "report.md").exists()


def test_numbers_that_begin_again_belong_to_others(tiny: tuple[Path, Path], tmp_path: Path) -> None:
    """A new cluster gives a stranger's job the number that a job of the run had on the old one."""
    recipe, run = write_recipe(tmp_path, *tiny), tmp_path / "runs" / "tiny"
    submit = ("run", recipe, "--on", write_profile(tmp_path), "--runs", run.parent)
    with running_cluster(FIRST_JOB=str(FIRST_JOB)) as cluster:
        cluster.run("scontrol", "update", "partitionname=low", "state=down")
        launch(cluster, *submit)
        before = job_of(run, "prepare")
    with running_cluster(FIRST_JOB=str(FIRST_JOB)) as cluster:
        cluster.run("scontrol", "update", "partitionname=low", "state=down")
        stranger = cluster.run("sbatch", "--parsable", "--output=/dev/null", "--wrap=sleep 600")
        assert stranger == before
        assert states(cluster, run)["prepare"] == "failed"
        launch(cluster, "cancel", run)
        assert cluster.job(stranger)["JobState"] == "PENDING"
        launch(cluster, *submit)
        assert int(job_of(run, "prepare")) > int(stranger)
        launch(cluster, "cancel", run)
        assert states(cluster, run)["prepare"] == "cancelled"
        assert cluster.job(stranger)["JobState"] == "PENDING"
        cluster.run("scancel", stranger)


@pytest.mark.parametrize("name", ["a b", "a;b", "a'b", 'a"b', "$(b)"])
def test_a_name_that_could_harm_is_refused(
    cluster: Cluster, tiny: tuple[Path, Path], tmp_path: Path, name: str
) -> None:
    recipe = write_recipe(tmp_path, *tiny, students={name: STUDENT})
    assert f"students.{name}" in launch(cluster, "run", recipe, "--on", write_profile(tmp_path), code=2).stderr


def test_what_sbatch_refuses_is_told_and_the_same_command_goes_on(
    cluster: Cluster, tiny: tuple[Path, Path], tmp_path: Path
) -> None:
    """A partition that does not exist for one stage only: what came before stays queued."""
    recipe, run = write_recipe(tmp_path, *tiny), tmp_path / "runs" / "tiny"
    with cluster.no_starts():
        wrong = write_profile(tmp_path, stages={"train": {"partition": "nowhere"}})
        refused = launch(cluster, "run", recipe, "--on", wrong, "--runs", run.parent, code=2).stderr
        assert "train-student-a" in refused and "nvalid partition" in refused
        kept = read_json(run / "logs" / "graph.json")
        again = launch(cluster, "run", recipe, "--on", write_profile(tmp_path), "--runs", run.parent).stdout
        assert "prepare" not in again and "train-student-a: job" in again
        assert kept.items() <= read_json(run / "logs" / "graph.json").items()
        launch(cluster, "cancel", run)


def test_jobs_that_wait_for_ever_are_replaced_and_a_torn_pickle_blocks_nobody(
    cluster: Cluster, tiny: tuple[Path, Path], tmp_path: Path
) -> None:
    """Where a site does not cancel them, those after a failure stay pending with a dependency that is never satisfied."""
    teacher, corpus = tiny
    own = shutil.copytree(corpus, tmp_path / "corpus")
    recipe, run = write_recipe(tmp_path, teacher, own), tmp_path / "runs" / "tiny"
    stubborn = write_profile(tmp_path, options={"kill-on-invalid-dep": "no"})
    submit = ("run", recipe, "--on", stubborn, "--runs", run.parent)
    with cluster.no_starts():
        launch(cluster, *submit)
        own.rename(tmp_path / "away")
    wait(lambda: states(cluster, run)["prepare"] == "failed", run)
    wait(lambda: states(cluster, run)["shrink-student-a"] == "cancelled", run)
    stuck = job_of(run, "shrink-student-a")
    assert codes(run, "prepare") == [2] and cluster.job(stuck)["JobState"] == "PENDING"
    with cluster.no_starts():
        (tmp_path / "away").rename(own)
        launch(cluster, *submit)
        assert cluster.job(stuck)["JobState"] == "CANCELLED"
        again = read_json(run / "logs" / "graph.json")["prepare"]["jobs"][-1]
        (run / "logs" / "slurm" / again["submission"] / f"{again['job']}_0_result.save_tmp").touch()
    cluster.wait_for(job_of(run, "prepare"), "COMPLETED")
    launch(cluster, "cancel", run)


def test_a_bad_profile_is_refused_before_anything_is_made(
    cluster: Cluster, tiny: tuple[Path, Path], tmp_path: Path
) -> None:
    recipe = write_recipe(tmp_path, *tiny)
    bad = write_yaml(tmp_path / "bad.yaml", {"partiton": "low", "nodes": 0})
    told = launch(cluster, "run", recipe, "--on", bad, "--runs", tmp_path / "runs", code=2).stderr
    assert "did you mean 'partition'" in told and "nodes: 0 given" in told
    assert not (tmp_path / "runs").exists()
