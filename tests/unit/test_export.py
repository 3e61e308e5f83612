"""What leaves a run: the decoding, the tokenizer and the configs that others read, without anything of ours."""

import logging
import warnings
from pathlib import Path
from typing import Any

import ctranslate2
import pytest
import torch
from tokenizers import Tokenizer as RawTokenizer
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer, GenerationConfig

from distill.ctranslate import CONVERTED
from distill.export import exported_decoding, save_model, save_tokenizer
from distill.files import read_json
from distill.generation import generation_config
from distill.pretrained import load_pair
from distill.run import public_name
from distill.sections import Generation, Languages
from distill.student import shrink
from distill.tokens import Encoder
from tests.conftest import make_model, make_rows
from tests.tiny import KINDS, make_tiny, save_tiny

GREEDY = Generation(num_beams=1, max_new_tokens=9)
BEAMS = Generation(num_beams=3, max_new_tokens=9, early_stopping=True)
LIMIT = 12
NOISE = {"Marian": 0.8}  # of the weights, so that different documents get different texts

# (the model's own settings, the recipe's keys) -> what is written.
DECODINGS: list[tuple[dict[str, Any], Generation, dict[str, Any]]] = [
    ({"max_length": 10, "min_length": 5}, Generation(), {"max_new_tokens": 9, "min_new_tokens": 4}),
    ({"max_length": 30, "min_length": 20}, Generation(max_new_tokens=6), {"max_new_tokens": 6, "min_new_tokens": 6}),
    ({"length_penalty": 1.5, "early_stopping": True}, GREEDY, {"num_beams": 1, "max_new_tokens": 9}),
    ({"do_sample": True, "temperature": 0.7, "top_p": 0.5, "typical_p": 0.9}, Generation(), {"do_sample": False}),
    ({}, Generation(), {"max_new_tokens": 8, "min_new_tokens": 0}),
    ({"max_length": 20}, BEAMS, {"num_beams": 3, "early_stopping": True, "length_penalty": 1.0}),
]


@pytest.mark.parametrize(("own", "recipe", "written"), DECODINGS)
def test_what_is_written_decodes_alike_and_is_complete(
    own: dict[str, Any], recipe: Generation, written: dict[str, Any], tokenizer: Any, caplog: pytest.LogCaptureFixture
) -> None:
    model = make_model("bart", tokenizer, noise=0.5)
    model.generation_config.max_new_tokens = None
    model.generation_config.update(**own)
    used = generation_config(model, recipe, 8)
    exported = GenerationConfig.from_dict(exported_decoding(used).to_diff_dict())
    found = exported.to_diff_dict()
    assert {key: found[key] for key in written} == written
    assert {"num_beams", "max_new_tokens", "min_new_tokens", "no_repeat_ngram_size", "do_sample"} <= found.keys()
    assert not {"max_length", "min_length", "temperature", "top_p", "typical_p"} & found.keys()
    assert ("length_penalty" in found) == ("early_stopping" in found) == (found["num_beams"] > 1)
    sources = [torch.tensor([tokenizer(row["document"])["input_ids"][:40]]) for row in make_rows(4)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a shortest length above the longest, for one
        expected = [model.generate(ids, generation_config=used).tolist() for ids in sources]
    caplog.clear()
    model.generation_config = exported  # what is None in a config that is passed would be taken from the model's
    with caplog.at_level(logging.WARNING, "transformers"):
        exported.validate(strict=True)
        assert [model.generate(ids).tolist() for ids in sources] == expected
    assert not caplog.records
    assert GenerationConfig.from_dict(exported_decoding(exported).to_diff_dict()).to_diff_dict() == found


def export(folder: Path, name: str, recipe: Generation = GREEDY) -> Path:
    """A student of a tiny teacher, as it leaves a run."""
    languages = KINDS[name].languages
    teacher, tokenizer = load_pair(
        save_tiny(folder / "teacher", name, noise=NOISE.get(name, 0.5)), Languages(**languages) if languages else None
    )
    tokenizer(text_target=["the quick brown fox"] * 2, truncation=True, max_length=3, padding="max_length")
    tokenizer.model_max_length = LIMIT
    if name == "Marian":  # the hub's begin with a zero embedding; CTranslate2 relies on it
        teacher.get_input_embeddings().weight.data[tokenizer.pad_token_id] = 0
    student = shrink(teacher, [0, 2], [1, 2])
    student.config.prefix = KINDS[name].prefix
    save_model(student, tokenizer, folder / "best", generation_config(student, recipe, 12))
    return folder / "best"


@pytest.mark.parametrize("name", KINDS)
def test_the_tokenizer_has_no_trace_of_the_training(name: str, tmp_path: Path) -> None:
    folder = export(tmp_path, name)
    config = read_json(folder / "tokenizer_config.json")
    assert config["model_max_length"] == LIMIT
    assert not {"max_length", "truncation_strategy", "stride", "is_local", "pad_to_multiple_of"} & config.keys()
    assert all(str(tmp_path) not in file.read_text(encoding="utf-8") for file in folder.glob("*.json"))
    plain = AutoTokenizer.from_pretrained(folder)
    document = KINDS[name].prefix + make_rows(1)[0]["document"]
    [cut], _ = Encoder(plain, LIMIT, 12)([document], "source")
    assert plain(document, truncation=True)["input_ids"] == cut and len(cut) == LIMIT
    assert len(plain(document, verbose=False)["input_ids"]) > LIMIT
    if (folder / "tokenizer.json").exists():
        raw = read_json(folder / "tokenizer.json")
        assert raw["truncation"] is None and raw["padding"] is None
        assert len(RawTokenizer.from_file(str(folder / "tokenizer.json")).encode("the fox " * 100).ids) > 100


def test_truncation_that_a_folder_brings_along_does_not_leave_again(tokenizer: Any, tmp_path: Path) -> None:
    tokenizer(["the fox"], truncation=True, max_length=5)
    tokenizer.save_pretrained(tmp_path / "theirs")
    assert read_json(tmp_path / "theirs" / "tokenizer.json")["truncation"] is not None
    save_tokenizer(AutoTokenizer.from_pretrained(tmp_path / "theirs"), tmp_path / "ours")
    assert read_json(tmp_path / "ours" / "tokenizer.json")["truncation"] is None
    assert not {"max_length", "truncation_strategy"} & read_json(tmp_path / "ours" / "tokenizer_config.json").keys()


def test_a_tokenizer_from_scratch_has_the_class_name_that_transformers_4_knows(tokenizer: Any, tmp_path: Path) -> None:
    save_tokenizer(tokenizer, tmp_path)
    config = read_json(tmp_path / "tokenizer_config.json")
    assert config["tokenizer_class"] == "PreTrainedTokenizerFast"
    assert config["model_input_names"] == ["input_ids", "attention_mask"], "4.x would add token types"
    document = make_rows(1)[0]["document"]
    assert AutoTokenizer.from_pretrained(tmp_path)(document)["input_ids"] == tokenizer(document)["input_ids"]
    committed = read_json(Path("jobs/recipes/demo-teacher/tokenizer_config.json"))
    assert committed["tokenizer_class"] == "PreTrainedTokenizerFast" and committed["model_max_length"] == 128


@pytest.mark.parametrize("name", KINDS)
def test_tokenizers_of_the_hub_are_written_in_words_that_transformers_4_reads(name: str, tmp_path: Path) -> None:
    """There `extra_special_tokens` is a dictionary, and a list of them has its old name; the token ids are the same."""
    tokenizer = KINDS[name].tokenizer()
    save_tokenizer(tokenizer, tmp_path)
    assert isinstance(read_json(tmp_path / "tokenizer_config.json").get("extra_special_tokens", {}), dict)
    save_tiny(tmp_path / "whole", name)  # its config.json tells the class
    save_tokenizer(tokenizer, tmp_path / "whole")
    loaded = AutoTokenizer.from_pretrained(tmp_path / "whole")
    text = "the fox</s> ro_RO __ro__ <extra_id_0> <mask>"
    assert loaded(text)["input_ids"] == tokenizer(text)["input_ids"]
    assert set(tokenizer.all_special_ids) <= set(loaded.all_special_ids)


CTRANSLATE2_KINDS = [name for name, kind in KINDS.items() if kind.family in CONVERTED]
# transformers 5 says of every T5 that its head is tied, so CTranslate2's converter scales the logits of these: greedy
# search does not care, beam search does. With transformers 4 the converter is right.
OWN_HEAD = ("Flan-T5", "mT5")


@pytest.mark.parametrize("name", CTRANSLATE2_KINDS)
def test_ctranslate2s_own_converter_reads_every_family(name: str, tmp_path: Path) -> None:
    recipes = {"greedy": GREEDY} if name in OWN_HEAD else {"greedy": GREEDY, "beams": BEAMS}
    for label, recipe in recipes.items():
        folder = export(tmp_path / label, name, recipe)
        converted = tmp_path / label / "converted"
        ctranslate2.converters.TransformersConverter(str(folder)).convert(str(converted))
        model, tokenizer = AutoModelForSeq2SeqLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
        documents = [model.config.prefix + row["document"] for row in make_rows(5)]
        expected = [
            tokenizer.decode(
                model.generate(**tokenizer(one, truncation=True, return_tensors="pt"))[0], skip_special_tokens=True
            ).strip()
            for one in documents
        ]
        assert len(set(expected)) > 1 or name == "M2M100"
        assert [translate(converted, folder, tokenizer, one) for one in documents] == expected, label


def translate(converted: Path, folder: Path, tokenizer: Any, document: str) -> str:
    """One document by CTranslate2 with the exported decoding."""
    decoding = GenerationConfig.from_pretrained(folder)
    first = decoding.forced_bos_token_id
    if read_json(folder / "config.json").get("tokenizer_class") == "MBartTokenizer":
        first = decoding.decoder_start_token_id
    ids = tokenizer(document, truncation=True)["input_ids"]
    [result] = ctranslate2.Translator(str(converted)).translate_batch(
        [tokenizer.convert_ids_to_tokens(ids)],
        target_prefix=None if first is None else [[tokenizer.convert_ids_to_tokens(first)]],
        beam_size=decoding.num_beams,
        length_penalty=1 if decoding.length_penalty is None else decoding.length_penalty,
        max_decoding_length=decoding.max_new_tokens,
        max_input_length=0,
    )
    text: str = tokenizer.decode(tokenizer.convert_tokens_to_ids(result.hypotheses[0]), skip_special_tokens=True)
    return text.strip()


def test_settings_of_the_teachers_publisher_do_not_stay_in_the_config(tmp_path: Path) -> None:
    """The pipelines of transformers 4 let task_specific_params go over generation_config.json."""
    model, tokenizer = make_tiny("T5")
    model.config.task_specific_params = {"summarization": {"num_beams": 4, "max_length": 200}}
    model.generation_config.bad_words_ids = None
    save_model(model, tokenizer, tmp_path)
    assert "task_specific_params" not in read_json(tmp_path / "config.json")


def test_an_own_head_is_said_to_be_one(tmp_path: Path) -> None:
    for name, tied in (("T5", True), ("Flan-T5", False), ("mT5", False)):
        assert read_json(export(tmp_path / name, name) / "config.json")["tie_word_embeddings"] is tied


@pytest.mark.parametrize(
    ("given", "shown"),
    [
        ("facebook/bart-large-xsum", "facebook/bart-large-xsum"),
        ("jobs/recipes/demo-teacher", "jobs/recipes/demo-teacher"),
        ("/scratch/jane/models/bart-base", "bart-base"),
        ("/scratch/jane/runs/news/teachers/bart/best", "news/teachers/bart/best"),
        ("../../jane/models/bart-base", "bart-base"),
    ],
)
def test_a_models_name_does_not_tell_of_the_machine(given: str, shown: str) -> None:
    assert public_name(given) == shown
