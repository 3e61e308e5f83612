"""Languages and prefixes: what a tokenizer of many languages is set to, what the model then begins with."""

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

from distill.errors import InputError
from distill.export import save_model
from distill.forward import decoder_inputs
from distill.pretrained import load_pair, load_tokenizer
from distill.sections import Languages
from distill.tokens import Encoder
from tests.tiny import save_tiny

GERMAN = {
    "mBART": Languages(source="en_XX", target="de_DE"),
    "mBART-50": Languages(source="en_XX", target="de_DE"),
    "M2M100": Languages(source="en", target="de"),
    "NLLB": Languages(source="eng_Latn", target="deu_Latn"),
}
TOKENS = {"mBART": ("en_XX", "de_DE"), "mBART-50": ("en_XX", "de_DE"), "M2M100": ("__en__", "__de__")}
TEXT = "the quick brown fox"


def tokens_of(name: str) -> tuple[str, str]:
    return TOKENS.get(name, (GERMAN[name].source, GERMAN[name].target)) if name in GERMAN else ("", "")


@pytest.mark.parametrize("name", GERMAN)
def test_both_sides_are_encoded_in_their_language(name: str, tmp_path: Path) -> None:
    _, tokenizer = load_pair(save_tiny(tmp_path, name), GERMAN[name])
    encoder = Encoder(tokenizer, 20, 20)
    for side, token in zip(("source", "target"), tokens_of(name), strict=True):
        [ids], _ = encoder([TEXT], side)  # type: ignore[arg-type]
        assert tokenizer.convert_tokens_to_ids(token) in (ids[0], ids[-1])
        assert tokenizer.decode(ids, skip_special_tokens=True).strip() == TEXT


@pytest.mark.parametrize("name", GERMAN)
def test_languages_that_the_tokenizer_has_saved_are_enough(name: str, tmp_path: Path) -> None:
    model = AutoModelForSeq2SeqLM.from_pretrained(save_tiny(tmp_path, name))
    load_tokenizer(tmp_path, GERMAN[name]).save_pretrained(tmp_path)
    model.generation_config.update(forced_bos_token_id=None, decoder_start_token_id=model.config.eos_token_id)
    model.save_pretrained(tmp_path)
    loaded, tokenizer = load_pair(tmp_path)
    begins = {loaded.generation_config.forced_bos_token_id, loaded.generation_config.decoder_start_token_id}
    assert tokenizer.convert_tokens_to_ids(tokens_of(name)[1]) in begins


@pytest.mark.parametrize("name", GERMAN)
def test_generation_begins_as_the_targets_do_also_when_saved(name: str, tmp_path: Path) -> None:
    model, tokenizer = load_pair(save_tiny(tmp_path / "teacher", name), GERMAN[name])
    save_model(model, tokenizer, tmp_path / "student")
    plain = AutoModelForSeq2SeqLM.from_pretrained(tmp_path / "student")
    own = AutoTokenizer.from_pretrained(tmp_path / "student")
    labels = own(text_target=[TEXT], return_tensors="pt")["input_ids"]
    taught = decoder_inputs(plain, labels)[0]
    written = plain.generate(**own([TEXT], return_tensors="pt"), max_new_tokens=4, num_beams=1)[0]
    language = own.convert_tokens_to_ids(tokens_of(name)[1])
    begins = 1 if name == "mBART" else 2
    assert written[:begins].tolist() == taught[:begins].tolist() and language in written[:begins]


@pytest.mark.parametrize("name", GERMAN)
def test_an_unknown_language_is_refused_with_known_ones(name: str, tmp_path: Path) -> None:
    folder = save_tiny(tmp_path, name)
    with pytest.raises(InputError, match=r"languages.target: 'ro_XX' given, which the tokenizer .* does not know"):
        load_tokenizer(folder, Languages(source=GERMAN[name].source, target="ro_XX"))


@pytest.mark.parametrize("name", ["BART", "T5", "Marian", "Pegasus"])
def test_languages_of_a_tokenizer_without_any_are_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"languages: given, but the tokenizer .* has none"):
        load_tokenizer(save_tiny(tmp_path, name), GERMAN["mBART"])


def test_a_target_language_must_be_given(tmp_path: Path) -> None:
    folder = save_tiny(tmp_path, "mBART")
    config = folder / "tokenizer_config.json"
    config.write_text(config.read_text().replace('"tgt_lang": "ro_RO"', '"tgt_lang": null'))
    with pytest.raises(InputError, match=r"languages: \{source: en_XX, target: ...\}"):
        load_tokenizer(folder)


def test_more_tokens_than_embeddings_are_refused(tmp_path: Path) -> None:
    folder = save_tiny(tmp_path, "T5")
    tokenizer: Any = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_tokens([f"new{i}" for i in range(100)])
    tokenizer.save_pretrained(folder)
    with pytest.raises(InputError, match=r"its tokenizer has \d+ tokens, but the model embeds \d+"):
        load_pair(folder)


def test_a_prefix_stands_before_documents_only(tmp_path: Path) -> None:
    _, tokenizer = load_pair(save_tiny(tmp_path, "T5"))
    plain, prefixed = Encoder(tokenizer, 30, 30), Encoder(tokenizer, 30, 30, "the lazy dog: ")
    assert prefixed([TEXT], "source")[0] == plain(["the lazy dog: " + TEXT], "source")[0] != plain([TEXT], "source")[0]
    assert prefixed([TEXT], "target") == plain([TEXT], "target")
    assert torch.tensor(prefixed([TEXT], "source")[0]).max() < len(tokenizer)
