"""A cached teacher says what the live one says; a killed shard ends byte for byte as an undisturbed one."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch

from distill.batching import collate
from distill.distillation import Distillation
from distill.distributed import World
from distill.engine import LiveTeacher
from distill.errors import InputError
from distill.losses import IGNORED
from distill.objective import Counts, ScoredStudent, TeacherSource
from distill.recipe import Cache, Objective, Teacher
from distill.shards import content_key
from distill.student import shrink
from distill.teacher_cache import CachedTeacher, CacheWriter, Contents, contents, hash_tokens, shard_order
from distill.tokens import Encoder, Tokens, tokenize
from tests.conftest import STARTS, make_model, make_rows

CPU = torch.device("cpu")
IDENTITY = {"corpus": "c", "tokens": "t", "teacher": "w"}
LAST = Distillation(decoder_pairs=((1, 3),))  # the student's last layer by the teacher's last
BATCH = [7, 2, 11, 5]


def make_tokens(tokenizer: Any, rows: int = 24) -> Tokens:
    return tokenize(Encoder(tokenizer, 40, 12), make_rows(rows))


def make_contents(keep: str = "hidden", shards: int = 2, precision: str = "fp32", k: int = 8) -> Contents:
    return contents(Cache(keep=keep, k=k, shards=shards), [2.0, 1.0], precision, IDENTITY)  # type: ignore[arg-type]


def make_writer(folder: Path, model: Any, tokens: Tokens, made_of: Contents, pad: int) -> CacheWriter:
    return CacheWriter(folder, made_of, model, tokens, pad, batch_tokens=150, device=CPU)


def fill(folder: Path, model: Any, tokens: Tokens, made_of: Contents, pad: int) -> None:
    for shard in range(made_of.shards):
        make_writer(folder, model, tokens, made_of, pad).write(shard)


def read(folder: Path, model: Any, tokens: Tokens, made_of: Contents, temperature: float | None = 2.0) -> CachedTeacher:
    return CachedTeacher(folder, made_of, tokens, model.config.to_dict(), CPU, temperature, LAST)


def score(
    student: Any, teacher: TeacherSource, tokens: Tokens, pad: int, **objective: Any
) -> tuple[float, list[float]]:
    settings = Objective.model_validate({"kl": {"weight": 0.8}} | objective)
    scored = ScoredStudent(student, settings, 0.1, LAST if settings.hidden else Distillation())
    batch = collate(tokens, BATCH, pad, CPU)
    batch["labels"][3] = IGNORED  # as in a micro-batch where nothing counts
    loss, terms = scored(**batch, counts=Counts(30, 100), teacher=teacher)
    return float(loss.detach()), terms.tolist()


@pytest.mark.parametrize("family", sorted(STARTS))
def test_hidden_states_give_the_loss_of_the_live_teacher(family: str, tokenizer: Any, tmp_path: Path) -> None:
    model, tokens, pad = make_model(family, tokenizer, noise=0.15), make_tokens(tokenizer), tokenizer.pad_token_id
    student = shrink(model, [0, 2], [1, 3])
    fill(tmp_path, model, tokens, make_contents(), pad)
    cached = read(tmp_path, model, tokens, make_contents())
    live = LiveTeacher(model, Teacher(model="here"), LAST, World(0, 1, 0, CPU))
    hidden = {"hidden": {"weight": 3.0, "normalize": True}}
    for objective in ({}, hidden):
        loss, terms = score(student, cached, tokens, pad, **objective)
        expected_loss, expected = score(student, live, tokens, pad, **objective)
        assert min(expected) > 1e-3
        assert loss == pytest.approx(expected_loss, rel=1e-6) and terms == pytest.approx(expected, rel=5e-6)


@pytest.mark.parametrize("direction", ["forward", "reverse", "jensen_shannon"])
@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_top_k_of_everything_gives_the_loss_of_the_live_teacher(
    direction: str, temperature: float, tokenizer: Any, tmp_path: Path
) -> None:
    model, tokens, pad = make_model("bart", tokenizer, noise=0.15), make_tokens(tokenizer), tokenizer.pad_token_id
    student = shrink(model, [0, 2], [1, 3])
    live = LiveTeacher(model, Teacher(model="here"), Distillation(), World(0, 1, 0, CPU))
    kl = {"kl": {"weight": 0.8, "direction": direction, "temperature": temperature}}
    _, (_, expected) = score(student, live, tokens, pad, **kl)
    found = {}
    for k in (4, len(tokenizer)):
        made_of = make_contents("top_k", k=k)
        fill(tmp_path / str(k), model, tokens, made_of, pad)
        cached = read(tmp_path / str(k), model, tokens, made_of, temperature)
        _, (_, found[k]) = score(student, cached, tokens, pad, **kl)
    assert found[len(tokenizer)] == pytest.approx(expected, rel=1e-5)
    assert 0 < found[4] < expected


def test_bf16_halves_the_file(tokenizer: Any, tmp_path: Path) -> None:
    model, tokens, pad = make_model("bart", tokenizer), make_tokens(tokenizer), tokenizer.pad_token_id
    fill(tmp_path / "fp32", model, tokens, make_contents(), pad)
    student = shrink(model, [0, 2], [1, 3])
    exact, _ = score(student, read(tmp_path / "fp32", model, tokens, make_contents()), tokens, pad)
    half = make_contents(precision="bf16")
    fill(tmp_path / "bf16", model.bfloat16(), tokens, half, pad)
    sizes = [sum(f.stat().st_size for f in (tmp_path / p).glob("*.bin")) for p in ("fp32", "bf16")]
    assert sizes[0] == 2 * sizes[1]
    student.bfloat16()
    assert score(student, read(tmp_path / "bf16", model, tokens, half), tokens, pad)[0] == pytest.approx(
        exact, rel=1e-2
    )


def test_every_example_is_in_one_shard_and_shards_are_alike(tokenizer: Any) -> None:
    tokens = make_tokens(tokenizer, 200)
    orders = [shard_order(tokens, shard, 7) for shard in range(7)]
    assert sorted(i for order in orders for i in order) == list(range(200))
    work = [sum(len(tokens.source[i]) + len(tokens.target[i]) for i in order) for order in orders]
    assert max(work) < 1.05 * sum(work) / len(work)


@pytest.mark.parametrize("keep", ["hidden", "top_k"])
def test_a_killed_shard_continues_at_its_last_whole_batch(keep: str, tokenizer: Any, tmp_path: Path) -> None:
    model, tokens, pad = make_model("bart", tokenizer), make_tokens(tokenizer), tokenizer.pad_token_id
    made_of = make_contents(keep, shards=1)
    fill(tmp_path / "whole", model, tokens, made_of, pad)
    expected = next((tmp_path / "whole").glob("*.bin")).read_bytes()

    class Killed(BaseException):
        pass

    class Dying(CacheWriter):
        def _rows(self, frozen: Any, batch: list[int]) -> Any:
            asked.append(batch)
            if len(asked) == 4:
                raise Killed
            return super()._rows(frozen, batch)

    asked: list[list[int]] = []
    dying = Dying(**vars(make_writer(tmp_path / "cut", model, tokens, made_of, pad)))
    with pytest.raises(Killed):
        dying.write(0)
    growing = next((tmp_path / "cut").glob("*.partial"))
    with growing.open("ab") as file:
        file.write(b"torn")  # a batch that was half written
    assert not list((tmp_path / "cut").glob("*.bin"))
    dying.write(0)
    assert next((tmp_path / "cut").glob("*.bin")).read_bytes() == expected
    assert asked[4] == asked[3] and len(asked) == 1 + len({tuple(batch) for batch in asked}), "no batch twice"
    assert not list((tmp_path / "cut").glob("*.partial"))


def test_more_shards_than_examples(tokenizer: Any, tmp_path: Path) -> None:
    model, tokens, pad = make_model("bart", tokenizer), make_tokens(tokenizer, 12), tokenizer.pad_token_id
    made_of = make_contents(shards=14)
    fill(tmp_path, model, tokens, made_of, pad)
    student = shrink(model, [0, 2], [1, 3])
    assert score(student, read(tmp_path, model, tokens, made_of), tokens, pad)[0] > 0


def test_shards_of_different_temperatures_are_refused(tokenizer: Any, tmp_path: Path) -> None:
    """A student with another temperature was added while the shards were made."""
    model, tokens, pad = make_model("bart", tokenizer), make_tokens(tokenizer), tokenizer.pad_token_id
    made_of = make_contents("top_k")
    make_writer(tmp_path, model, tokens, made_of, pad).write(0)
    later = dataclasses.replace(made_of, temperatures=[1.0, 2.0, 4.0])
    make_writer(tmp_path, model, tokens, later, pad).write(1)
    with pytest.raises(
        InputError, match=r"made for the temperatures \[1.0, 2.0, 4.0\], the first shard for \[1.0, 2.0\]"
    ):
        read(tmp_path, model, tokens, made_of)


def test_rows_of_other_contents_are_never_continued(tokenizer: Any, tmp_path: Path) -> None:
    model, tokens, pad = make_model("bart", tokenizer), make_tokens(tokenizer), tokenizer.pad_token_id
    ours, other = make_contents(shards=1), dataclasses.replace(make_contents(shards=1), teacher="another")
    growing = [content_key([dataclasses.asdict(made_of), 150]) for made_of in (ours, other)]
    assert growing[0] != growing[1]
    tmp_path.joinpath(f"shard-00000-of-00001.bin.{growing[1]}.host-1-a.partial").write_bytes(bytes(64 * 50))
    make_writer(tmp_path, model, tokens, ours, pad).write(0)
    fill(tmp_path / "alone", model, tokens, ours, pad)
    files = [next(folder.glob("*.bin")).read_bytes() for folder in (tmp_path, tmp_path / "alone")]
    assert files[0] == files[1] and not list(tmp_path.glob("*.partial"))


def test_a_missing_projection_is_named(tokenizer: Any, tmp_path: Path) -> None:
    model, tokens, pad = make_model("bart", tokenizer), make_tokens(tokenizer), tokenizer.pad_token_id
    fill(tmp_path, model, tokens, make_contents(), pad)
    (tmp_path / "head.safetensors").unlink()
    with pytest.raises(InputError, match="has no head.safetensors; delete"):
        read(tmp_path, model, tokens, make_contents())


def test_what_cannot_be_right_is_refused(tokenizer: Any, tmp_path: Path) -> None:
    model, tokens, pad = make_model("bart", tokenizer), make_tokens(tokenizer), tokenizer.pad_token_id
    made_of = make_contents("top_k")
    make_writer(tmp_path, model, tokens, made_of, pad).write(0)
    with pytest.raises(InputError, match="no shard 1 of 2; run jobs.cache"):
        read(tmp_path, model, tokens, made_of)
    make_writer(tmp_path, model, tokens, made_of, pad).write(1)
    read(tmp_path, model, tokens, made_of)
    for name, message in {
        "corpus": "the training documents have changed",
        "tokens": "another tokenizer",
        "teacher": "other weights",
        "precision": "precision was fp32, is other",
    }.items():
        with pytest.raises(InputError, match=message):
            read(tmp_path, model, tokens, dataclasses.replace(made_of, **{name: "other"}))
    with pytest.raises(InputError, match=r"temperatures \[1.0, 2.0\], not for 4.0"):
        read(tmp_path, model, tokens, made_of, 4.0)
    shard = next(tmp_path.glob("shard-00001*.bin"))
    shard.write_bytes(shard.read_bytes()[:-1])
    with pytest.raises(InputError, match="damaged"):
        read(tmp_path, model, tokens, made_of)


def test_the_hash_sees_where_examples_begin() -> None:
    one = Tokens([[1, 2], [3]], [[4], [5]], {})
    other = Tokens([[1], [2, 3]], [[4], [5]], {})
    assert hash_tokens(one) != hash_tokens(other) and hash_tokens(one) == hash_tokens(dataclasses.replace(one))
