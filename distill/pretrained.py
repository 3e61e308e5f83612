"""Load a model and its tokenizer from a folder or a hub name, or build them from scratch."""

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import sentencepiece
import torch
from safetensors import SafetensorError
from tokenizers import Tokenizer as RawTokenizer
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import (
    AutoConfig,
    AutoModelForSeq2SeqLM,
    AutoTokenizer,
    GenerationConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)
from transformers.utils.hub import cached_file, extract_commit_hash

from distill.errors import InputError
from distill.families import shape_of
from distill.files import sha256_file
from distill.preflight import WEIGHT_FILES, check_folder, looks_like_folder
from distill.sections import Architecture, Generation, Tokenizer

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


def load_model(source: str | Path, dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    """A model in eval mode; InputError where it is not there, cannot be reached or is of no known family."""
    shape_of(load_config(source), str(source))
    try:
        model: PreTrainedModel = AutoModelForSeq2SeqLM.from_pretrained(source, dtype=dtype)
    except (OSError, ValueError, SafetensorError) as error:
        raise InputError(_unreachable(source, error)) from error
    return model.eval()


def load_config(source: str | Path) -> dict[str, Any]:
    """A model's config as a dictionary."""
    if looks_like_folder(str(source)):
        check_folder(Path(source))
    try:
        config: dict[str, Any] = AutoConfig.from_pretrained(source).to_dict()
    except (OSError, ValueError) as error:
        raise InputError(_unreachable(source, error)) from error
    return config


def fingerprint(source: str | Path) -> str:
    """Hash of the weights in a folder; name and revision of a hub model."""
    folder = Path(source)
    if not folder.is_dir():
        return f"{source}@{extract_commit_hash(cached_file(source, 'config.json'), None)}"
    digest = hashlib.sha256()
    for file in sorted(folder.iterdir()):
        if file.name in WEIGHT_FILES or file.suffix in (".safetensors", ".bin"):
            digest.update(file.name.encode() + sha256_file(file).encode())
    return digest.hexdigest()


def load_tokenizer(source: str | Path) -> Any:
    try:
        return AutoTokenizer.from_pretrained(source)
    except (OSError, ValueError) as error:
        raise InputError(_unreachable(source, error)) from error


def check_same_tokenizer(own: Any, taught: Any, student: str, teacher: str) -> None:
    """InputError where a student that is scored against a teacher reads other tokens."""
    if own.get_vocab() != taught.get_vocab():
        raise InputError(
            f"student {student} and teacher {teacher} have different tokenizers ({len(own)} and {len(taught)} tokens). "
            "The objective compares them token by token; choose a model with the teacher's tokenizer."
        )


def _unreachable(source: str | Path, error: Exception) -> str:
    return (
        f"cannot load {str(source)!r}: {str(error).splitlines()[0]} Expected a folder written by save_pretrained, or "
        "a hub name that this machine can reach; where it cannot, download the model elsewhere and give its folder."
    )


# ------------------------------------------------------------------------------------------------ from scratch

SPECIAL_TOKENS = {
    "bart": {"bos_token": "<s>", "pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"},
    "t5": {"pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"},
}


def train_tokenizer(settings: Tokenizer, family: str, texts: Iterator[str]) -> PreTrainedTokenizerFast:
    """A tokenizer for a family, trained on `texts`; special tokens have the first ids."""
    special = SPECIAL_TOKENS[family]
    trained = {"sentencepiece": _sentencepiece, "bpe": _byte_pairs}[settings.kind](settings, special, texts)
    bos, eos = special.get("bos_token"), special["eos_token"]
    trained.post_processor = processors.TemplateProcessing(
        single=f"{bos} $A {eos}" if bos else f"$A {eos}",
        special_tokens=[(token, trained.token_to_id(token)) for token in (bos, eos) if token],
    )
    return PreTrainedTokenizerFast(tokenizer_object=trained, clean_up_tokenization_spaces=False, **special)


def build_model(
    architecture: Architecture, tokenizer: Any, generation: Generation, max_target_tokens: int
) -> PreTrainedModel:
    """A model with random weights; its own generation config is beam search with `generation` over the defaults.

    Seed torch before.
    """
    config = {"bart": _bart_config, "t5": _t5_config}[architecture.family](architecture, tokenizer)
    model: PreTrainedModel = AutoModelForSeq2SeqLM.from_config(config)
    given = generation.model_dump(exclude_none=True)
    model.generation_config = GenerationConfig(
        **({"num_beams": 4, "max_new_tokens": max_target_tokens, "early_stopping": True} | given),
        decoder_start_token_id=config.decoder_start_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        # BART summaries begin with <s>, which follows the start token.
        forced_bos_token_id=tokenizer.bos_token_id,
    )
    return model


def _bart_config(architecture: Architecture, tokenizer: Any) -> Any:
    return AutoConfig.for_model(
        "bart",
        vocab_size=len(tokenizer),
        d_model=architecture.width,
        encoder_layers=architecture.encoder_layers,
        decoder_layers=architecture.decoder_layers,
        encoder_attention_heads=architecture.heads,
        decoder_attention_heads=architecture.heads,
        encoder_ffn_dim=architecture.feed_forward,
        decoder_ffn_dim=architecture.feed_forward,
        max_position_embeddings=architecture.positions,
        dropout=architecture.dropout,
        bos_token_id=tokenizer.bos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
        decoder_start_token_id=tokenizer.eos_token_id,
    )


def _t5_config(architecture: Architecture, tokenizer: Any) -> Any:
    return AutoConfig.for_model(
        "t5",
        vocab_size=len(tokenizer),
        d_model=architecture.width,
        d_kv=architecture.width // architecture.heads,
        num_layers=architecture.encoder_layers,
        num_decoder_layers=architecture.decoder_layers,
        num_heads=architecture.heads,
        d_ff=architecture.feed_forward,
        dropout_rate=architecture.dropout,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
        decoder_start_token_id=tokenizer.pad_token_id,
    )


def _sentencepiece(settings: Tokenizer, special: dict[str, str], texts: Iterator[str]) -> RawTokenizer:
    """SentencePiece's unigram model, carried over into a tokenizers object."""
    trained = _train_sentencepiece(settings.vocabulary, list(special.values()), texts)
    pieces = [(trained.id_to_piece(i), trained.get_score(i)) for i in range(trained.get_piece_size())]
    tokenizer = RawTokenizer(models.Unigram(pieces, unk_id=trained.unk_id()))
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Replace("\n", " ")])
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    return tokenizer


def _train_sentencepiece(vocabulary: int, special: list[str], texts: Iterator[str]) -> Any:
    model = _Bytes()
    ids: dict[str, Any] = {f"{name}_id": special.index(f"<{name}>") for name in ("pad", "unk")}
    ids |= {"eos_id": special.index("</s>"), "bos_id": special.index("<s>") if "<s>" in special else -1}
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=texts,
            model_writer=model,
            vocab_size=vocabulary,
            model_type="unigram",
            normalization_rule_name="nfkc",
            max_sentence_length=1 << 16,
            num_threads=1,  # the result must not depend on the machine
            minloglevel=2,
            **ids,
        )
    except (RuntimeError, ValueError) as error:
        raise InputError(
            f"tokenizer.vocabulary: {vocabulary} given, but the corpus does not yield so many pieces "
            f"({str(error).splitlines()[-1]}). Choose fewer, or a larger corpus."
        ) from error
    return sentencepiece.SentencePieceProcessor(model_proto=bytes(model.content))


class _Bytes:
    """A writer that keeps what it is given."""

    def __init__(self) -> None:
        self.content = bytearray()

    def write(self, data: bytes) -> None:
        self.content += data


def _byte_pairs(settings: Tokenizer, special: dict[str, str], texts: Iterator[str]) -> RawTokenizer:
    tokenizer = RawTokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=settings.vocabulary,
        special_tokens=list(special.values()),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer
