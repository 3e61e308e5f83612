"""Whether config, weights and tokenizer of a model folder are of one model."""

from collections.abc import Mapping
from typing import Any

from transformers import PreTrainedModel

from distill.errors import InputError
from distill.families import family_of


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
