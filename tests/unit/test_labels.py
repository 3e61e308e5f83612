"""From documents to the labels that a student reads, with a tiny teacher."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch

from distill.changes import open_run
from distill.corpus import prepare_corpus, prepare_documents
from distill.data import encoder_of, load_training_data, repeated, training_tokens
from distill.errors import InputError
from distill.files import read_json
from distill.generation import Candidate, generation_config
from distill.labels import best, label_writer, merge_labels
from distill.preflight import check_recipe
from distill.recipe import BestOf, Labels
from distill.recipe_file import parse_recipe
from distill.run import Run
from distill.sections import Generation
from distill.task import label_task
from distill.tokens import Encoder
from tests.conftest import make_model, make_rows, write_corpus

CPU = torch.device("cpu")


def make_run(folder: Path, tokenizer: Any, labels: dict[str, Any], **student: Any) -> Run:
    write_corpus(folder / "corpus")
    if not (folder / "teacher").exists():
        make_model("bart", tokenizer, noise=0.3).save_pretrained(folder / "teacher")
        tokenizer.save_pretrained(folder / "teacher")
    recipe = parse_recipe(
        {
            "name": "r",
            "corpus": {"train": str(folder / "corpus"), "max_source_tokens": 40, "max_target_tokens": 12},
            "teachers": {"t": {"model": str(folder / "teacher")}},
            "labels": labels,
            "students": {"s": {"teacher": "t", "decoder_layers": 1} | student},
            "train": {"steps": 2},
        }
    )
    check_recipe(recipe)
    run = open_run(recipe, folder / "runs")
    for one in run.label_sets():
        if one.settings.documents and not one.documents.exists():
            prepare_documents(recipe.corpus, one.settings, one.name, recipe.seed, one.documents)
    if not run.corpus.exists():
        prepare_corpus(recipe.corpus, recipe.seed, run.corpus)
    return run


def training_rows(run: Run, train_on: Any, tokenizer: Any) -> list[dict[str, str]]:
    """What a student reads, as texts."""
    tokens, ids = training_tokens(run, Encoder(tokenizer, 1000, 1000), train_on)
    texts = [tokenizer.batch_decode(list(side), skip_special_tokens=True) for side in (tokens.source, tokens.target)]
    return [{"id": i, "document": d, "summary": s} for i, d, s in zip(ids, *texts, strict=True)]


def label_all(run: Run, name: str = "t") -> dict[str, Any]:
    labels = run.label_set(name)
    for number in range(labels.settings.shards):
        label_writer(run, labels, CPU).write(number)
    return merge_labels(run, labels)


def test_one_label_for_every_document_and_a_reason_for_each_that_is_dropped(tokenizer: Any, tmp_path: Path) -> None:
    rules = {"repeated_ngrams_at_most": 30, "log_probability_at_least": -3.1}
    run = make_run(tmp_path, tokenizer, {"t": {"shards": 3, "num_beams": 2, "keep_if": rules}}, train_on=["gold", "t"])
    manifest = label_all(run)
    rows = pq.read_table(run.label_set("t").table).to_pylist()
    gold = pq.read_table(run.split("train")).to_pylist()
    assert [row["id"] for row in rows] == [row["id"] for row in gold]
    assert [row["number"] for row in rows] == list(range(len(gold)))
    assert 0 < manifest["kept"] < manifest["documents"] == len(gold)
    assert manifest["kept"] == sum(not row["dropped"] for row in rows)
    for rule, count in manifest["dropped"].items():
        assert count == sum(rule in row["dropped"] for row in rows)
    assert all((row["log_probability"] < -3.1) == ("log_probability_at_least" in row["dropped"]) for row in rows)
    read = training_rows(run, run.recipe.students["s"].train_on, tokenizer)
    assert [row["summary"] for row in read[: len(gold)]] == [row["summary"] for row in gold], "gold first"
    kept = [row for row in rows if not row["dropped"]]
    assert [(row["id"], row["summary"]) for row in read[len(gold) :]] == [(f"t/{r['id']}", r["label"]) for r in kept]
    documents = {row["id"]: row["document"] for row in gold}
    assert all(row["document"] == documents[row["id"].removeprefix("t/")] for row in read[len(gold) :])


def test_training_on_labels_validates_on_gold(tokenizer: Any, tmp_path: Path) -> None:
    run = make_run(tmp_path, tokenizer, {"t": {"shards": 1}}, train_on=["t"])
    label_all(run)
    encoder = encoder_of(run, run.recipe.teachers["t"], tokenizer, make_model("bart", tokenizer).config.to_dict())
    data = load_training_data(run, encoder, run.recipe.evaluate, run.recipe.students["s"].train_on)
    gold = {row["summary"] for row in pq.read_table(run.split("validation")).to_pylist()}
    assert {one for [one] in data.validation_references} <= gold and all(
        name.startswith("t/") for name in data.train_ids
    )


def test_labels_are_what_plain_generate_says(tokenizer: Any, tmp_path: Path) -> None:
    run = make_run(tmp_path, tokenizer, {"t": {"shards": 2, "num_beams": 3, "max_new_tokens": 9}})
    label_all(run)
    model = make_model("bart", tokenizer, noise=0.3)
    for row, gold in zip(
        pq.read_table(run.label_set("t").table).to_pylist(), pq.read_table(run.split("train")).to_pylist(), strict=True
    ):
        ids = tokenizer(gold["document"], return_tensors="pt", truncation=True, max_length=40)["input_ids"]
        expected = tokenizer.decode(
            model.generate(ids, num_beams=3, max_new_tokens=9)[0], skip_special_tokens=True
        ).strip()
        assert row["label"] == expected


def test_other_documents_with_and_without_summaries(tokenizer: Any, tmp_path: Path) -> None:
    with (tmp_path / "more.jsonl").open("w") as file:
        for number, row in enumerate(make_rows(9, seed=5)):
            if number % 2:
                del row["summary"]
            file.write(json.dumps(row) + "\n")
    labels = {"more": {"teacher": "t", "documents": str(tmp_path / "more.jsonl"), "max_documents": 7, "shards": 2}}
    run = make_run(tmp_path, tokenizer, labels, train_on={"gold": 0.5, "more": 2})
    manifest = label_all(run, "more")
    assert manifest["documents"] == 7
    rows = pq.read_table(run.label_set("more").table).to_pylist()
    assert {row["rouge1"] is None for row in rows} == {True, False}
    read = training_rows(run, run.recipe.students["s"].train_on, tokenizer)
    gold = read_json(run.corpus / "manifest.json")["splits"]["train"]["examples"]
    assert len(read) == round(gold / 2) + 2 * manifest["kept"]
    strict = {"more": labels["more"] | {"keep_if": {"rouge1_at_least": 5}}}
    with pytest.raises(InputError, match=r"labels.more.keep_if: compares labels with gold summaries, but r\d+ of"):
        make_run(tmp_path / "strict", tokenizer, strict)


def test_labels_are_never_joined_to_other_documents(tokenizer: Any, tmp_path: Path) -> None:
    run = make_run(tmp_path, tokenizer, {"t": {"shards": 1}}, train_on=["t"])
    label_all(run)
    training_rows(run, {"t": 1.0}, tokenizer)
    table = pq.read_table(run.split("train"))
    pq.write_table(table.take(list(reversed(range(len(table))))), run.split("train"))
    with pytest.raises(InputError, match=r"cannot be read: .*train.parquet is not the one of the merge"):
        training_rows(run, {"t": 1.0}, tokenizer)
    pq.write_table(table.slice(0, 5), run.label_set("t").table)
    with pytest.raises(InputError, match="is not the one of the merge"):
        training_rows(run, {"t": 1.0}, tokenizer)


def test_the_rules_may_change_until_a_student_has_read_them(tokenizer: Any, tmp_path: Path) -> None:
    run = make_run(tmp_path, tokenizer, {"t": {"shards": 2, "num_beams": 2}}, train_on=["t"])
    made = label_all(run)["kept"]
    stricter = {"t": {"shards": 2, "num_beams": 2, "keep_if": {"repeated_ngrams_at_most": 10}}}
    run = make_run(tmp_path, tokenizer, stricter, train_on=["t"])
    assert not run.label_set("t").is_merged()
    with pytest.raises(InputError, match="not merged by the rules of the recipe"):
        training_rows(run, {"t": 1.0}, tokenizer)
    assert merge_labels(run, run.label_set("t"))["kept"] < made
    assert run.label_set("t").is_merged()
    with pytest.raises(InputError, match="labels.t.num_beams: 2 when the run began, 3 now"):
        make_run(tmp_path, tokenizer, {"t": stricter["t"] | {"num_beams": 3}}, train_on=["t"])
    (run.folder / "students" / "s").mkdir(parents=True)
    (run.folder / "students" / "s" / "metrics.jsonl").touch()
    with pytest.raises(InputError, match="labels.t.keep_if"):
        make_run(tmp_path, tokenizer, {"t": {"shards": 2, "num_beams": 2}}, train_on=["t"])


def test_what_was_not_begun_may_be_corrected(tokenizer: Any, tmp_path: Path) -> None:
    good = {"t": {"shards": 1}}
    make_run(tmp_path, tokenizer, good)
    (tmp_path / "bad.jsonl").write_text('{"document": 1}\n')
    more = {"teacher": "t", "documents": str(tmp_path / "bad.jsonl")}
    with pytest.raises(InputError, match="expected a text"):
        make_run(tmp_path, tokenizer, good | {"more": more})
    write_corpus(tmp_path / "again")
    corrected = make_run(tmp_path, tokenizer, good | {"more": more | {"documents": str(tmp_path / "again/test.jsonl")}})
    assert corrected.label_set("more").documents.exists()
    with pytest.raises(InputError, match=r"labels.more.documents: .* when the run began"):
        make_run(tmp_path, tokenizer, good | {"more": more})


def test_a_teacher_that_samples_searches_here(tokenizer: Any) -> None:
    model = make_model("bart", tokenizer)
    model.generation_config.update(do_sample=True, temperature=0.7, top_k=3, top_p=0.5)
    config = generation_config(model, Generation(), 12)
    assert (config.do_sample, config.temperature, config.top_k, config.top_p) == (False, 1.0, 50, 1.0)


def test_repeated() -> None:
    rows = range(10)
    assert len(repeated(rows, 2.5, 0)) == 25 and repeated(rows, 1, 0) == [*rows]
    some = repeated(rows, 0.7, 1)
    assert some == sorted(some), "in their order"
    assert repeated(rows, 0.3, 0) == repeated(rows, 0.3, 0) and len(set(repeated(rows, 0.3, 0))) == 3


def test_best_of_n() -> None:
    each = [
        (Candidate(text, probability, 3, True), {"rouge1": rouge, "rouge2": rouge, "rougeL": rouge})
        for text, probability, rouge in (("first", -0.3, 10.0), ("likely", -0.1, 10.0), ("like gold", -0.5, 30.0))
    ]
    assert best(each, None)[0].text == "first"
    assert best(each, BestOf(n=3, by="rougeL"))[0].text == "like gold"
    assert best(each, BestOf(n=3, by="log_probability"))[0].text == "likely"
    assert best(each[:2], BestOf(n=2, by="rouge1"))[0].text == "first", "of equals the one that the beam prefers"


def test_best_of_n_from_the_beam(tokenizer: Any, tmp_path: Path) -> None:
    run = make_run(
        tmp_path, tokenizer, {"t": {"shards": 1, "num_beams": 3, "best_of": {"n": 3, "by": "log_probability"}}}
    )
    label_all(run)
    shard = [
        json.loads(line)
        for line in (run.label_set("t").folder / "shard-00000-of-00001.jsonl").read_text().split("\n")[:-1]
    ]
    assert all(len(row["candidates"]) == 3 for row in shard)
    best_ones = {row["number"]: max(c["log_probability"] for c in row["candidates"]) for row in shard}
    for row in pq.read_table(run.label_set("t").table).to_pylist():
        assert row["log_probability"] == best_ones[row["number"]]
    with pytest.raises(InputError, match="best_of.n: 4 given, but the teacher searches with 3 beams"):
        label_task(make_run(tmp_path / "two", tokenizer, {"t": {"best_of": {"n": 4, "by": "rouge1"}}}),
                   make_run(tmp_path / "two", tokenizer, {"t": {"best_of": {"n": 4, "by": "rouge1"}}}).label_set("t"))  # fmt: skip


def test_shards_of_other_settings_are_not_merged(tokenizer: Any, tmp_path: Path) -> None:
    run = make_run(tmp_path, tokenizer, {"t": {"shards": 2, "num_beams": 2}})
    for number in range(2):
        label_writer(run, run.label_set("t"), CPU).write(number)
    other = dataclasses.replace(
        run, recipe=run.recipe.model_copy(update={"labels": {"t": Labels(shards=2, num_beams=3)}})
    )
    with pytest.raises(InputError, match=r"shard-00000-of-00002.jsonl cannot be used: decoding was .*'num_beams': 2"):
        merge_labels(other, other.label_set("t"))
    assert not run.label_set("t").manifest.exists()
    with pytest.raises(InputError, match="labels t are not merged by .* Run jobs.merge --labels t"):
        training_rows(run, {"t": 1.0}, tokenizer)


def test_labels_that_are_all_dropped_are_refused_by_the_student(tokenizer: Any, tmp_path: Path) -> None:
    run = make_run(tmp_path, tokenizer, {"t": {"shards": 1, "keep_if": {"rouge2_at_least": 100}}}, train_on=["t"])
    assert label_all(run)["kept"] == 0
    with pytest.raises(InputError, match="every label was dropped"):
        training_rows(run, {"t": 1.0}, tokenizer)


def test_the_attention_temperature_changes_the_labels(tokenizer: Any, tmp_path: Path) -> None:
    texts = []
    for number, settings in enumerate(({}, {"attention_temperature": 1.0}, {"attention_temperature": 8.0})):
        run = make_run(tmp_path / str(number), tokenizer, {"t": {"shards": 1, **settings}})
        label_all(run)
        texts.append(pq.read_table(run.label_set("t").table)["label"].to_pylist())
    assert texts[0] == texts[1] != texts[2]


BAD: dict[str, tuple[dict[str, Any], dict[str, Any], str]] = {
    "unknown teacher": ({"x": {}}, {}, "labels.x: 'x' is not among the teachers; set labels.x.teacher to one of t"),
    "unknown source": ({}, {"train_on": ["gold", "u"]}, "students.s.train_on: 'u' is not among gold and the labels"),
    "twice": ({}, {"train_on": ["gold", "gold"]}, "gold stands twice; to read it twice give {NAME: 2}"),
    "nothing": ({}, {"train_on": []}, "students.s.train_on"),
    "the name of gold": ({"gold": {"teacher": "t"}}, {}, "labels.gold: this is the name of the gold summaries"),
    "more candidates than beams": (
        {"t": {"num_beams": 2, "best_of": {"n": 3, "by": "rougeL"}}}, {}, "best_of.n is 3, more than num_beams 2"),
    "a sample of nothing": ({"t": {"max_documents": 3}}, {}, "max_documents needs documents"),
    "no such file": ({"t": {"documents": "nowhere.jsonl"}}, {}, "labels.t.documents: 'nowhere.jsonl' given, but there"),
    "an unknown rule": ({"t": {"keep_if": {"rouge2_atleast": 1}}}, {}, "did you mean 'rouge2_at_least'?"),
    "weights without bound": ({}, {"train_on": {"gold": 1e9}}, "students.s.train_on.gold: 1000000000.0 given"),
    "a word for a list": ({}, {"train_on": "gold"}, "expected a list of names such as [gold, bart], or a block"),
    "no label can pass": (
        {"t": {"keep_if": {"length_ratio_at_least": 3, "length_ratio_at_most": 1}}}, {}, "no label passes"),
    "shorter than the shortest": (
        {"t": {"min_new_tokens": 9, "max_new_tokens": 5}}, {}, "min_new_tokens 9 is above max_new_tokens 5"),
    "true for a number": ({"t": {"length_penalty": True}}, {}, "labels.t.length_penalty: True given; a number is expected"),
    "the other engine's key": (
        {"t": {"engine": {"name": "huggingface", "compute": "int8"}}}, {}, "compute: of ctranslate2 only"),
    "a share above 100": ({"t": {"keep_if": {"copied_share_at_most": 101}}}, {}, "keep_if.copied_share_at_most: 101 given"),
    "an unknown engine": ({"t": {"engine": "fast"}}, {}, "labels.t.engine"),
    "a positive log-probability": ({"t": {"keep_if": {"log_probability_at_least": 1}}}, {}, "log_probability_at_least"),
    "more tokens than positions": ({"t": {"max_new_tokens": 65}}, {}, "labels.t.max_new_tokens: 65 given, but"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_bad_labels_are_refused(name: str, tokenizer: Any, tmp_path: Path) -> None:
    labels, student, message = BAD[name]
    with pytest.raises(InputError) as error:
        make_run(tmp_path, tokenizer, labels, **student)
    assert message in str(error.value)
    assert not (tmp_path / "runs" / "r" / "corpus").exists()


def test_a_cached_teacher_has_no_words_for_labels() -> None:
    with pytest.raises(InputError, match="the cache of teacher t holds what it says about the gold summaries"):
        parse_recipe({"name": "r", "corpus": {"train": "docstrings"}, "labels": {"t": {}},
                      "teachers": {"t": {"model": "m", "cache": "hidden"}}, "train": {"steps": 1},
                      "students": {"s": {"teacher": "t", "train_on": ["t"], "objective": {"kl": {"weight": 1}}}}})  # fmt: skip
