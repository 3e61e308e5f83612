"""A student put beside its teacher from a run: what is shared, and what is refused."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from distill.changes import open_run
from distill.data import encoder_of, load_gold_tokens
from distill.distributed import World
from distill.engine import LiveTeacher
from distill.errors import InputError
from distill.export import save_model
from distill.objective import ScoredStudent, TeacherSource
from distill.pretrained import load_model, load_tokenizer, train_tokenizer
from distill.recipe_file import load_recipe
from distill.run import Member, Run
from distill.scoring import cache_contents, scored_student
from distill.sections import Tokenizer
from distill.teacher_cache import CacheWriter
from jobs.prepare import prepare
from jobs.shrink import shrink_teacher
from jobs.start import Arguments
from tests.conftest import ROOT, make_model, make_rows, write_corpus

CPU = torch.device("cpu")


def make_run(folder: Path, tokenizer: Any, teacher: dict[str, Any], **student: Any) -> tuple[Run, Member]:
    """Prepared and shrunk."""
    write_corpus(folder / "corpus", train=12)
    if not (folder / "teacher").exists():
        save_model(make_model("bart", tokenizer, noise=0.1), tokenizer, folder / "teacher")
    recipe = {
        "name": "r",
        "corpus": {"train": str(folder / "corpus"), "max_target_tokens": 12},
        "teachers": {"t": {"model": str(folder / "teacher")} | teacher},
        "students": {"s": {"teacher": "t", "decoder_layers": 2, "objective": {"kl": {"weight": 1}}} | student},
        "train": {"steps": 1, "freeze": ["encoder"]},
    }
    (folder / "r.yaml").write_text(yaml.safe_dump(recipe))
    run = open_run(load_recipe(folder / "r.yaml"), folder / "runs")
    member = run.member("students", "s")
    prepare(Arguments(run, None, "test", None))
    shrink_teacher(Arguments(run, member, "test", None))
    return run, member


def put_together(run: Run, member: Member) -> tuple[ScoredStudent, TeacherSource | None]:
    model, tokenizer = load_model(member.initial), load_tokenizer(member.initial)
    tokens = load_gold_tokens(run, encoder_of(run, run.recipe.teachers["t"], tokenizer, model.config.to_dict()))
    return scored_student(run, member, model, tokenizer, tokens, World(0, 1, 0, CPU))


def alter(folder: Path, part: str) -> None:
    """Change one weight of a saved model."""
    model = load_model(folder)
    with torch.no_grad():
        dict(model.named_parameters())[part][0] += 1
    save_model(model, load_tokenizer(folder), folder)


ENCODER_WEIGHT = "model.encoder.layers.1.fc1.weight"


def test_the_teachers_own_frozen_encoder_is_shared(tokenizer: Any, tmp_path: Path) -> None:
    scored, teacher = put_together(*make_run(tmp_path, tokenizer, {}))
    assert scored.pairs.shares_encoder and isinstance(teacher, LiveTeacher)


def test_an_encoder_with_other_weights_is_never_shared(tokenizer: Any, tmp_path: Path) -> None:
    run, member = make_run(tmp_path, tokenizer, {})
    alter(member.initial, ENCODER_WEIGHT)
    scored, _ = put_together(run, member)
    assert not scored.pairs.shares_encoder


def test_asking_for_it_is_refused(tokenizer: Any, tmp_path: Path) -> None:
    asked = {"kl": {"weight": 1}, "share_encoder": True}
    run, member = make_run(tmp_path, tokenizer, {}, objective=asked)
    assert put_together(run, member)[0].pairs.shares_encoder
    alter(member.initial, ENCODER_WEIGHT)
    with pytest.raises(InputError, match="share_encoder: true given, but the student's encoder has other weights"):
        put_together(run, member)


def test_a_student_without_an_objective_has_no_teacher(tokenizer: Any, tmp_path: Path) -> None:
    scored, teacher = put_together(*make_run(tmp_path, tokenizer, {}, objective={}))
    assert teacher is None and scored.terms == ["cross_entropy"]


def test_another_model_begins_in_the_teachers_place(tokenizer: Any, tmp_path: Path) -> None:
    small = make_model("bart", tokenizer, encoder=2, decoder=2, d_model=8)
    save_model(small, tokenizer, tmp_path / "small")
    objective = {"hidden": {"weight": 1, "supervise": "spread"}, "kl": {"weight": 1}}
    run, member = make_run(
        tmp_path, tokenizer, {}, model=str(tmp_path / "small"), objective=objective, train={"freeze": []}
    )
    scored, _ = put_together(run, member)
    assert scored.student.config.d_model == 8 and scored.decoder_projections is not None
    assert [p.weight.shape for p in scored.decoder_projections] == [(16, 8), (16, 8)]
    assert scored.pairs.decoder_pairs == ((0, 1), (1, 3)) and not scored.pairs.shares_encoder


def test_documents_that_only_the_student_could_read_are_refused(tokenizer: Any, tmp_path: Path) -> None:
    longer = make_model("bart", tokenizer, max_position_embeddings=80)
    save_model(longer, tokenizer, tmp_path / "longer")
    with pytest.raises(InputError, match="reads up to 80 tokens and its teacher t up to 64.* set it to at most 64"):
        make_run(tmp_path, tokenizer, {}, model=str(tmp_path / "longer"), train={"freeze": []})
    assert not (tmp_path / "runs" / "r" / "corpus").exists()


def test_another_tokenizer_is_refused_before_any_work(tokenizer: Any, tmp_path: Path) -> None:
    texts = (row["summary"] + " zebra quagga okapi" for row in make_rows(100))
    other = train_tokenizer(Tokenizer(kind="bpe", vocabulary=320), "bart", texts)
    assert len(other) == len(tokenizer)
    save_model(make_model("bart", other), other, tmp_path / "other")
    with pytest.raises(InputError, match="student s and teacher t have different tokenizers"):
        make_run(tmp_path, tokenizer, {}, model=str(tmp_path / "other"), train={"freeze": []})
    assert not (tmp_path / "runs" / "r" / "corpus").exists()


def test_a_cache_of_other_documents_or_weights_is_refused(tokenizer: Any, tmp_path: Path) -> None:
    run, member = make_run(tmp_path, tokenizer, {"cache": "hidden"})
    with pytest.raises(InputError, match=r"no shard 0 of 1; run jobs.cache --teacher NAME --shard 0"):
        put_together(run, member)
    teacher = run.member("teachers", "t")
    model = load_model(tmp_path / "teacher")
    tokens = load_gold_tokens(run, encoder_of(run, run.recipe.teachers["t"], tokenizer, model.config.to_dict()))
    CacheWriter(teacher.cache, cache_contents(run, "t", tokens), model, tokens, tokenizer.pad_token_id, 100, CPU).write(
        0
    )
    put_together(run, member)
    alter(tmp_path / "teacher", "model.decoder.layers.0.fc1.weight")
    with pytest.raises(InputError, match="the teacher has other weights than when it was made"):
        put_together(run, member)
    save_model(model, tokenizer, tmp_path / "teacher")
    put_together(run, member)
    shutil.rmtree(run.corpus)
    run.corpus_record.unlink()  # else prepare refuses another corpus
    rows = [json.dumps(row) for row in make_rows(13, seed=9)]
    (tmp_path / "corpus" / "train.jsonl").write_text("\n".join(rows))
    prepare(Arguments(run, None, "test", None))
    with pytest.raises(InputError, match="documents have changed.*delete .*cache and run jobs.cache again"):
        put_together(run, member)


def test_a_hub_model_is_known_by_its_revision(tokenizer: Any, tmp_path: Path) -> None:
    """Read from a local cache as the hub's library lays it out."""
    revision = "0123456789abcdef0123456789abcdef01234567"
    repository = tmp_path / "models--some--teacher"
    save_model(make_model("bart", tokenizer), tokenizer, repository / "snapshots" / revision)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(revision)
    environment = os.environ | {"HF_HUB_CACHE": str(tmp_path), "HF_HUB_OFFLINE": "1"}
    code = "from distill.pretrained import fingerprint; print(fingerprint('some/teacher'))"
    result = subprocess.run([sys.executable, "-c", code], env=environment, cwd=ROOT, capture_output=True, text=True)
    assert result.stdout.strip() == f"some/teacher@{revision}", result.stderr
