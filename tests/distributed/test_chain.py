"""The whole chain through the commands that users type, on a tiny corpus: launch, jobs, launchers, exit codes."""

import json
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import yaml
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

from distill.corpus import read_split
from distill.files import read_json, read_jsonl
from distill.recipe_file import load_recipe
from distill.report import write_report
from distill.run import Run
from tests.conftest import PATIENCE_SECONDS, ROOT, run_command, write_corpus
from tests.forked import run_forked

pytestmark = pytest.mark.distributed

ARCHITECTURE = {"family": "bart", "width": 16, "encoder_layers": 2, "decoder_layers": 4, "heads": 2, "feed_forward": 24,
                "positions": 64}  # fmt: skip


def write_recipe(folder: Path, **changes: Any) -> Path:
    recipe: dict[str, Any] = {
        "name": "tiny",
        "corpus": {"train": str(folder / "corpus"), "max_target_tokens": 12},
        "teachers": {
            "own": {
                "architecture": ARCHITECTURE,
                "tokenizer": {"kind": "bpe", "vocabulary": 300},
                "train": {},
                "cache": {"keep": "hidden", "shards": 3},
            }
        },
        "labels": {"own": {"shards": 3, "num_beams": 2, "keep_if": {"repeated_ngrams_at_most": 90}}},
        "students": {
            "taught": {"teacher": "own", "decoder_layers": 1, "train_on": {"gold": 0.5, "own": 1}},
            "short": {
                "teacher": "own",
                "decoder_layers": 1,
                "train": {"freeze": ["encoder", "embeddings"]},
                "evaluate": {
                    "metric": "bleu",
                    "search": {"num_beams": [2, 1], "length_penalty": [0.5, 2], "examples": 4},
                },
            },
            "half": {
                "teacher": "own",
                "decoder_layers": [0, 3],
                "encoder_layers": 1,
                "train": {"zero_stage": 3, "freeze": ["encoder"]},
                "objective": {"kl": {"weight": 0.5}, "hidden": {"weight": 1, "supervise": {"decoder": [3, 3]}}},
            },
        },
        "train": {"batch_examples": 8, "steps": 6, "warmup_steps": 2, "save_every_steps": 3, "log_every_steps": 2},
        "evaluate": {"every_steps": 3, "examples": 4, "generation": {"num_beams": 2, "max_new_tokens": 9}},
        "benchmark": {"documents": 2, "rounds": 1, "batch_sizes": [1, 2]},
        "report": {"examples": 3},
    }
    if "teachers" in changes:
        del recipe["labels"], recipe["students"]["taught"]
    if "train" in changes:
        changes["train"] = recipe["train"] | changes["train"]
    path = folder / "tiny.yaml"
    path.write_text(yaml.safe_dump(recipe | changes), encoding="utf-8")
    return path


def launch_really(recipe: Path) -> subprocess.CompletedProcess[str]:
    """As a user does, in a process that imports everything anew."""
    return run_command("launch", "run", str(recipe), "--runs", str(recipe.parent / "runs"), "--processes", "2")


def launch(recipe: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return run_forked("launch", "run", str(recipe), "--runs", str(recipe.parent / "runs"), *arguments)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("chain")
    write_corpus(folder / "corpus")
    result = launch_really(write_recipe(folder))
    assert result.returncode == 0, result.stdout + result.stderr
    return folder


def test_the_run_directory_is_as_promised(finished: Path) -> None:
    run = finished / "runs" / "tiny"
    expected = ["recipe.yaml", "corpus/train.parquet", "corpus/manifest.json", "report/report.md", "logs/graph.json", "first_sentence.json",
                "report/quality_against_speed.png", "report/training_loss.png", "report/validation.png"]  # fmt: skip
    expected += ["labels/own/labels.parquet", "labels/own/manifest.json", "report/labels_own.png"]
    expected += [f"labels/own/shard-0000{shard}-of-00003.jsonl" for shard in range(3)]
    for member in ("teachers/own", "students/short", "students/half", "students/taught"):
        expected += [f"{member}/{name}" for name in (
            "initial/config.json", "checkpoints/step-00000003/manifest.json", "best/model.safetensors",
            "final/model.safetensors", "final/tokenizer.json", "final/generation_config.json", "metrics.jsonl",
            "tensorboard", "evaluation/test/predictions.jsonl", "evaluation/test/scores.json", "benchmark.json")]  # fmt: skip
    assert [path for path in expected if not (run / path).exists()] == []
    expected = [f"shard-0000{shard}-of-00003.{end}" for shard in range(3) for end in ("bin", "json")]
    cache = run / "teachers" / "own" / "cache"
    assert sorted(path.name for path in cache.iterdir()) == ["head.safetensors", *expected]
    assert not list(run.rglob("*.partial*"))
    assert (run / "logs" / "train-student-half.rank1.log").exists(), "one log per job and rank"


def test_models_load_with_plain_transformers(finished: Path) -> None:
    folder = finished / "runs" / "tiny" / "students" / "half" / "best"
    code = f"""
import sys
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer
model, tokenizer = (c.from_pretrained({str(folder)!r}) for c in (AutoModelForSeq2SeqLM, AutoTokenizer))
assert "distill" not in sys.modules
print(tokenizer.batch_decode(model.generate(**tokenizer(["the fox"], return_tensors="pt"))))
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=finished)
    assert result.returncode == 0, result.stderr
    config = read_json(folder / "config.json")
    assert (config["encoder_layers"], config["decoder_layers"]) == (1, 2)
    assert config["distilled_from"] == {
        "run": "tiny",
        "teacher": "own",
        "teacher_model": "from scratch",
        "teacher_trained_in_run": True,
        "layers_of": "own",
        "encoder_layers": [0],
        "decoder_layers": [0, 3],
    }


def lines_of_the_readme(kind: str) -> list[str]:
    """The code blocks of README's section on the student."""
    section = (ROOT / "README.md").read_text(encoding="utf-8").split("## Using the student\n")[1].split("\n## ")[0]
    blocks = re.findall(r"^```(\w*)\n(.*?)^```$", section, re.DOTALL | re.MULTILINE)
    return [text for found, text in blocks if found == kind]


def summaries_of(code: str, finished: Path, folder: Path) -> list[str]:
    """What the code's `summarize` makes of the test documents, in a process that has nothing of ours."""
    rows = [json.loads(line) for line in (finished / "corpus" / "test.jsonl").read_text().splitlines()]
    code = code.replace("runs/NAME/students/STUDENT/best", str(folder)).replace("STUDENT-ct2", f"{folder.name}-ct2")
    code += f"""
import json, sys
documents = {[row["document"] for row in rows]!r}
print(json.dumps([summarize(document) for document in documents]))
assert not {{"distill", "jobs", "tests"}} & set(sys.modules)
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=finished)
    assert result.returncode == 0, result.stderr
    texts: list[str] = json.loads(result.stdout)
    return texts


def reported(finished: Path, member: str) -> list[str]:
    folder = finished / "runs" / "tiny" / member / "evaluation" / "test"
    return [row["summary"] for row in read_jsonl(folder / "predictions.jsonl")]


@pytest.mark.parametrize("member", ["students/short", "students/half", "teachers/own"])
def test_plain_transformers_gives_the_summaries_of_the_report(finished: Path, member: str) -> None:
    """By the lines of README: a student with a search, one with a decoding of its own, a trained teacher."""
    folder = finished / "runs" / "tiny" / member / "best"
    transformers, _ = lines_of_the_readme("python")
    assert summaries_of(transformers, finished, folder) == reported(finished, member)
    decoding = read_json(folder / "generation_config.json")
    used = read_json(folder.parent / "evaluation" / "test" / "scores.json")["generation"]
    assert {key: decoding[key] for key in ("num_beams", "max_new_tokens")} == {
        "num_beams": used.get("num_beams", 1),
        "max_new_tokens": used["max_new_tokens"],
    }
    if member == "students/short":
        assert read_json(folder.parent / "search.json")["best"].items() <= decoding.items()


def test_ctranslate2_gives_the_summaries_of_the_report(finished: Path) -> None:
    folder = finished / "runs" / "tiny" / "students" / "half" / "best"
    [command] = lines_of_the_readme("")
    _, ctranslate2 = lines_of_the_readme("python")
    words = command.replace("runs/NAME/students/STUDENT/best", str(folder)).replace("STUDENT-ct2", "best-ct2").split()
    converter = [str(Path(sys.executable).parent / words[0]), *words[1:]]
    result = subprocess.run(converter, capture_output=True, text=True, cwd=finished)
    assert result.returncode == 0, result.stderr
    assert summaries_of(ctranslate2, finished, folder) == reported(finished, "students/half")


def test_predictions_are_in_corpus_order_and_the_report_shows_them(finished: Path) -> None:
    run = finished / "runs" / "tiny"
    ids = [json.loads(line)["id"] for line in (finished / "corpus" / "test.jsonl").read_text().splitlines()]
    assert [row["id"] for row in read_jsonl(run / "students/short/evaluation/test/predictions.jsonl")] == ids
    report = (run / "report" / "report.md").read_text()
    for part in ("first sentence", "teacher own", "student short", "student half", "| 1-2 |", "## Training", "gold",
                 "1 targets + 0.5 KL (forward, T 2) + 1 hidden states; teacher from its cache of hidden"):  # fmt: skip
        assert part in report
    assert report.count("### r") == 3


def test_the_decoding_that_was_found_is_that_of_the_final_test(finished: Path) -> None:
    student = finished / "runs" / "tiny" / "students" / "short"
    found, scores = read_json(student / "search.json"), read_json(student / "evaluation" / "test" / "scores.json")
    tried = [(point["num_beams"], point["length_penalty"]) for point in found["points"]]
    assert tried == [(1, None), (2, 0.5), (2, 2.0)] and found["metric"] == "bleu" and found["examples"] == 4
    used = {"num_beams": 1, "length_penalty": 1.0} | scores["generation"]
    assert used | found["best"] == used and not (student / "search").exists()
    assert all(point["seconds"] > 0 for point in found["points"])


def test_the_report_shows_what_decides(finished: Path, tmp_path: Path) -> None:
    """BLEU where it decides any model's best weights, else ROUGE; the grid where there was a search."""
    run = Run(load_recipe(finished / "tiny.yaml"), finished / "runs" / "tiny")
    report = (run.report / "report.md").read_text()
    assert "| BLEU | chrF |" in report and "tok:13a" in report and "ROUGE-1 |" not in report.split("## Labels")[0]
    assert report.count("| **student short** |") == 0 and report.count("| student short | **") == 1
    rouge = load_recipe(finished / "tiny.yaml", ["students.short.evaluate.metric=rouge1"])
    write_report(Run(rouge, run.folder), read_split(run.split("test")), tmp_path)
    assert "| ROUGE-1 | ROUGE-2 | ROUGE-L |" in (tmp_path / "report.md").read_text()


def test_all_done_is_nothing_to_do(finished: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in finished.rglob("*") if path.is_file()}
    result = launch(finished / "tiny.yaml")
    assert result.returncode == 0 and "nothing to do" in result.stdout
    assert {path: path.stat().st_mtime_ns for path in finished.rglob("*") if path.is_file()} == before


def test_status_and_dry_run(finished: Path) -> None:
    result = run_forked("launch", "status", str(finished / "runs" / "tiny"))
    assert result.returncode == 0
    assert result.stdout.count("done") >= 12 and "6/6" in result.stdout
    dry = launch(finished / "tiny.yaml", "--dry-run", "--processes", "4", "name=other")
    assert dry.returncode == 0 and not (finished / "runs" / "other").exists()
    for part in (
        "(4 processes in one group)",
        "beams x length penalty: 1, 2 x 0.5, 2 x 2; on 4 validation examples, by bleu",
        "(3 workers, which share the shards out)",
        "jobs.train",
        "a step reads 8 examples, over 4 process",
        "6 steps",
        "then linear; validated every 3 steps",
        "fp32, adamw: about",
        "GB per process",
    ):
        assert part in dry.stdout


def test_stopped_at_any_stage_the_same_command_goes_on(finished: Path, tmp_path: Path) -> None:
    """SIGTERM, SIGKILL and SIGINT to the launcher, each in a later stage; then it runs to its end, with the same weights."""
    write_corpus(tmp_path / "corpus")
    recipe = write_recipe(tmp_path, students={}, labels={})
    text = recipe.read_text().replace(str(tmp_path / "corpus"), str(finished / "corpus"))
    recipe.write_text(text)
    command = [sys.executable, "-m", "launch", "run", str(recipe), "--runs", str(tmp_path / "runs"), "--processes", "2"]
    stops = {"prepare": signal.SIGTERM, "train-teacher-own": signal.SIGKILL, "evaluate-teacher-own": signal.SIGINT}
    for stage, number in stops.items():
        launcher = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
        wait_for_file(tmp_path / "runs" / "tiny" / "logs" / f"{stage}.log", launcher)
        launcher.send_signal(signal.SIGSTOP)  # it cannot end before the second one has looked
        second = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
        refused(second, "is being run by process", "one run has one launcher")
        launcher.send_signal(number)
        launcher.send_signal(signal.SIGCONT)
        out, _ = launcher.communicate(timeout=PATIENCE_SECONDS)
        if number == signal.SIGKILL:
            assert launcher.returncode == -signal.SIGKILL, out
        else:
            assert launcher.returncode == 75 and "run the same command again to continue" in out
    result = launch_really(recipe)
    assert result.returncode == 0, result.stdout + result.stderr
    weights = [folder / "runs/tiny/teachers/own/final/model.safetensors" for folder in (finished, tmp_path)]
    assert weights[0].read_bytes() == weights[1].read_bytes()
    assert not (tmp_path / "runs" / "tiny" / "logs" / "launcher.lock").exists()


def wait_for_file(file: Path, process: "subprocess.Popen[str]") -> None:
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not file.exists():
        assert process.poll() is None and time.monotonic() < deadline, f"{file} has not come"
        time.sleep(0.05)


def test_a_job_leaves_before_its_time_limit(finished: Path, tmp_path: Path) -> None:
    """Here at once: less is left than it needs to leave. In the middle of a training: test_preemption.py."""
    shutil.copytree(finished / "runs", tmp_path / "runs")
    shutil.rmtree(tmp_path / "runs" / "tiny" / "teachers" / "own" / "final")
    arguments = ["--teacher", "own", "--runs", str(tmp_path / "runs"), "--time-limit", "0.01"]
    result = run_forked("jobs.train", str(finished / "tiny.yaml"), *arguments)
    assert result.returncode == 75 and "stopped (the time limit is near)" in result.stderr
    assert "resuming at step 3 of 6" in result.stderr


def test_a_changed_recipe_is_refused(finished: Path) -> None:
    result = launch(finished / "tiny.yaml", "train.learning_rate=1")
    assert result.returncode == 2
    assert "train.learning_rate: 0.0003 when the run began, 1.0 now" in result.stderr


def test_a_new_student_is_all_that_is_run(finished: Path, tmp_path: Path) -> None:
    """Also: started by torchrun, a teacher that is given as a folder, and a teacher trained from a folder."""
    write_corpus(tmp_path / "corpus")
    folder = str(finished / "runs" / "tiny" / "teachers" / "own" / "best")
    teachers = {"given": {"model": folder}, "tuned": {"model": folder, "train": {"steps": 2}}}
    recipe = write_recipe(tmp_path, teachers=teachers, students={"s": {"teacher": "given", "decoder_layers": 2}})
    for job in (["prepare"], ["shrink", "--student", "s"], ["teacher", "--teacher", "tuned"]):
        result = run_forked(f"jobs.{job[0]}", str(recipe), *job[1:], "--runs", str(tmp_path / "runs"))
        assert result.returncode == 0, result.stderr
    torchrun = ["torch.distributed.run", "--nproc-per-node", "2", "--standalone", "-m", "jobs.train"]
    result = run_command(*torchrun, str(recipe), "--teacher", "tuned", "--runs", str(tmp_path / "runs"))
    assert result.returncode == 0, result.stderr
    run = tmp_path / "runs" / "tiny"
    weights = [
        AutoModelForSeq2SeqLM.from_pretrained(run / "teachers" / "tuned" / name) for name in ("initial", "final")
    ]
    assert not weights[0].lm_head.weight.equal(weights[1].lm_head.weight)
    result = run_forked("jobs.report", str(recipe), "--runs", str(tmp_path / "runs"))
    assert result.returncode == 2 and "students/s/benchmark.json" in result.stderr


def test_a_failure_shows_the_end_of_the_log(finished: Path, tmp_path: Path) -> None:
    shutil.copytree(finished / "runs", tmp_path / "runs")
    shutil.rmtree(tmp_path / "runs" / "tiny" / "students" / "half" / "final")
    shutil.rmtree(tmp_path / "runs" / "tiny" / "students" / "half" / "checkpoints")
    (tmp_path / "runs" / "tiny" / "corpus" / "train.parquet").write_bytes(b"torn")
    result = run_forked("launch", "run", str(finished / "tiny.yaml"), "--runs", str(tmp_path / "runs"))
    assert result.returncode not in (0, 2, 75)
    log = tmp_path / "runs" / "tiny" / "logs" / "train-student-half.log"
    assert str(log) in result.stdout and "ArrowInvalid" in result.stdout and log.exists()
    status = run_forked("launch", "status", str(tmp_path / "runs" / "tiny")).stdout
    assert "failed" in status


# ------------------------------------------------------------------------------------------------ bad input


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    return write_corpus(tmp_path / "corpus")


def refused(result: subprocess.CompletedProcess[str], *parts: str) -> None:
    assert result.returncode == 2, result.stdout + result.stderr
    for part in parts:
        assert part in result.stderr.replace("\n", " ")
    assert "Traceback" not in result.stderr


def test_bad_rows_are_refused_by_the_job_and_the_launcher(corpus: Path, tmp_path: Path) -> None:
    with (corpus / "validation.jsonl").open("a") as file:
        file.write("[1]\n")
    message = "validation.jsonl, line 9: list given, expected an object with the corpus's fields"
    recipe = write_recipe(tmp_path)
    refused(run_forked("jobs.prepare", str(recipe), "--runs", str(tmp_path / "runs")), message)
    result = launch(recipe)
    assert result.returncode == 2 and message in result.stdout.replace("\n", " ")
    assert not (tmp_path / "runs" / "tiny" / "corpus").exists()


def test_a_place_without_write_permission(corpus: Path, tmp_path: Path) -> None:
    result = run_forked("launch", "run", str(write_recipe(tmp_path)), "--runs", "/proc/nowhere")
    refused(result, "cannot write to /proc/nowhere/tiny", "choose another place with --runs")


def test_documents_longer_than_the_positions_are_cut_and_counted(corpus: Path, tmp_path: Path) -> None:
    rows = [json.loads(line) for line in (corpus / "test.jsonl").read_text().splitlines()]
    rows[0]["document"] = "fox " * 200
    (corpus / "test.jsonl").write_text("\n".join(map(json.dumps, rows)))
    tokenizer = AutoTokenizer.from_pretrained(_saved_model(tmp_path))
    long = sum(len(tokenizer(row["document"])["input_ids"]) > 64 for row in rows)
    recipe = write_recipe(tmp_path, teachers={"own": {"model": str(tmp_path / "model")}}, students={})
    for job in (["jobs.prepare"], ["jobs.evaluate", "--teacher", "own"]):
        result = run_forked(job[0], str(recipe), *job[1:], "--runs", str(tmp_path / "runs"))
        assert result.returncode == 0, result.stderr
    scores = read_json(tmp_path / "runs" / "tiny" / "teachers" / "own" / "evaluation" / "test" / "scores.json")
    assert scores["truncated_documents"] == long >= 1


def _saved_model(folder: Path) -> Path:
    from tests.distributed.test_training import make_parts

    model, tokenizer, _ = make_parts()
    model.save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    return folder / "model"


RECIPES = sorted((ROOT / "jobs" / "recipes").glob("*.yaml"))
HUB = ("bart-", "mbart-", "pegasus-", "marian-", "t5-")


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_every_recipe_of_the_repository_dry_runs(path: Path, tmp_path: Path) -> None:
    real = {"scitldr": "scitldr", "arxiv-labels": "arxiv_title"}.get(path.stem)
    if real and not (ROOT.parent / "shared" / "data" / real).exists():
        pytest.skip(f"NO REAL CORPUS: ../shared/data/{real} is not there")
    result = run_forked("launch", "run", str(path), "--dry-run", "--runs", str(tmp_path))
    assert result.returncode == 0, result.stderr
    assert "jobs.train" in result.stdout
    assert ("known once the teacher" in result.stdout) == path.stem.startswith(HUB), "those name hub models"


def test_the_demo_teacher_is_small_enough() -> None:
    folder = ROOT / "jobs" / "recipes" / "demo-teacher"
    assert sum(path.stat().st_size for path in folder.iterdir()) <= 16_000_000


def test_every_command_of_the_readme_exists() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    for module in set(re.findall(r"-m(?:odule)? (jobs\.\w+)", text)):
        result = run_forked(module, "--help")
        assert result.returncode == 0, module
        options = set(re.findall(r"--[a-z-]+", result.stdout))
        for line in (line for line in text.splitlines() if f"{module} RECIPE" in line):
            after = line.split(f"{module} RECIPE")[1].split("#")[0]
            assert set(re.findall(r"--[a-z-]+", after)) <= options, line
    for path in re.findall(r"(?:jobs|distill|launch|tests|slurm)/[\w/.-]+\.(?:yaml|py|json|md|sbatch)", text):
        assert (ROOT / path).exists() or path == "slurm/profiles/NAME.yaml", path


def test_jobs_say_what_they_need(corpus: Path, tmp_path: Path) -> None:
    recipe, runs = str(write_recipe(tmp_path)), str(tmp_path / "runs")
    refused(
        run_forked("jobs.train", recipe, "--student", "nobody", "--runs", runs), "expected one of half, short, taught"
    )
    refused(run_forked("jobs.train", recipe, "--student", "short", "--runs", runs), "run jobs.shrink")
    assert run_forked("jobs.train", recipe, "--runs", runs).returncode == 2
    cache = ["jobs.cache", recipe, "--runs", runs]
    refused(run_forked(*cache, "--teacher", "own", "--shard", "3"), "--shard: 3 given, expected 0 to 2")
    refused(run_forked(*cache, "--student", "short"), "student short has no cache that a student reads")
    refused(run_forked(*cache, "--teacher", "own"), "has no corpus; run jobs.prepare first")
    refused(run_forked("launch", "run", recipe, "--on", "moon"), "--on: 'moon' given, expected 'local'")
    refused(run_forked("launch", "status", str(tmp_path)), "is no run")
