"""Load a model and its tokenizer from a folder or a hub name, or build them from scratch."""

import contextlib
import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import sentencepiece
import torch
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
from distill.files import is_full_disk, sha256_file
from distill.folder import (
    check_languages,
    check_special_tokens,
    check_vocabulary,
    check_weights,
    refuse_no_language,
)
from distill.preflight import WEIGHT_FILES, check_folder, looks_like_folder
from distill.sections import Architecture, Languages, Tokenizer

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


def dtype_of(precision: str) -> torch.dtype:
    """The dtype of a recipe's precision; InputError for bf16 on a GPU that would only emulate it."""
    on_gpu = torch.cuda.is_available()
    if precision == "bf16" and on_gpu and not torch.cuda.is_bf16_supported(including_emulation=False):
        raise InputError(
            f"precision: bf16 given, but {torch.cuda.get_device_name()} does not compute in it. Expected NVIDIA's Ampere "
            "or newer; ask for such GPUs, or use fp32."
        )
    return DTYPES[precision]


def load_model(source: str | Path, dtype: torch.dtype | Literal["auto"] = torch.float32) -> PreTrainedModel:
    """A model in eval mode. InputError where it is not there, cannot be reached or is of no known family; where its
    weights are not those of its config, which transformers would begin at random; or where one of them is no number."""
    shape_of(load_config(source), str(source))
    with _explained(source):
        model, found = AutoModelForSeq2SeqLM.from_pretrained(
            source, dtype=dtype, output_loading_info=True, ignore_mismatched_sizes=True
        )
    check_weights(model, found, str(source))
    whole: PreTrainedModel = model.eval()
    return whole


def load_pair(
    source: str | Path,
    languages: Languages | None = None,
    dtype: torch.dtype = torch.float32,
    own_decoding: str | Path | None = None,
) -> tuple[PreTrainedModel, Any]:
    """A model in eval mode and its tokenizer, both set to `languages` where they are given.

    `own_decoding` is another folder to take the generation config from; see `Run.own_decoding`.

    InputError where one is not there, where the tokenizer does not know the languages, or where it has tokens that the
    model has not.
    """
    model, tokenizer = load_model(source, dtype), load_tokenizer(source, languages)
    if own_decoding is not None and str(own_decoding) != str(source):
        with _explained(own_decoding):
            model.generation_config = GenerationConfig.from_pretrained(own_decoding)
    check_vocabulary(tokenizer, model.get_input_embeddings().weight.shape[0], source)
    check_special_tokens(tokenizer, model.config.to_dict(), str(source))
    if getattr(tokenizer, "tgt_lang", None):
        _begin_with_language(model, tokenizer)
    return model, tokenizer


def _begin_with_language(model: PreTrainedModel, tokenizer: Any) -> None:
    """What is generated begins as the training targets do: with the language's token, or behind it as the start token.

    mBART-50, NLLB and M2M100 write `ro_RO text </s>`; mBART writes `text </s> ro_RO`, and begins with its last token.
    """
    assert model.generation_config is not None
    first, *_, last = tokenizer(text_target=tokenizer.tgt_lang)["input_ids"]
    if last == tokenizer.eos_token_id:
        model.generation_config.forced_bos_token_id = first
    else:
        model.generation_config.decoder_start_token_id = model.config.decoder_start_token_id = last


def load_config(source: str | Path) -> dict[str, Any]:
    """A model's config as a dictionary."""
    if looks_like_folder(str(source)):
        check_folder(Path(source))
    with _explained(source):
        config: dict[str, Any] = AutoConfig.from_pretrained(source).to_dict()
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


def load_tokenizer(source: str | Path, languages: Languages | None = None) -> Any:
    """InputError where it is not there or does not know the languages."""
    with _explained(source):
        tokenizer = AutoTokenizer.from_pretrained(source)
    if languages is None:
        refuse_no_language(tokenizer, source)
        return tokenizer
    check_languages(tokenizer, languages, source)
    return AutoTokenizer.from_pretrained(source, src_lang=languages.source, tgt_lang=languages.target)


def check_same_tokenizer(own: Any, taught: Any, student: str, teacher: str) -> None:
    """InputError where a student that is scored against a teacher reads other tokens."""
    if own.get_vocab() != taught.get_vocab():
        raise InputError(
            f"student {student} and teacher {teacher} have different tokenizers ({len(own)} and {len(taught)} tokens). "
            "The objective compares them token by token; choose a model with the teacher's tokenizer."
        )


@contextlib.contextmanager
def _explained(source: str | Path) -> Iterator[None]:
    """InputError in place of all the kinds of errors that names out of reach and torn files raise; not of a full disk."""
    try:
        yield
    except Exception as error:
        if is_full_disk(error):
            raise
        reason = (str(error) or type(error).__name__).splitlines()[0].rstrip(". ")
        raise InputError(
            f"cannot load {str(source)!r}: {reason}. Expected a folder written by save_pretrained, or "
            "a hub name that this machine can reach; where it cannot, download the model elsewhere and give its folder."
        ) from error


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


def build_model(architecture: Architecture, tokenizer: Any, max_target_tokens: int) -> PreTrainedModel:
    """Return a model with random weights, whose own generation config is beam search with 4 beams.

    The recipe's decoding is not part of it: the recipe may change, and these weights stay. Seed torch before.
    """
    config = {"bart": _bart_config, "t5": _t5_config}[architecture.family](architecture, tokenizer)
    model: PreTrainedModel = AutoModelForSeq2SeqLM.from_config(config)
    model.generation_config = GenerationConfig(
        num_beams=4,
        max_new_tokens=max_target_tokens,
        early_stopping=True,
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
