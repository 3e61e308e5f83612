"""What `launch run` shows while it works, on a terminal and in a file; what it knows of the time; what logs leave out."""

import io
import logging
import os
import time
import warnings
from pathlib import Path

import pytest
from rich.console import Console

from distill.compiling import COMMUNICATION, SUSPICIOUS_SECONDS, compilation, is_compiled
from distill.files import append_jsonl, write_json
from distill.run import SPLITS, Member, Run
from distill.stages import Stage, stages
from jobs.quiet import NO_ACCELERATOR, silence_noise
from launch.doctor.doing import WORDS, Doing, what_the_slowest_does
from launch.estimate import remaining, usual_seconds
from launch.results import _search, result
from launch.screen import Screen
from launch.state import EXIT_STOPPED, GraphState
from launch.words import duration
from tests.unit.test_run import make_run


@pytest.fixture(autouse=True)
def nothing_compiles(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Other processes of this machine may compile at this moment."""
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path / "none"))


@pytest.fixture
def run(tmp_path: Path) -> Run:
    run = make_run(tmp_path, train={"steps": 10}, evaluate={"metric": "rouge1"})
    run.logs.mkdir(parents=True)
    return run


def named(run: Run, name: str) -> Stage:
    return next(stage for stage in stages(run) if stage.name == name)


def finish_prepare(run: Run) -> None:
    split = {"examples": 1200, "dropped": {"empty summary": 1}}
    run.corpus.mkdir(parents=True)
    write_json(run.corpus / "manifest.json", {"splits": dict.fromkeys(SPLITS, split)})
    write_json(run.corpus_warnings, ["21 of 300 documents of test are nearly the same as one in train."])


def finish_training(run: Run) -> None:
    member = run.member("students", "s")
    for folder in (member.best, member.final):
        folder.mkdir(parents=True)
    for step, score in ((0, 30.0), (5, 25.5), (10, 24.0)):  # the untrained model does not count
        append_jsonl(member.metrics, {"step": step, "rouge1": score})


def finish_evaluation(run: Run, baseline: float | None = None) -> None:
    folder = run.member("students", "s").evaluation("test")
    folder.mkdir(parents=True)
    scores = {name: {"mean": value} for name, value in (("rouge1", 24.8), ("rouge2", 8.2), ("rougeL", 22.0))}
    write_json(folder / "scores.json", scores)
    if baseline is not None:
        write_json(run.first_sentence, {"settings": {}, "scores": {"rouge1": {"mean": baseline}}})


def shown(run: Run, is_terminal: bool) -> str:
    """A run that prepares, trains, and is stopped while it evaluates."""
    console = Console(file=io.StringIO(), force_terminal=is_terminal, width=80, height=24)
    with Screen(run, stages(run), GraphState(run.logs), console) as screen:
        for name, finish, code in (
            ("prepare", finish_prepare, 0),
            ("train-student-s", finish_training, 0),
            ("evaluate-student-s", lambda _: None, EXIT_STOPPED),
        ):
            screen.begin(named(run, name))
            finish(run)
            screen.update(named(run, name))
            screen.end(named(run, name), code, "stopped" if code else "done")
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_a_file_gets_plain_lines(run: Run) -> None:
    text = shown(run, is_terminal=False)
    assert "\x1b" not in text and "\r" not in text
    lines = text.splitlines()
    assert [line.split(" at ")[0].split(" after ")[0] for line in lines if line.startswith("[")] == [
        "[1/7] prepare: begins",
        "[1/7] prepare: done",
        "[4/7] train-student-s: begins",
        "[4/7] train-student-s: done",
        "[5/7] evaluate-student-s: begins",
        "[5/7] evaluate-student-s: stopped",
    ]
    assert lines[1].endswith(": 1,200 train, 1,200 validation, 1,200 test examples; 3 dropped")
    assert lines[2] == "    warning: 21 of 300 documents of test are nearly the same as one in train."
    assert lines[4].endswith("validation ROUGE-1 25.50 at step 5 of 10")


def test_a_terminal_gets_the_same_results_and_what_runs(run: Run) -> None:
    text = shown(run, is_terminal=True)
    assert "validation ROUGE-1 25.50 at step 5 of 10" in text and "warning:" in text
    assert "step 0/10" in text and "run: 1 of 7 stages" in text
    assert "begins at" not in text


def test_a_heartbeat_comes_less_and_less_often(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [1000.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    console = Console(file=io.StringIO(), width=80)
    with Screen(run, stages(run), GraphState(run.logs), console) as screen:
        screen.begin(named(run, "prepare"))
        for _ in range(1200):
            now[0] += 1
            screen.update(named(run, "prepare"))
    assert isinstance(console.file, io.StringIO)
    beats = [line for line in console.file.getvalue().splitlines() if "so far" in line]
    assert [line.split(": ")[1] for line in beats] == [
        "60 s so far",
        "2 min so far",
        "4 min so far",
        "8 min so far",
        "16 min so far",
    ]


def test_an_evaluation_stands_beside_the_first_sentence(run: Run) -> None:
    stage = named(run, "evaluate-student-s")
    assert result(run, stage) == ""
    finish_evaluation(run)
    assert result(run, stage) == "ROUGE-1 24.80, ROUGE-2 8.20, ROUGE-L 22.00"
    write_json(run.first_sentence, {"settings": {}, "scores": {"rouge1": {"mean": 32.7}}})
    assert result(run, stage).endswith("(first sentence: ROUGE-1 32.70)")


# ------------------------------------------------------------------------------------------------ time left


def test_the_time_left_is_that_of_finished_stages_of_the_same_kind(tmp_path: Path) -> None:
    run = make_run(tmp_path, students={name: {"teacher": "t"} for name in "abc"})
    run.logs.mkdir(parents=True)
    state = GraphState(run.logs)
    graph = stages(run)
    running = named(run, "shrink-student-a")
    left = remaining(graph, state, running)
    assert left.text() == "" and "train" in left.not_counted
    state.stages["shrink-student-a"] = {"state": "done", "started": 100.0, "ended": 130.0}
    state.stages["evaluate-teacher-t"] = {"state": "done", "started": 100.0, "ended": 200.0}
    assert usual_seconds(graph, state, named(run, "shrink-student-b")) == 30.0
    assert usual_seconds(graph, state, named(run, "evaluate-student-b")) == 100.0, "as long as a teacher's"
    state.stages["evaluate-student-a"] = {"state": "done", "started": 100.0, "ended": 160.0}
    assert usual_seconds(graph, state, named(run, "evaluate-student-b")) == 60.0, "now a student's is known"
    metrics = run.member("students", "a").metrics
    metrics.parent.mkdir(parents=True)
    append_jsonl(metrics, {"step": 9, "training_minutes": 2.0})
    state.stages["train-student-a"] = {"state": "done", "started": 100.0, "ended": 101.0}  # of its last attempt only
    assert usual_seconds(graph, state, named(run, "train-student-b")) == 120.0
    left = remaining(graph, state, running)
    assert left.not_counted == ("prepare", "benchmark", "report")
    assert left.text().startswith("at least ") and left.text().endswith(" left (+ prepare, benchmark, report)")
    assert left.plus("shrink", 60.0).seconds == left.seconds + 60


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.4, "0 s"), (119, "119 s"), (150, "2 min"), (3599, "1 h"), (12000, "3 h 20 min"), (190000, "2 d 4 h")],
)
def test_durations(seconds: float, text: str) -> None:
    assert duration(seconds) == text


# ------------------------------------------------------------------------------------------------ compiling


def test_a_compilation_is_seen_by_its_lock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path))
    folder = tmp_path / COMMUNICATION
    folder.mkdir()
    assert compilation() is None and not is_compiled(COMMUNICATION)
    lock = folder / "lock"
    lock.touch()
    assert compilation() is None, "taken for a moment at every start"
    os.utime(lock, (time.time() - 45, time.time() - 45))
    found = compilation()
    assert (
        found is not None and found.text() == "compiling DeepSpeed's communication library, once (30 s to 5 min): 45 s"
    )
    old = time.time() - SUSPICIOUS_SECONDS - 60
    os.utime(lock, (old, old))
    found = compilation()
    assert found is not None and f"delete {lock}" in found.text()
    lock.unlink()
    (folder / f"{COMMUNICATION}.so").touch()
    assert compilation() is None and is_compiled(COMMUNICATION)


def test_a_running_compilation_is_told(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path / "extensions"))
    lock = tmp_path / "extensions" / COMMUNICATION / "lock"
    lock.parent.mkdir(parents=True)
    lock.touch()
    os.utime(lock, (time.time() - 9, time.time() - 9))
    assert shown(run, is_terminal=False).count("train-student-s: compiling DeepSpeed's communication library") == 1


# ------------------------------------------------------------------------------------------------ logs


def test_logs_leave_out_this_noise_and_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_DISABLE_PROGRESS_BARS", "0")  # what a user has set stays
    logger = logging.getLogger("DeepSpeed")
    before = list(logger.filters)
    collective = "`torch.distributed.all_gather_into_tensor` is deprecated. Please use `torch.distributed.all_gather_single` instead."
    try:
        with warnings.catch_warnings(record=True) as seen:
            warnings.simplefilter("always")
            silence_noise()
            for message, category, module in (
                (collective, FutureWarning, "torch.distributed.c10d_logger"),
                (collective, FutureWarning, "distill.engine"),
                (collective, UserWarning, "torch.distributed.c10d_logger"),
                ("`torch.x` is deprecated.", FutureWarning, "torch.distributed.c10d_logger"),
            ):
                warnings.warn_explicit(message, category, f"{module}.py", 1, module=module)
        assert len(seen) == 3
        assert os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] == "0"
        passed = [m for m in (NO_ACCELERATOR, "out of memory") if logger.filter(record_of(m))]
        assert passed == ([NO_ACCELERATOR] if Path("/dev/nvidia0").exists() else []) + ["out of memory"]
    finally:
        logger.filters[:] = before


def record_of(message: str) -> logging.LogRecord:
    return logging.LogRecord("DeepSpeed", logging.WARNING, "x", 1, message, None, None)


# ------------------------------------------------------------------------------------------------ doctor


def test_the_doctor_says_what_its_slowest_process_does() -> None:
    assert what_the_slowest_does([{"at": "disk"}], 2) == "starts 2 process(es)"
    assert what_the_slowest_does([{"at": "disk"}, {"at": "all_reduce"}], 2) == WORDS["all_reduce"]
    console = Console(file=io.StringIO(), width=80)
    with Doing(console) as doing:
        for text in ("a", "a", "b"):
            doing.say(text)
    assert isinstance(console.file, io.StringIO)
    assert console.file.getvalue() == "a\nb\n"


@pytest.mark.parametrize(
    ("best", "expected"),
    [({"num_beams": 1}, "1 beams"), ({"num_beams": 4, "length_penalty": 0.5}, "4 beams, length penalty 0.5")],
)
def test_a_search_tells_its_best_also_of_one_beam(tmp_path: Path, best: dict[str, float], expected: str) -> None:
    member = Member("students", "s", tmp_path)
    write_json(member.search, {"best": best})
    assert _search(member) == expected


def test_what_cannot_be_shown_ends_no_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    run = make_run(tmp_path, train={"steps": 10})
    stage = stages(run)[0]
    out = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    screen = Screen(run, [stage], GraphState(tmp_path), Console(file=out, force_terminal=True, width=60))

    def torn(*_: object) -> None:
        raise KeyError("length_penalty")

    monkeypatch.setattr("launch.screen.result", torn)
    with screen:
        screen.begin(stage)
        monkeypatch.setattr("launch.screen.progress_of", torn)
        screen._looked = 0.0
        screen.update(stage)
        screen.end(stage, 0, "done")
    assert "cannot show how far the run is: KeyError: 'length_penalty'" in caplog.text
    out.flush()
    assert b"done" in out.buffer.getvalue()  # type: ignore[attr-defined]
