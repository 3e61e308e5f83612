"""CTranslate2 says what Hugging Face says, for all families; and must prove it before it labels."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from tokenizers import Tokenizer as RawTokenizer
from transformers import PreTrainedTokenizerFast

from distill.ctranslate import CONVERTED, CTranslate2, convert
from distill.engines import make_engine, mean_agreement
from distill.errors import InputError
from distill.generation import HuggingFace, generation_config
from distill.labels import label_writer
from distill.sections import Generation
from distill.task import label_task
from tests.conftest import make_model, make_rows
from tests.unit.test_labels import label_all, make_run

CPU = torch.device("cpu")


@pytest.fixture(scope="session")
def pad_last(tokenizer: Any) -> Any:
    """The tokenizer with <pad> as its last token, as Marian's have it."""
    raw = json.loads(tokenizer.backend_tokenizer.to_str())
    vocabulary = raw["model"]["vocab"]
    last = max(vocabulary, key=vocabulary.get)
    vocabulary["<pad>"], vocabulary[last] = vocabulary[last], vocabulary["<pad>"]
    for token in raw["added_tokens"]:
        token["id"] = vocabulary[token["content"]]
    names = {"bos_token": "<s>", "pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"}
    return PreTrainedTokenizerFast(tokenizer_object=RawTokenizer.from_str(json.dumps(raw)), **names)


@pytest.mark.parametrize("family", CONVERTED)
@pytest.mark.parametrize("forced", [False, True])
def test_the_same_summaries_and_log_probabilities(
    family: str, forced: bool, tokenizer: Any, pad_last: Any, tmp_path: Path
) -> None:
    if family == "marian":
        tokenizer = pad_last
    model = make_model(family, tokenizer, noise=0.3)
    if family == "marian":  # what Marian begins with is a zero embedding that is never generated
        with torch.no_grad():
            model.get_input_embeddings().weight[tokenizer.pad_token_id] = 0
            model.final_logits_bias[0, tokenizer.pad_token_id] = -1e9
    if forced:  # mBART's language, BART's <s>
        model.generation_config.forced_bos_token_id = 40
    model.save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    source = [ids[:40] for ids in tokenizer([row["document"] for row in make_rows(6)])["input_ids"]]
    config = generation_config(model, Generation(num_beams=3, early_stopping=True), 12)
    config.num_return_sequences = 2
    expected = HuggingFace(model, tokenizer, config, CPU)(source)
    convert(model, tokenizer, str(tmp_path / "model"), "fp32", tmp_path / "converted", CPU)
    found = CTranslate2(tmp_path / "converted", tokenizer, config, "fp32", CPU)(source)
    for one, other in zip(expected, found, strict=True):
        for ours, theirs in zip(one, other, strict=True):
            assert (theirs.text, theirs.tokens, theirs.finished) == (ours.text, ours.tokens, ours.finished)
            assert theirs.log_probability == pytest.approx(ours.log_probability, rel=2e-4)


def test_a_marian_of_another_form_is_refused(tokenizer: Any, tmp_path: Path) -> None:
    model = make_model("marian", tokenizer)
    with pytest.raises(InputError, match="here: <pad> is token 1 of 320"):
        convert(model, tokenizer, "here", "fp32", tmp_path / "converted", CPU)


def test_a_family_that_is_not_converted_is_refused(tokenizer: Any, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="here: a model of type longt5"):
        convert(make_model("longt5", tokenizer), tokenizer, "here", "fp32", tmp_path / "converted", CPU)


@pytest.mark.parametrize("compute", ["fp32", "int8"])
def test_conversion_leaves_the_teacher_as_it_is(compute: str, tokenizer: Any, tmp_path: Path) -> None:
    model = make_model("bart", tokenizer, noise=0.3)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    model.save_pretrained(tmp_path / "model")
    convert(model, tokenizer, str(tmp_path / "model"), compute, tmp_path / "converted", CPU)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert not hasattr(model.config, "normalize_before")


def test_what_the_device_does_not_have_is_refused_before_the_conversion(tokenizer: Any, tmp_path: Path) -> None:
    with pytest.raises(
        InputError, match="fp16 given, which CTranslate2 does not have on cpu. Expected one of fp32, int8"
    ):
        convert(make_model("bart", tokenizer), tokenizer, "here", "fp16", tmp_path / "converted", CPU)
    assert not (tmp_path / "converted").exists()


def labels_with(**engine: Any) -> dict[str, Any]:
    return {"t": {"shards": 2, "num_beams": 2, "engine": {"name": "ctranslate2", "documents": 12, **engine}}}


@pytest.mark.parametrize("compute", ["fp32", "int8"])
def test_the_gate_opens_for_an_engine_that_agrees(compute: str, tokenizer: Any, tmp_path: Path) -> None:
    # The texts of a random model change with the least rounding, and int8 rounds differently on each processor.
    least = 90 if compute == "fp32" else 1
    run = make_run(tmp_path, tokenizer, labels_with(agreement_at_least=least, compute=compute))
    labels = run.label_set("t")
    with pytest.raises(InputError, match="has not been compared with huggingface. Run jobs.convert --labels t first"):
        label_writer(run, labels, CPU)
    figures = make_engine(labels, label_task(run, labels), 0, CPU)
    assert figures["documents"] == 12 and figures["agreement"] >= least
    assert all(speed > 0 for speed in figures["documents_per_second"].values())
    assert label_all(run)["documents"] == 64
    if compute == "int8":
        return
    with safe_open(tmp_path / "teacher" / "model.safetensors", "pt") as file:
        weights = {name: file.get_tensor(name) * 1.01 for name in file.keys()}  # noqa: SIM118 - no mapping
    save_file(weights, tmp_path / "teacher" / "model.safetensors", {"format": "pt"})
    with pytest.raises(InputError, match="made for another model, decoding or compute"):
        label_writer(run, labels, CPU)
    other = make_run(tmp_path / "other", tokenizer, labels_with(compute="int8"))
    other.label_set("t").folder.mkdir(parents=True)
    labels.engine.rename(other.label_set("t").engine)
    with pytest.raises(InputError, match="made for another model, decoding or compute"):
        label_writer(other, other.label_set("t"), CPU)


def test_the_gate_stays_shut_for_one_that_does_not(
    tokenizer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = make_run(tmp_path, tokenizer, labels_with())
    labels = run.label_set("t")
    task = label_task(run, labels)
    monkeypatch.setattr("distill.engines.mean_agreement", lambda ours, theirs: 89.9)
    with pytest.raises(InputError, match="agree with those of huggingface by ROUGE-L 89.90, expected at least 90"):
        make_engine(labels, task, 0, CPU)
    assert not labels.engine.exists() and not list(labels.folder.glob("*partial*"))


def test_equal_summaries_agree_in_any_script() -> None:
    assert mean_agreement(["\u4f60\u597d", "a b"], ["\u4f60\u597d", "a c"]) == 75
