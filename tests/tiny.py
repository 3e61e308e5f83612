"""Tiny teachers with a real tokenizer of their kind, in folders like those of the hub: nothing is downloaded."""

import functools
import io
import json
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import sentencepiece
import torch
from tokenizers import Tokenizer as RawTokenizer
from tokenizers import models, pre_tokenizers, trainers
from transformers import (
    BartTokenizer,
    M2M100Tokenizer,
    MarianTokenizer,
    MBart50Tokenizer,
    MBartTokenizer,
    NllbTokenizer,
    PegasusTokenizer,
    T5Tokenizer,
)
from transformers.models.m2m_100.tokenization_m2m_100 import FAIRSEQ_LANGUAGE_CODES as M2M100_LANGUAGES
from transformers.models.mbart50.tokenization_mbart50 import FAIRSEQ_LANGUAGE_CODES as LANGUAGES

from tests.conftest import make_model, make_rows

FAIRSEQ = ("<s>", "<pad>", "</s>", "<unk>")  # the first tokens of what was trained with fairseq


@dataclass(frozen=True)
class Kind:
    """A teacher as the hub has them: what it begins a text with is its own, or a language."""

    family: str
    tokenizer: Callable[[], Any]
    start: str = "</s>"
    forced: str | None = None
    """The first token of every generated text."""
    languages: dict[str, str] | None = None
    """Where there are some, a recipe must give them, and the model learns `start` and `forced` from it."""
    prefix: str = ""
    changes: dict[str, Any] = field(default_factory=dict)


def make_tiny(name: str, encoder: int = 3, decoder: int = 3, noise: float = 0.5, **sizes: Any) -> tuple[Any, Any]:
    """(model, tokenizer) of a kind, far from what training would leave: no weight, bias or head is as it began."""
    kind, tokenizer = KINDS[name], KINDS[name].tokenizer()
    begins = ("</s>", None) if kind.languages else (kind.start, kind.forced)
    start, forced = (token and tokenizer.convert_tokens_to_ids(token) for token in begins)
    changes = {"vocab_size": _vocabulary(tokenizer), "decoder_start_token_id": start} | kind.changes | sizes
    model = make_model(kind.family, tokenizer, encoder, decoder, noise=noise, **changes)
    generator = torch.Generator().manual_seed(1)
    if hasattr(model, "final_logits_bias"):
        model.final_logits_bias.normal_(std=0.3, generator=generator)
    if kind.changes.get("tie_word_embeddings") is False:
        head = torch.randn(model.lm_head.weight.shape, generator=generator)
        model.lm_head.weight = torch.nn.Parameter(0.3 * head)
    with torch.no_grad():  # texts, not languages and the like
        model.get_output_embeddings().weight[tokenizer.all_special_ids] *= 0.1
    model.generation_config.update(decoder_start_token_id=start, forced_bos_token_id=forced)
    if kind.start == "<pad>":
        model.generation_config.bad_words_ids = [[start]]  # as the hub's Marians have it
    return model, tokenizer


def save_tiny(folder: Path, name: str, encoder: int = 3, decoder: int = 3, noise: float = 0.5, **sizes: Any) -> Path:
    model, tokenizer = make_tiny(name, encoder, decoder, noise, **sizes)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def _vocabulary(tokenizer: Any) -> int:
    """Return one more than the highest token: M2M100 does not count its languages."""
    named = 1 + max(*tokenizer.all_special_ids, len(tokenizer) - 1)
    return named + int(getattr(tokenizer, "num_madeup_words", 0))  # M2M100 has embeddings of words that nobody reads


# ------------------------------------------------------------------------------------------------ tokenizers


def _texts(*fields: str) -> list[str]:
    return [row[field] for row in make_rows(100) for field in fields]


@functools.cache
def _sentencepiece(*fields: str, vocabulary: int = 48) -> bytes:
    """A unigram model of the documents, the summaries, or both."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(_texts(*fields)),
        model_writer=model,
        vocab_size=vocabulary,
        model_type="unigram",
        minloglevel=2,
        num_threads=1,
    )
    return model.getvalue()


def _pieces(model: bytes) -> list[tuple[str, float]]:
    """Without the special ones."""
    processor = sentencepiece.SentencePieceProcessor(model_proto=model)
    return [(processor.id_to_piece(i), processor.get_score(i)) for i in range(3, processor.get_piece_size())]


def _unigram(first: Sequence[str], last: Sequence[str] = ()) -> list[tuple[str, float]]:
    return [
        *((token, 0.0) for token in first),
        *_pieces(_sentencepiece("document", "summary")),
        *((t, 0.0) for t in last),
    ]


def _merges(pre_tokenizer: Any, alphabet: list[str]) -> tuple[dict[str, int], list[tuple[str, str]]]:
    """The vocabulary and the merges of byte-pair encoding."""
    tokenizer = RawTokenizer(models.BPE(unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizer
    trainer = trainers.BpeTrainer(
        vocab_size=320, special_tokens=[*FAIRSEQ, "<mask>"], initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(_texts("document", "summary"), trainer)
    trained = json.loads(tokenizer.to_str())["model"]
    return trained["vocab"], [tuple(pair) for pair in trained["merges"]]


def bart() -> Any:
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False)
    return BartTokenizer(*_merges(byte_level, pre_tokenizers.ByteLevel.alphabet()))


def mbart() -> Any:
    return MBartTokenizer(_unigram(FAIRSEQ, [*LANGUAGES[:25], "<mask>"]))


def mbart50() -> Any:
    return MBart50Tokenizer(_unigram(FAIRSEQ, [*LANGUAGES, "<mask>"]))


def pegasus() -> Any:
    return PegasusTokenizer(_unigram(["<pad>", "</s>", "<mask_1>", "<mask_2>"], ["<unk>"]), offset=4)


def t5(extra_ids: int = 10) -> Any:
    return T5Tokenizer(_unigram(["<pad>", "</s>", "<unk>"]), extra_ids=extra_ids)


def marian() -> Any:
    """Each side has a SentencePiece model of its own; one vocabulary holds the pieces of both."""
    sides = [_sentencepiece("document"), _sentencepiece("summary", vocabulary=40)]
    pieces = dict.fromkeys(piece for side in sides for piece, _ in _pieces(side))
    vocabulary = {token: i for i, token in enumerate(["</s>", "<unk>", *pieces, "<pad>"])}
    with tempfile.TemporaryDirectory() as folder:
        files = [Path(folder) / name for name in ("source.spm", "target.spm", "vocab.json")]
        for file, content in zip(files, [*sides, json.dumps(vocabulary).encode()], strict=True):
            file.write_bytes(content)
        return MarianTokenizer(*map(str, files), source_lang="en", target_lang="ro")


def m2m100() -> Any:
    model = _sentencepiece("document", "summary")
    vocabulary = {token: i for i, token in enumerate([*FAIRSEQ, *(piece for piece, _ in _pieces(model))])}
    with tempfile.TemporaryDirectory() as folder:
        files = [Path(folder) / "vocab.json", Path(folder) / "sentencepiece.bpe.model"]
        files[0].write_text(json.dumps(vocabulary), encoding="utf-8")
        files[1].write_bytes(model)
        # The hub's say that their languages are special tokens; without, they would stay in the texts.
        return M2M100Tokenizer(
            *map(str, files),
            additional_special_tokens=[f"__{code}__" for code in M2M100_LANGUAGES["m2m100"]],
        )


def nllb() -> Any:
    return NllbTokenizer(*_merges(pre_tokenizers.Metaspace(), []))


EN_RO = {"source": "en_XX", "target": "ro_RO"}
OWN_HEAD = {"tie_word_embeddings": False, "feed_forward_proj": "gated-gelu"}
LONG = {"encoder_attention_type": "transient-global", "local_radius": 7, "global_block_size": 4}
KINDS = {
    "BART": Kind("bart", bart, forced="<s>"),
    "mBART": Kind("mbart", mbart, start="ro_RO", languages=EN_RO),
    "mBART-50": Kind("mbart", mbart50, forced="ro_RO", languages=EN_RO),
    "Pegasus": Kind("pegasus", pegasus, start="<pad>"),
    "Marian": Kind("marian", marian, start="<pad>"),
    "T5": Kind("t5", t5, start="<pad>", prefix="the quick: "),
    "Flan-T5": Kind("t5", t5, start="<pad>", changes=OWN_HEAD),
    "mT5": Kind("mt5", functools.partial(t5, extra_ids=0), start="<pad>", changes=OWN_HEAD),
    "LongT5": Kind("longt5", t5, start="<pad>", changes=LONG),
    "M2M100": Kind("m2m_100", m2m100, forced="__ro__", languages={"source": "en", "target": "ro"}),
    "NLLB": Kind("m2m_100", nllb, forced="ron_Latn", languages={"source": "eng_Latn", "target": "ron_Latn"}),
}
