"""Labels made elsewhere: a file of them becomes the table that students read, and everything in it is accounted for."""

import json
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from distill.changes import examine, open_run
from distill.corpus import kept_labels, prepare_corpus
from distill.data import training_tokens
from distill.errors import InputError
from distill.files import read_json
from distill.imported import describe_file
from distill.labels import merge_labels
from distill.recipe_file import parse_recipe
from distill.run import Run
from distill.tables import labels_table
from distill.tokens import Encoder
from tests.conftest import make_rows, write_corpus

ROWS = make_rows(64)  # as write_corpus has them


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_corpus(tmp_path_factory.mktemp("corpus"))


def make_run(corpus: Path, folder: Path, lines: list[Any], **settings: Any) -> Run:
    file = folder / "llm.jsonl"
    file.write_text("".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines))
    recipe = {
        "name": "r",
        "corpus": {"train": str(corpus)},
        "teachers": {"t": {"model": "some/model"}},
        "labels": {"llm": {"file": str(file)} | settings},
        "students": {"s": {"teacher": "t", "decoder_layers": 1, "train_on": ["llm"]}},
        "train": {"steps": 2},
    }
    run = open_run(parse_recipe(recipe), folder / "runs")
    if not run.corpus.exists():
        prepare_corpus(run.recipe.corpus, run.recipe.seed, run.corpus)
    return run


def merged(run: Run) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    labels = run.label_set("llm")
    manifest = merge_labels(run, labels)
    assert labels.is_merged() and manifest == read_json(labels.manifest)
    return manifest, pq.read_table(labels.table).to_pylist()


def test_every_line_and_every_document_is_accounted_for(corpus: Path, tmp_path: Path, tokenizer: Any) -> None:
    lines: list[Any] = [
        {"id": "r3", "label": "the fox "},
        {"document": f"  {ROWS[5]['document']}\n", "summary": ROWS[5]["summary"]},
        {"id": "other", "document": ROWS[6]["document"], "label": "a dog", "summary": "not this"},
        {"id": "r3", "label": "the fox"},
        {"id": "nobody", "label": "x"},
        {"id": "r7", "label": "  "},
        {"id": "r8", "label": None},
    ]
    run = make_run(corpus, tmp_path, lines, keep_if={"rouge1_at_least": 99})
    manifest, rows = merged(run)
    assert {row["id"]: row["label"] for row in rows if row["label"]} == {
        "r3": "the fox",
        "r5": ROWS[5]["summary"],
        "r6": "a dog",
    }
    assert [row["id"] for row in rows] == [row["id"] for row in ROWS], "one row for each document, in their order"
    found = manifest["file"]
    counts = {key: found[key] for key in ("lines", "labelled", "without_label", "unknown", "duplicates", "empty")}
    assert counts == {"lines": 7, "labelled": 3, "without_label": 61, "unknown": 1, "duplicates": 1, "empty": 2}
    assert counts["lines"] == sum(counts[key] for key in ("labelled", "unknown", "duplicates", "empty"))
    assert manifest["dropped"] == {"no label": 61, "rouge1_at_least": 2} and manifest["kept"] == 1
    assert kept_labels(run.label_set("llm").table) == [5]
    tokens, ids = training_tokens(run, Encoder(tokenizer, 1000, 1000), {"llm": 1.0})
    assert ids == ["llm/r5"] and tokenizer.decode(tokens.target[0], skip_special_tokens=True) == ROWS[5]["summary"]
    assert manifest["measures"]["rouge1"]["max"] == 100 and "log_probability" not in manifest["measures"]
    words = describe_file(found)
    assert words == (
        "7 lines, of them 1 of unknown documents (nobody), 2 empty, 1 said twice; 3 documents have a label, 61 have none"
    )
    assert words in labels_table(run.label_sets()), "the report says so too"


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (
            [{"id": "r1", "label": "a"}, {"id": "r1", "label": "b"}],
            r"line 2: another label for the document of .*line 1",
        ),
        ([{"id": "r1", "document": ROWS[2]["document"], "label": "a"}], r"the id 'r1' is that of another document"),
        (
            [{"id": "x", "label": "a"}, {"id": 5, "label": "b"}],
            r"none of the 2 lines .* \(0 are empty; unknown: x, 5\).*ids such as r0, r1",
        ),
        ([{"label": "a"}], r"line 1: no id and no document"),
        ([{"id": "r1", "text": "a"}], r"line 1: no 'label' and no 'summary'; its fields are 'id', 'text'"),
        ([{"id": "r1", "label": 3}], r"line 1: 'label' is int, expected a text"),
        ([{"id": "r1", "label": "a\x00b"}], r"line 1: '\\x00' at character 1 of the label"),
        ([{"document": 3, "label": "a"}], r"line 1: 'document' is int, expected a text"),
        (["{"], r"line 1: not JSON"),
        ([], r"none of the 0 lines"),
    ],
)
def test_a_wrong_file_is_refused_with_its_line(corpus: Path, tmp_path: Path, lines: list[Any], message: str) -> None:
    run = make_run(corpus, tmp_path, lines)
    with pytest.raises(InputError, match=message):
        merge_labels(run, run.label_set("llm"))
    assert not run.label_set("llm").is_merged()


def test_a_file_that_changes_is_noticed(corpus: Path, tmp_path: Path) -> None:
    run = make_run(corpus, tmp_path, [{"id": "r1", "label": "a"}])
    merged(run)
    run = make_run(corpus, tmp_path, [{"id": "r1", "label": "b"}])  # no student has read it
    assert not run.label_set("llm").is_merged()
    assert merged(run)[1][1]["label"] == "b"
    (run.folder / "students" / "s" / "checkpoints").mkdir(parents=True)
    with pytest.raises(
        InputError, match=r"labels.llm.file: what it names has changed since it was read(.|\n)*--redo llm"
    ):
        make_run(corpus, tmp_path, [{"id": "r1", "label": "c"}])
    (tmp_path / "llm.jsonl").unlink()
    assert examine(run).stages == () and run.label_set("llm").is_merged(), "what was read of a file is kept"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"keep_if": {"finished": True}},
            r"labels.llm: keep_if.finished: only the teacher that made a label knows this",
        ),
        ({"keep_if": {"log_probability_at_least": -1}}, r"keep_if.log_probability_at_least: only the teacher"),
        ({"teacher": "t", "num_beams": 2}, r"labels.llm: num_beams, teacher: says how a teacher labels"),
        ({"run": "runs/other"}, r"labels.llm: give one of run and file"),
        ({"name": "other"}, r"labels.llm: name is the name of labels in another run"),
    ],
)
def test_what_a_file_cannot_tell_is_refused(
    corpus: Path, tmp_path: Path, settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        make_run(corpus, tmp_path, [], **settings)
