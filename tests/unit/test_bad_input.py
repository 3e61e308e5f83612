"""The table of bad input: what is done to a good recipe, corpus, model or machine, what is said of it, the exit code.

Every row runs a command that users type (in a forked process), and comes before anything is computed: it is refused by
`launch run --dry-run`, or, where a file must be read or a model loaded, by `jobs.prepare`. Nothing half-written stays.
"""

import ctypes
import functools
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file
from transformers import AutoModelForSeq2SeqLM, BartForCausalLM, T5EncoderModel

from distill.corpus import read_split
from distill.files import read_json, write_json
from distill.tokens import Encoder
from tests.conftest import PATIENCE_SECONDS, ROOT, make_rows, write_corpus
from tests.forked import run_forked
from tests.tiny import KINDS, save_tiny

RECIPE: dict[str, Any] = {
    "name": "bad",
    "corpus": {"train": "corpus", "max_target_tokens": 12},
    "teachers": {"t": {"model": "./model"}},
    "students": {"s": {"teacher": "t", "decoder_layers": 2}},
    "train": {"steps": 4},
}
SCRATCH = "{family: bart, width: 16, encoder_layers: 2, decoder_layers: 4, heads: 2, feed_forward: 24, positions: 64}"


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The folder of a tiny teacher by the name of its kind, made once."""
    return functools.cache(lambda kind: save_tiny(tmp_path_factory.mktemp("models") / kind, kind))


@pytest.fixture
def place(tmp_path: Path, models: Callable[[str], Path]) -> Path:
    """A folder with a good recipe, corpus and model."""
    write_corpus(tmp_path / "corpus")
    shutil.copytree(models("BART"), tmp_path / "model")
    (tmp_path / "r.yaml").write_text(yaml.safe_dump(RECIPE), encoding="utf-8")
    return tmp_path


def dry_run(place: Path, *overrides: str, **how: Any) -> subprocess.CompletedProcess[str]:
    return run_forked("launch", "run", "r.yaml", *overrides, "--dry-run", cwd=place, **how)


def prepare(place: Path, *overrides: str, **how: Any) -> subprocess.CompletedProcess[str]:
    return run_forked("jobs.prepare", "r.yaml", *overrides, cwd=place, **how)


def refused(result: subprocess.CompletedProcess[str], place: Path, *said: str, code: int = 2) -> None:
    assert result.returncode == code, result.stdout + result.stderr
    for part in said:
        assert part in " ".join(result.stderr.split()), result.stderr
    assert "Traceback" not in result.stderr, result.stderr
    left = [
        path for path in (place / "runs").rglob("*") if ".partial" in path.name or path.name in ("corpus", "tokens")
    ]
    assert left == []


def test_what_is_good_is_not_refused(place: Path) -> None:
    assert dry_run(place).returncode == 0
    result = prepare(place)
    assert result.returncode == 0 and (place / "runs" / "bad" / "tokens").exists(), result.stderr


# ------------------------------------------------------------------------------------------------ recipes

FILES: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "r.yaml holds NoneType, expected a mapping with the keys name, corpus, teachers"),
    "a list": (b"- name: x", "holds list, expected a mapping"),
    "tabs": (
        b"name: x\n\tcorpus: y",
        "r.yaml is not valid YAML: line 2, column 1: while scanning for the next token found character '\\t' that cannot "
        "start any token. Mend the file. Indent with spaces: YAML allows no tabs",
    ),
    "a picture": (b"\x89PNG\r\n\x1a\n\x00", "not valid YAML: 'utf-8' codec can't decode byte 0x89"),
    "latin-1": ("name: café".encode("latin1"), "codec can't decode byte 0xe9 in position 9"),
    "UTF-16": ("name: x".encode("utf16"), "codec can't decode byte 0xff"),
    "a NUL": (b"name: x\x00", "special characters are not allowed"),
    "two documents": (b"name: x\n---\nname: y", "expected a single document"),
    "the same key twice": (b"train: {steps: 1, steps: 2}", "the key 'steps' stands twice"),
    "a key that is a list": (b"[a]: 1", "found unhashable key"),
    "aliases of aliases": (
        b"a: &a [1,1,1,1,1,1,1,1,1,1]\n"
        + b"".join(b"%c: &%c [%s]\n" % (c, c, b",".join([b"*%c" % (c - 1)] * 10)) for c in b"bcdefgh")
        + b"name: *h",
        "its aliases (*name) make it more than 100000 values",
    ),
    "a block that holds itself": (b"teachers: &t {t: *t}", "its aliases (*name) make it more than 100000 values"),
    "code": (b"name: !!python/object/apply:os.getcwd []", "could not determine a constructor for the tag"),
    "a date that is none": (b"name: 2020-13-45", "r.yaml is not valid YAML: month must be in 1..12"),
    "a number of 5000 digits": (b"seed: " + b"9" * 5000, "not valid YAML: Exceeds the limit"),
    "endless nesting": (b"a: " + b"[" * 1500, "not valid YAML: maximum recursion depth exceeded"),
    "a lone surrogate": (b'name: "x\\ud800"', "name: 'x\\ud800' given"),
}  # fmt: skip


@pytest.mark.parametrize("name", FILES)
def test_a_file_that_is_no_recipe(name: str, place: Path) -> None:
    content, said = FILES[name]
    (place / "r.yaml").write_bytes(content)
    refused(dry_run(place), place, said)
    assert not (place / "runs").exists()


OVERRIDES: dict[str, str] = {
    "trian={}": "trian: unknown key; did you mean 'train'?",
    "train.stpes=3": "train.stpes: unknown key; did you mean 'steps'?",
    "learning_rate=3": "learning_rate: unknown key; did you mean 'train.learning_rate'?",
    "steps": "'steps' given, expected key=value",
    "name.x=3": "name holds a value, not a block of keys",
    "train.steps=[1": "'[1' is not a YAML value",
    "seed=2020-13-45": "'2020-13-45' is not a YAML value",
    "train.learning_rate=fast": "train.learning_rate: 'fast' given; input should be a valid number",
    "train.learning_rate=.nan": "nan given; input should be a finite number",
    "train.learning_rate=-1": "-1 given; input should be greater than 0",
    "train.learning_rate=true": "True given; a number is expected, not true or false",
    "train.warmup_steps=.inf": "inf given; input should be a finite number",
    "train.warmup_steps=true": "train.warmup_steps: True given; a number is expected",
    "train.dropout=false": "train.dropout: False given; a number is expected",
    "train.zero_stage=true": "train.zero_stage: True given; a number is expected",
    "seed=true": "seed: True given; a number is expected",
    "seed=99999999999": "input should be less than 2147483648",
    "train.steps=1000000000000000000000000": "train.steps: 1000000000000000000000000 given; input should be less than",
    "train.steps=1.5": "got a number with a fractional part",
    "train.epochs=2": "train: give one of steps and epochs, and null for the other",
    "train={}": "train: give one of steps and epochs",
    "train=5": "train: 5 given; expected a block with the keys batch_examples",
    "train.precision=fp16": "use bf16 (on GPUs that have it) or fp32",
    "train.optimizer=adafactor": "adafactor needs zero_stage 0",
    "evaluate.search.num_beams=[0]": "evaluate.search.num_beams.0: 0 given; input should be greater than 0",
    "evaluate.generation.length_penalty=.nan": "nan given; input should be a finite number",
    "labels.l={file: nowhere.jsonl}": "labels.l.file: 'nowhere.jsonl' given, but there is no such file",
    "labels.l={file: r.yaml}": "labels.l.file: 'r.yaml' given, expected",
    "labels.l={file: corpus/test.jsonl, shards: 2}": "labels.l: shards: says how a teacher labels",
    "labels.l={file: a, keep_if: {finished: true}}": "keep_if.finished: only the teacher that made a label knows this",
    "labels.l={run: runs/nothing}": "labels.l.run: 'runs/nothing' given, but there is no runs/nothing/recipe.yaml",
    "teachers.t={run: runs/nothing}": "teachers.t.run: 'runs/nothing' given, but there is no runs/nothing/recipe.yaml",
    "teachers.t.name=u": "teachers.t: name is the name of a teacher in another run; give run, or remove it",
    "--until=train-student-x": "--until: 'train-student-x' given, expected a stage (prepare, ",
    "--redo=nobody": "--redo: 'nobody' given, expected a name of the recipe (t, s) or a stage (",
    "labels.l={}": "labels.l: 'l' is not among the teachers; set labels.l.teacher to one of t",
    "labels.t.teacher=nobody": "labels.t.teacher: 'nobody' is not among the teachers; expected one of t",
    "students.s.teacher=nobody": "students.s.teacher: 'nobody' is not among the teachers; expected one of t",
    "students.s.train_on=[nothing]": "'nothing' is not among gold and the labels; expected one of gold",
    "students.s.decoder_layers=0": "decoder_layers: 0 given; input should be greater than 0",
    "students.s.decoder_layers=4": "4 layers asked for, but the teacher has 3. Expected 1 to 3; choose a smaller student",
    "students.s.encoder_layers=[0, 3]": "layers [3] are out of range; the teacher's layers are 0 to 2. Change the list",
    "students.s.decoder_layers=[1, 1]": "[1, 1] given, expected at least one layer, in rising order, each once",
    "students.s.decoder_layers=[true, 2]": "True given; a number is expected",
    "students={../x: {teacher: t}}": "'../x' given; expected letters (a to z), digits",
    "students.s=null": "students.s: None given; expected a block with the keys teacher, model",
    "name=../x": "name: '../x' given; expected letters (a to z), digits",
    "name=a/b": "name: 'a/b' given; expected letters (a to z), digits",
    "teachers={}": "teachers: dictionary should have at least 1 item",
    "teachers.t.prefix=5": "teachers.t.prefix: 5 given; input should be a valid string",
    "teachers.t.languages.source=en": "teachers.t.languages.target: missing, expected a value",
    f"teachers.t={{architecture: {SCRATCH}, tokenizer: {{kind: bpe, vocabulary: 300}}, train: {{}}, "
    "languages: {source: en, target: ro}}": "one from scratch knows none: remove them",
    "teachers.t.model=./nowhere": "teachers.t.model: nowhere is no folder in /",
    "corpus=null": "corpus: None given; expected a block with the keys train",
    "corpus.train=nowhere.jsonl": "'nowhere.jsonl' given, but there is no such file or folder",
    "corpus.train=r.yaml": "expected a file that ends in .jsonl",
    "corpus.train=": "corpus.train: None given; input should be a valid string",
    "corpus.max_source_tokens=65": "65 given, but teacher t has 64 positions. Expected at most 64; lower it",
    "corpus.train=[]": "corpus.train: [] given; input should be a valid string (a path) or a list of them",
    "corpus.train=[5]": "corpus.train: [5] given; input should be a valid string (a path) or a list of them",
    "corpus.train=corpus/*.txt": "corpus.train: no file matches 'corpus/*.txt'",
    "corpus.train=corpus/train.jsonl": "corpus.split: {validation: 1500}, which takes them from train",
    "corpus.split={}": "corpus: split is empty; expected validation, test, or both",
    "corpus={train: corpus, test: corpus/test.jsonl, split: {test: 3}}": "corpus: test is given, and split.test too; remove one",
    "corpus.split.test=3": "corpus.split.test: given, but corpus has a test split",
    "corpus.split.train=3": "corpus.split.train: unknown key",
    "corpus.delimiter=;;": "corpus.delimiter: ';;' given; expected one character between the fields",
    "corpus.delimiter=3": "corpus.delimiter: 3 given; expected one character",
    "corpus.max_examples=1000": "corpus.max_examples: 1000 given; expected the splits and their numbers, such as {train: 1000}",
    "corpus.document=text": "corpus/train.jsonl, line 1: no field 'text'; its fields are 'id', 'document', 'summary'",
    "corpus.max_examples.tset=3": "'tset' given; input should be 'train', 'validation' or 'test'",
    "--train.steps": "--train.steps given, which is no option. A key of the recipe is written without dashes and with '=': "
    "train.steps=VALUE",
    "--train.steps=9": "without dashes and with '=': train.steps=9",
    "--dry-rum": "--dry-rum given, which is no option; did you mean --dry-run?",
    "wandb.project=''": "wandb.project: '' given; string should have at least 1 character",
}  # fmt: skip


@pytest.mark.parametrize("override", OVERRIDES)
def test_a_recipe_that_is_wrong(override: str, place: Path) -> None:
    result = dry_run(place, override)
    refused(result, place, OVERRIDES[override])
    assert result.stderr.count(OVERRIDES[override]) <= 1, "once, however many members inherit it"
    assert not (place / "runs").exists()


@pytest.mark.parametrize(
    ("overrides", "options", "said"),
    [
        (["train.warmup_steps=9"], [], "train.warmup_steps: 9 given, but the training of student s has 4 steps"),
        ([], ["--processes", "999"], "--processes: 999 given, but this machine has"),
        (["train.warmup_steps=3"], ["--processes", "1"], ""),
    ],
)
def test_what_is_rarely_meant_is_warned_of(overrides: list[str], options: list[str], said: str, place: Path) -> None:
    result = dry_run(place, *overrides, *options)
    assert result.returncode == 0 and "learning rate" in result.stdout
    assert said in result.stderr and ("warning: " in result.stderr) == bool(said)


def test_numbers_as_texts_are_numbers_and_any_folder_will_do(place: Path) -> None:
    other = place / "a folder of \u00e9\u4e2d's"
    other.mkdir()
    for name in ("corpus", "model", "r.yaml"):
        shutil.move(place / name, other / name)
    result = prepare(other, 'train.learning_rate="3e-4"', 'train.steps="7"', "--runs", "r u n s \u4e2d")
    assert result.returncode == 0, result.stderr
    assert "steps: 7\n" in (other / "r u n s \u4e2d" / "bad" / "recipe.yaml").read_text(encoding="utf-8")


# ------------------------------------------------------------------------------------------------ corpora


def lines(*rows: Any) -> bytes:
    return b"\n".join(row if isinstance(row, bytes) else json.dumps(row).encode() for row in rows)


def parquet(**columns: list[Any]) -> bytes:
    sink = pa.BufferOutputStream()
    pq.write_table(pa.table(columns), sink)
    return sink.getvalue().to_pybytes()


GOOD = make_rows(12)
CORPORA: dict[str, tuple[str, bytes, str]] = {
    "wrong columns": (
        "jsonl", lines(*({"text": r["document"], "gist": "x"} for r in GOOD)),
        "line 1: no field 'document'; its fields are 'text', 'gist'. Set corpus.document and corpus.summary",
    ),
    "a column that ends": ("jsonl", lines(*GOOD, {"document": "x"}), "line 13: no field 'summary'"),
    "texts, then a number": ("jsonl", lines(*GOOD, GOOD[0] | {"document": 5}), "line 13: 'document' is int, expected a text"),
    "texts, then true": ("jsonl", lines(*GOOD, GOOD[0] | {"summary": True}), "line 13: 'summary' is bool, expected a text"),
    "texts, then an object": ("jsonl", lines(*GOOD, GOOD[0] | {"document": {"a": 1}}), "line 13: 'document' is dict"),
    "texts, then a list of texts": ("jsonl", lines(*GOOD, GOOD[0] | {"document": ["a"]}), "line 13: 'document' is list"),
    "texts, then a list of numbers": ("jsonl", lines(*GOOD, GOOD[0] | {"summary": ["a", 3]}), "'summary[1]' is int"),
    "mostly null": ("jsonl", lines(*GOOD[:3], *[GOOD[0] | {"summary": None}] * 4), "4 of 7 rows of the train split"),
    "not an object": ("jsonl", lines(*GOOD, [1]), "line 13: list given, expected an object"),
    "not JSON": ("jsonl", lines(*GOOD, b"{'a': 1}"), "line 13: not JSON"),
    "NaN in an unused field": ("jsonl", lines(GOOD[0] | {"document": float("nan")}), "'document' is float"),
    "a NUL byte": ("jsonl", lines(*GOOD, b'{"document": "x\\u0000y", "summary": "z"}'), "line 13: a NUL character at character 1"),
    "NUL bytes of a torn file": ("jsonl", lines(*GOOD, bytes(4096)), "line 13: not JSON"),
    "a lone surrogate": ("jsonl", lines(b'{"document": "x", "summary": "a\\ud83d"}'), "a lone surrogate '\\ud83d', half of a character"),
    "an id with a NUL": ("jsonl", lines(GOOD[0] | {"id": "a\x00"}), "a NUL character"),
    "latin-1": ("jsonl", lines(*GOOD, '{"document": "é"}'.encode("latin1")), "is not UTF-8. Expected UTF-8 text; convert the file"),
    "UTF-16 without a mark": ("jsonl", '{"document": "x"}'.encode("utf-16-le"), "is UTF-16LE without a byte order mark"),
    "UTF-32": ("jsonl", '{"document": "x"}'.encode("utf-32"), "is UTF-32. Expected UTF-8, or UTF-16 with a byte order mark"),
    "an array of numbers": ("json", b"[1, 2]", "element 1: '1' begins it, expected an object"),
    "an array in .jsonl": ("jsonl", b'[{"document": "x", "summary": "y"}]', "line 1: list given, expected an object with the corpus's fields. If the whole file is one array of objects, name it .json"),
    "wrong columns of a table": ("csv", b'text,gist\n"a\nb",c\n', "train.csv, line 1: no field 'document'; its fields are 'text', 'gist'"),
    "no header": ("csv", b'"%s",x\n' % (b"A long text. " * 9), "train.csv, line 1: no column 'document'. This line seems to be a row of texts"),
    "all documents equal": ("jsonl", lines(*[GOOD[0]] * 9), "all 9 documents of the train split"),
    "empty": ("jsonl", b"", "is empty; expected at least one example"),
    "a NUL in CSV": ("csv", b"document,summary\nx\x00,y\n", "a NUL character at character 1"),
    "a row too long": ("csv", b"document,summary\nx,y\nx,y,z\n", "line 3: 3 fields, but the first line names 2"),
    "an open quote": ("csv", b'document,summary\n"x,y', "line 2: not CSV (unexpected end of data)"),
    "semicolons": ("csv", b"document;summary\nx;y\n", "line 1: no column 'document'. The fields seem to be separated by a semicolon, but they were read as separated by a comma. Set corpus.delimiter: \";\"."),
    "tabs": ("csv", b"document\tsummary\nx\ty\n", 'separated by a tab, but they were read as separated by a comma. Set corpus.delimiter: "\\t".'),
    "numbers": ("parquet", parquet(document=[1, 2], summary=["a", "b"]), "row 1: 'document' is int, expected a text"),
    "lists": ("parquet", parquet(document=["x"], summary=[[1, 2]]), "row 1: 'summary[0]' is int"),
    "objects": ("parquet", parquet(document=[{"a": "x"}], summary=["y"]), "'document' is dict, expected a text"),
    "bytes": ("parquet", parquet(document=[b"x"], summary=["y"]), "'document' is bytes, expected a text"),
    "only null": ("parquet", parquet(document=[None, None], summary=["y", "z"]), "2 of 2 rows of the train split"),
    "torn": ("parquet", parquet(document=["x"] * 99, summary=["y"] * 99)[:-9], "Expected a whole parquet file; copy it again"),
    "no parquet": ("parquet", b"document,summary", "cannot be read"),
}  # fmt: skip


@pytest.mark.parametrize("name", CORPORA)
def test_a_corpus_that_is_wrong(name: str, place: Path) -> None:
    suffix, content, said = CORPORA[name]
    (place / "corpus" / "train.jsonl").unlink()
    (place / "corpus" / f"train.{suffix}").write_bytes(content)
    refused(prepare(place), place, said)


# ------------------------------------------------------------------------------------------------ models


def config(folder: Path, **changes: Any) -> None:
    write_json(folder / "config.json", read_json(folder / "config.json") | changes)


def tokenizer_config(folder: Path, **changes: Any) -> None:
    write_json(folder / "tokenizer_config.json", read_json(folder / "tokenizer_config.json") | changes)


def weights(folder: Path, change: Callable[[dict[str, torch.Tensor]], Any]) -> None:
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def torn(name: str) -> Callable[[Path, Any], None]:
    return lambda folder, _: (folder / name).write_bytes((folder / name).read_bytes()[:1000]) and None


def of(kind: str, *patterns: str) -> Callable[[Path, Any], None]:
    """Files of another kind of model in this one's folder."""
    return lambda folder, models: (
        [shutil.copy(p, folder) for each in patterns for p in models(kind).glob(each)] and None
    )


def other_tokenizer(folder: Path, models: Any) -> None:
    for path in folder.glob("*token*"):
        path.unlink()
    of("T5", "*token*")(folder, models)


def in_shards(folder: Path, models: Any) -> None:
    (folder / "model.safetensors").unlink()
    AutoModelForSeq2SeqLM.from_pretrained(models("BART")).save_pretrained(folder, max_shard_size="10KB")
    next(folder.glob("model-00002-of-*")).unlink()


def part_of(kind: str, part: Any) -> Callable[[Path, Any], None]:
    """The weights of the encoder or decoder alone, the config and the tokenizer of both."""

    def save(folder: Path, models: Any) -> None:
        replace_by(kind)(folder, models)
        whole = (folder / "config.json").read_bytes()
        part.from_pretrained(folder).save_pretrained(folder)
        (folder / "config.json").write_bytes(whole)

    return save


def replace_by(kind: str) -> Callable[[Path, Any], None]:
    def copy(folder: Path, models: Any) -> None:
        shutil.rmtree(folder)
        shutil.copytree(models(kind), folder)

    return copy


def in_best(folder: Path, models: Any) -> None:
    folder.rename(folder.with_name("moved"))
    folder.mkdir()
    folder.with_name("moved").rename(folder / "best")


def deepspeed_folder(folder: Path, models: Any) -> None:
    shutil.rmtree(folder)
    (folder / "step-00000004").mkdir(parents=True)
    (folder / "step-00000004" / "mp_rank_00_model_states.pt").touch()


MODELS: dict[str, tuple[Callable[[Path, Any], Any], list[str], Callable[..., Any], str]] = {
    "no tokenizer": (
        lambda f, _: [p.unlink() for p in f.glob("*token*")], [], dry_run,
        "has no tokenizer; expected tokenizer.json or spiece.model",
    ),
    "no weights": (lambda f, _: (f / "model.safetensors").unlink(), [], dry_run, "has no weights; expected model.safetensors"),
    "a trained model's folder": (in_best, [], dry_run, "model has no model, but the folder of one: give model/best"),
    "a DeepSpeed checkpoint": (deepspeed_folder, [], dry_run, "model has no config.json; expected config.json in it"),
    "a decoder alone": (lambda f, _: config(f, model_type="gpt2"), [], dry_run, "model type 'gpt2' is not known; expected one of bart"),
    "an encoder alone": (lambda f, _: config(f, model_type="bert"), [], dry_run, "model type 'bert' is not known"),
    "a config that is a list": (lambda f, _: write_json(f / "config.json", []), [], dry_run, "holds list, expected an object"),
    "a torn config": (lambda f, _: (f / "config.json").write_text("{"), [], dry_run, "config.json is not JSON"),
    "depths that are texts": (lambda f, _: config(f, decoder_layers="3"), [], dry_run, "decoder_layers='3', expected a whole number"),
    "weights of another family": (of("T5", "model.safetensors"), [], prepare, "its weights are not those of its config.json"),
    "weights of like names": (of("Pegasus", "model.safetensors"), [], prepare, "4 are missing (model.decoder.layernorm_embedding.bias"),
    "a deeper config": (lambda f, _: config(f, decoder_layers=4), [], prepare, "26 are missing (model.decoder.layers.3."),
    "a flatter config": (lambda f, _: config(f, decoder_layers=2), [], prepare, "26 are of layers that it has not (model.decoder.layers.2."),
    "other sizes": (lambda f, _: config(f, encoder_ffn_dim=32), [], prepare, "9 have other sizes (model.encoder.layers.0.fc1.bias"),
    "T5's encoder": (part_of("T5", T5EncoderModel), [], prepare, "are missing (decoder.block.0."),
    "BART's decoder": (part_of("BART", BartForCausalLM), [], prepare, "are missing (model.encoder."),
    "no positions": (
        lambda f, _: weights(f, lambda w: w.pop("model.encoder.embed_positions.weight")), [], prepare,
        "1 are missing (model.encoder.embed_positions.weight)",
    ),
    "NaN": (
        lambda f, _: weights(f, lambda w: w["model.encoder.layers.1.fc1.bias"].fill_(float("nan"))), [], prepare,
        "model.encoder.layers.1.fc1.bias holds NaN or infinite numbers",
    ),
    "torn weights": (torn("model.safetensors"), [], prepare, "cannot load"),
    "a missing shard": (in_shards, [], prepare, "model-00002-of-"),
    "a vocabulary larger than the embedding": (lambda f, _: config(f, vocab_size=99), [], prepare, "tokens, but the model embeds 99"),
    "another's tokenizer": (other_tokenizer, [], prepare, "has pad_token_id 0, but its config.json 1"),
    "a torn tokenizer": (torn("tokenizer.json"), [], prepare, "cannot load './model'"),
    "a tokenizer that is a list": (lambda f, _: write_json(f / "tokenizer.json", []), [], prepare, "cannot load './model'"),
    "unknown languages": (
        replace_by("mBART-50"), ["teachers.t.languages={source: en_XX, target: xx_XX}"], prepare,
        "languages.target: 'xx_XX' given, which the tokenizer of ./model does not know. Expected one of its 52 codes",
    ),
    "no languages": (
        lambda f, m: (replace_by("NLLB")(f, m), tokenizer_config(f, tgt_lang=None)), [], prepare,
        "its tokenizer writes many languages and none is given. Expected both, under the teacher",
    ),
    "languages of a model of one": (lambda f, _: None, ["teachers.t.languages={source: en, target: ro}"], prepare, "Remove them"),
    "a torn SentencePiece model": (
        lambda f, m: (replace_by("Marian")(f, m), torn("source.spm")(f, m)), ["corpus.max_source_tokens=32"], prepare,
        "could not parse ModelProto",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", MODELS)
def test_a_model_that_is_wrong(name: str, place: Path, models: Callable[[str], Path]) -> None:
    do, overrides, command, said = MODELS[name]
    do(place / "model", models)
    refused(command(place, *overrides), place, said)


# ------------------------------------------------------------------------------------------------ long documents

SPACED = "the quick brown fox jumps. " * 400_000
LONG = {"words": SPACED, "no spaces": SPACED.replace(" ", ""), "one letter": "a" * 10_000_000}


def test_a_document_of_10_mb_is_no_mistake(place: Path) -> None:
    rows = [row | {"document": document} for row, document in zip(make_rows(3), LONG.values(), strict=True)]
    (place / "corpus" / "train.jsonl").write_bytes(lines(*rows))
    result = prepare(place)
    assert result.returncode == 0, result.stderr
    table = read_split(place / "runs" / "bad" / "corpus" / "train.parquet")
    assert [row["document"] for row in table] == list(LONG.values())
    manifest = read_json(place / "runs" / "bad" / "corpus" / "manifest.json")
    assert manifest["splits"]["train"]["document_words"]["max"] == 2_000_000


class Watched:
    """A tokenizer, and how many characters it has read."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer, self.characters = tokenizer, 0

    def __call__(self, text: Any, **settings: Any) -> Any:
        self.characters += len(text) if isinstance(text, str) else sum(map(len, text))
        return self._tokenizer(text, **settings)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._tokenizer, name)


@pytest.mark.parametrize("kind", KINDS)
def test_of_10_mb_only_the_beginning_is_read(kind: str) -> None:
    """By the tokenizer of every kind, and it is cut to the tokens of a text that is read whole."""
    encoder = Encoder(Watched(KINDS[kind].tokenizer()), 60, 12)
    ids, cut = encoder(list(LONG.values()), "source")
    assert encoder.tokenizer.characters < 20_000, "reading all of it takes minutes"
    assert cut == [True] * 3 and [len(row) for row in ids] == [60] * 3
    assert ids == encoder([text[:3000] for text in LONG.values()], "source")[0]
    few = "fox" + 5000 * " " + "dog"
    own = encoder.tokenizer(few, truncation=True, max_length=60)["input_ids"]
    assert encoder([few], "source")[0] == [own], "many characters, perhaps few tokens"


# ------------------------------------------------------------------------------------------------ machines


@dataclass(frozen=True)
class ReadOnly:
    """Makes a folder read-only for one process, root too."""

    folder: str

    def __call__(self) -> None:
        assert LIBC.unshare(CLONE_NEWNS) == 0
        for options in (
            ["--make-rprivate", "/"],
            ["--bind", self.folder, self.folder],
            ["-o", "remount,ro,bind", self.folder],
        ):
            subprocess.run(["mount", *options], check=True)


def without_wandb() -> None:
    sys.modules["wandb"] = None  # type: ignore[assignment]


LIBC, CLONE_NEWNS = ctypes.CDLL(None), 0x20000
PREPARE, LAUNCH, EVALUATE = (
    ("jobs.prepare", "r.yaml"),
    ("launch", "run", "r.yaml"),
    ("jobs.evaluate", "r.yaml", "--teacher", "t"),
)
MACHINES: dict[str, tuple[tuple[str, ...], dict[str, Any], str]] = {
    "wandb is not installed": (
        (*LAUNCH, "wandb.project=x", "--dry-run"), {"before": without_wandb},
        "wandb: given, but not installed. Run `pip install -e .[wandb]`, or remove the block",
    ),
    "runs is a file": ((*PREPARE, "--runs", "r.yaml"), {}, "cannot write to r.yaml/bad: Not a directory"),
    "an unknown profile": ((*LAUNCH, "--on", "mars"), {}, "--on: 'mars' given, expected 'local' or a profile"),
    "a run that is none": (("launch", "status", "dept"), {}, "dept is no run: it has no recipe.yaml. Expected"),
    "no runs": (("launch", "status"), {}, "runs has no runs. Expected folders with a recipe.yaml"),
    "to watch all runs": (("launch", "status", "--watch"), {}, "--watch given without a run. Expected RUN"),
    "no process": ((*LAUNCH, "--processes", "0"), {}, "Invalid value for '--processes'"),
    "a time that is no number": ((*PREPARE, "--time-limit", "nan"), {}, "'nan' given, expected a number above 0"),
    "a member that is none": ((*EVALUATE[:2], "--teacher", "q"), {}, "'q' is not among the recipe's teachers; expected one of t"),
    "a rank alone": (EVALUATE, {"environment": {"RANK": "0"}}, "RANK=0 is set but WORLD_SIZE, LOCAL_RANK not"),
    "a rank that is no number": (
        EVALUATE, {"environment": {"RANK": "x", "WORLD_SIZE": "2", "LOCAL_RANK": "0"}},
        "RANK='x' in the environment, expected a whole number from 0",
    ),
    "a rank beyond the last": (
        EVALUATE, {"environment": {"RANK": "2", "WORLD_SIZE": "2", "LOCAL_RANK": "0"}},
        "RANK=2 in the environment, expected less than 2, the WORLD_SIZE",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", MACHINES)
def test_a_machine_that_is_wrong(name: str, place: Path) -> None:
    command, how, said = MACHINES[name]
    if command == EVALUATE:
        assert prepare(place, "--runs", "good").returncode == 0
        command = (*command, "--runs", "good")
    refused(run_forked(*command, cwd=place, **how), place, said)


@pytest.mark.parametrize("command", [PREPARE, LAUNCH])
def test_a_read_only_run_folder(command: tuple[str, ...], place: Path) -> None:
    (place / "runs").mkdir()
    if os.geteuid() != 0:
        pytest.skip("NO READ-ONLY FOLDER: only root may mount one")
    result = run_forked(*command, cwd=place, before=ReadOnly(str(place / "runs")))
    refused(
        result,
        place,
        "cannot write to runs/bad: Read-only file system. Expected a folder this user may write to; choose",
    )


@pytest.mark.parametrize("variable", [{"HOME": "/proc/nowhere"}, {"CUDA_VISIBLE_DEVICES": "garbage"}], ids=str)
def test_a_machine_that_is_odd_will_do(variable: dict[str, str], place: Path) -> None:
    result = prepare(place, environment=variable)
    assert result.returncode == 0, result.stderr


def test_a_folder_that_the_locale_cannot_spell(place: Path) -> None:
    environment = os.environ | {
        "LC_ALL": "POSIX",
        "PYTHONUTF8": "0",
        "PYTHONCOERCECLOCALE": "0",
        "PYTHONPATH": str(ROOT),
    }
    command = [sys.executable, "-m", *PREPARE, "--runs", "r\u00fcns"]
    result = subprocess.run(command, cwd=place, env=environment, capture_output=True, text=True)
    refused(result, place, "has a name that this locale cannot spell. Expected a locale of UTF-8; set LC_ALL=C.UTF-8")


def test_names_of_the_hub_without_a_network(place: Path) -> None:
    """Without retries, which take minutes; a corpus and a model at once."""
    cut_off = ["unshare", "--net"] if os.geteuid() == 0 else ["unshare", "--map-root-user", "--net"]
    if subprocess.run([*cut_off, "true"], capture_output=True).returncode:
        pytest.skip("NO CUT-OFF MACHINE: network namespaces are not allowed here")
    environment = {name: value for name, value in os.environ.items() if name != "HF_HUB_OFFLINE"}
    environment |= {"PYTHONPATH": str(ROOT), "HF_HOME": str(place / "cache")}
    said = {
        "teachers.t.model=nobody/nothing": "cannot load 'nobody/nothing'",
        "corpus.train=nobody/nothing": "'nobody/nothing' is no file or folder here, and as a dataset it cannot be loaded",
    }
    jobs = [
        subprocess.Popen([*cut_off, sys.executable, "-m", *PREPARE, override, "--runs", f"runs{number}"],
                         cwd=place, env=environment, stderr=subprocess.PIPE, text=True)
        for number, override in enumerate(said)
    ]  # fmt: skip
    hints = (
        "download the model elsewhere and give its folder",
        "write it with save_to_disk, and give that folder",
    )
    for job, part, hint in zip(jobs, said.values(), hints, strict=True):
        _, text = job.communicate(timeout=PATIENCE_SECONDS)
        refused(
            subprocess.CompletedProcess(job.args, job.returncode, "", text),
            place,
            "the hub does not answer",
            part,
            hint,
        )
        assert "Retrying" not in text
