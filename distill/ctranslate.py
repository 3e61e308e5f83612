"""The engine of CTranslate2 (optional: `pip install -e .[ctranslate2]`): conversion of a teacher, and beam search."""

import copy
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from transformers import GenerationConfig, PreTrainedModel

from distill.errors import InputError
from distill.families import NORMS
from distill.generation import Candidate, decode_texts, longest_output, shortest_output
from distill.head import output_scale

COMPUTE = {"fp32": "float32", "fp16": "float16", "int8": "int8"}

CONVERTED = (*NORMS, "m2m_100", "t5", "mt5")


def convert(
    model: PreTrainedModel, tokenizer: Any, weights: str, compute: str, folder: Path, device: torch.device
) -> None:
    """Write a model, as it is in memory, to a new `folder` in CTranslate2's format for a device.

    `weights` is where it came from. InputError where the device lacks the compute type.
    """
    kind = model.config.model_type
    if kind not in CONVERTED:
        raise InputError(
            f"{weights}: a model of type {kind}, which CTranslate2 does not know. Expected one of {', '.join(CONVERTED)}; "
            "use the engine huggingface."
        )
    device_types = _ctranslate2().get_supported_compute_types(device.type)
    if COMPUTE[compute] not in device_types:
        raise InputError(
            f"engine.compute: {compute} given, which CTranslate2 does not have on {device.type}. Expected one of "
            f"{', '.join(name for name, kind in COMPUTE.items() if kind in device_types)}."
        )
    if kind == "marian" and tokenizer.pad_token_id != model.config.vocab_size - 1:
        raise InputError(
            f"{weights}: <pad> is token {tokenizer.pad_token_id} of {model.config.vocab_size}, but CTranslate2 takes the "
            "last token of a Marian for it. Expected a Marian of the usual form; use the engine huggingface."
        )
    model = copy.deepcopy(model).float()  # the converter quantizes in place
    if kind in NORMS:
        model.config.normalize_before, model.config.normalize_embedding = NORMS[kind]
    # From this the converter tells whether the outputs of a T5 are scaled.
    model.config.tie_word_embeddings = output_scale(model.config.to_dict()) != 1.0
    _converter()(model, tokenizer, weights).convert(str(folder), quantization=COMPUTE[compute])


def _converter() -> Any:
    module = _ctranslate2()

    class Converter(module.converters.TransformersConverter):  # type: ignore[misc, name-defined]
        """Converts what is in memory, with the start token that the model itself begins with."""

        def __init__(self, model: PreTrainedModel, tokenizer: Any, weights: str) -> None:
            super().__init__(weights)
            self.model, self.tokenizer = model, tokenizer

        def load_model(self, *_: Any, **__: Any) -> Any:
            return self.model

        def load_tokenizer(self, *_: Any, **__: Any) -> Any:
            return self.tokenizer

        def _load(self) -> Any:
            spec = super()._load()
            # CTranslate2 does not load a model whose config has null here, as that of mBART-50; it does not use it.
            spec.config.bos_token = spec.config.bos_token or self.tokenizer.eos_token
            if self.model.config.model_type != "marian":  # which starts from a zero embedding
                start = self.model.generation_config.decoder_start_token_id
                start = self.model.config.decoder_start_token_id if start is None else start
                spec.config.decoder_start_token = self.tokenizer.convert_ids_to_tokens(start)
            return spec

    return Converter


@dataclass(frozen=True)
class CTranslate2:
    """Documents -> summaries by a converted model; see `distill.generation.Engine`."""

    folder: Path
    tokenizer: Any
    config: GenerationConfig
    compute: str
    device: torch.device
    _translator: Any = field(init=False, repr=False)

    def __post_init__(self) -> None:
        translator = _ctranslate2().Translator(
            str(self.folder),
            device=self.device.type,
            device_index=self.device.index or 0,
            compute_type=COMPUTE[self.compute],
            intra_threads=torch.get_num_threads(),
        )
        object.__setattr__(self, "_translator", translator)

    def __call__(self, source: Sequence[list[int]]) -> list[list[Candidate]]:
        config, words = self.config, self.tokenizer.convert_ids_to_tokens
        texts = [words(row) for row in source]
        forced = config.forced_bos_token_id
        prefix = None if forced is None else [[words(forced)]] * len(texts)
        longest = longest_output(config)
        results = self._translator.translate_batch(
            texts,
            target_prefix=prefix,
            beam_size=config.num_beams or 1,
            num_hypotheses=config.num_return_sequences or 1,
            length_penalty=1.0 if config.length_penalty is None else config.length_penalty,
            repetition_penalty=config.repetition_penalty or 1.0,
            no_repeat_ngram_size=config.no_repeat_ngram_size or 0,
            max_decoding_length=longest,
            min_decoding_length=shortest_output(config),
            max_input_length=0,
            return_end_token=True,
        )
        hypotheses = [one for result in results for one in result.hypotheses]
        ends = set(words(torch.tensor(config.eos_token_id).flatten().tolist()))
        bare = [tokens[:-1] if tokens and tokens[-1] in ends else tokens for tokens in hypotheses]
        count = config.num_return_sequences or 1
        scored = self._translator.score_batch([text for text in texts for _ in range(count)], bare, max_input_length=0)
        ids = [self.tokenizer.convert_tokens_to_ids(tokens) for tokens in bare]
        each = [
            Candidate(
                text=text,
                # The score of an end token follows, also where the summary has none.
                log_probability=sum(score.log_probs[: len(tokens)]) / len(tokens),
                tokens=len(tokens),
                finished=tokens[-1] in ends,
            )
            for text, tokens, score in zip(decode_texts(self.tokenizer, ids), hypotheses, scored, strict=True)
        ]
        return [each[i : i + count] for i in range(0, len(each), count)]


def _ctranslate2() -> Any:
    try:
        import ctranslate2
        import ctranslate2.converters
    except ImportError:
        raise InputError(
            "the engine ctranslate2 is not installed. Install it with `pip install -e .[ctranslate2]`, or use the "
            "engine huggingface."
        ) from None
    return ctranslate2
