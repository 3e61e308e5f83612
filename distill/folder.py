"""Whether config, weights and tokenizer of a model folder are of one model, and know the recipe's languages."""

import difflib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

from distill.errors import InputError
from distill.families import family_of
from distill.sections import Languages


def check_weights(model: PreTrainedModel, found: Mapping[str, Any], source: str) -> None:
    """InputError where weights are missing, of other sizes, of layers that the config has not, or no numbers.

    `found` is what transformers tells after loading; it would begin what is missing at random.
    """
    family = family_of(model.config.model_type, source)
    layers = (family.encoder_layer, family.decoder_layer)
    wrong = {
        "are missing": [key for key in found["missing_keys"] if not key.endswith(family.computed)],
        "have other sizes": [key for key, *_ in found["mismatched_keys"]],
        "are of layers that it has not": [key for key in found["unexpected_keys"] if key.startswith(layers)],
    }
    if any(wrong.values()):
        named = (f"{len(keys)} {what} ({', '.join(sorted(keys)[:3])})" for what, keys in wrong.items() if keys)
        raise InputError(
            f"{source}: its weights are not those of its config.json: {'; '.join(named)}. Expected both of one model; write "
            "them again with one save_pretrained."
        )
    for name, weights in model.named_parameters():
        if not weights.isfinite().all():
            raise InputError(
                f"{source}: {name} holds NaN or infinite numbers. Expected whole weights; save them again."
            )


def check_special_tokens(tokenizer: Any, config: Mapping[str, Any], source: str) -> None:
    """InputError where a tokenizer pads or ends texts with other tokens than its model."""
    for name in ("pad_token_id", "eos_token_id"):
        own, expected = getattr(tokenizer, name), config.get(name)
        if expected is not None and own != expected:
            raise InputError(
                f"{source}: its tokenizer ({type(tokenizer).__name__}) has {name} {own}, but its config.json {expected}. "
                "Expected the model's own tokenizer; copy it into the folder."
            )


def check_vocabulary(tokenizer: Any, embedded: int, source: str | Path) -> None:
    """InputError where a tokenizer has tokens that its model has no embedding of."""
    if len(tokenizer) > embedded:
        raise InputError(
            f"{source}: its tokenizer has {len(tokenizer)} tokens, but the model embeds {embedded}. Expected the model's own "
            "tokenizer; copy it into the folder, or enlarge the model with resize_token_embeddings and save it."
        )


def refuse_no_language(tokenizer: Any, source: str | Path) -> None:
    """A tokenizer of many languages takes the source's for the target's where none is given."""
    if getattr(tokenizer, "src_lang", None) is not None and tokenizer.tgt_lang is None:
        raise InputError(
            f"{source}: its tokenizer writes many languages and none is given. Expected both, under the teacher: "
            f"languages: {{source: {tokenizer.src_lang}, target: ...}}."
        )


def check_languages(tokenizer: Any, languages: Languages, source: str | Path) -> None:
    """InputError where a tokenizer has no languages, or not these."""
    if not hasattr(tokenizer, "src_lang"):
        raise InputError(
            f"languages: given, but the tokenizer of {source} ({type(tokenizer).__name__}) has none. Remove them; a Marian of "
            "several languages takes a prefix such as '>>ron<< '."
        )
    special = tokenizer.get_added_vocab()
    codes = getattr(tokenizer, "lang_code_to_id", None) or {code: i for code, i in special.items() if "<" not in code}
    for key, code in (("source", languages.source), ("target", languages.target)):
        if code not in codes:
            close = difflib.get_close_matches(code, codes, cutoff=0.3)
            raise InputError(
                f"languages.{key}: {code!r} given, which the tokenizer of {source} does not know. Expected one of its "
                f"{len(codes)} codes, such as {', '.join(close or sorted(codes)[:5])}."
            )
