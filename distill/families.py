"""Where each architecture keeps its layers, positions and depths. Pure: reads configs as dictionaries, no torch."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from distill.errors import InputError


@dataclass(frozen=True, kw_only=True)
class Family:
    """One encoder-decoder architecture of transformers.

    `encoder_depth`, `decoder_depth`, `positions`, `width`, `feed_forward` are the names of config
    fields; `encoder_layer`, `decoder_layer` are the prefixes of a layer's weights, the layer's number following.
    """

    encoder_depth: str = "encoder_layers"
    decoder_depth: str = "decoder_layers"
    encoder_layer: str = "model.encoder.layers."
    decoder_layer: str = "model.decoder.layers."
    positions: str | None = "max_position_embeddings"  # None: relative positions, no limit
    width: str = "d_model"
    feed_forward: tuple[str, str] = ("encoder_ffn_dim", "decoder_ffn_dim")
    # Some configs keep copies of the encoder's depth under a general name.
    depth_aliases: tuple[str, ...] = ("num_hidden_layers",)
    # The decoder begins with a text's own last token (its language), the others with the config's start token.
    starts_with_last_label: bool = False
    # Weights that are computed, not learned; the hub's checkpoints leave them out.
    computed: tuple[str, ...] = ()


BART_LIKE = Family()
T5_LIKE = Family(
    encoder_depth="num_layers",
    decoder_depth="num_decoder_layers",
    encoder_layer="encoder.block.",
    decoder_layer="decoder.block.",
    positions=None,
    feed_forward=("d_ff", "d_ff"),
    depth_aliases=(),
)

# Not here, since a line is not enough: LED (a second mask says which tokens see all others, a window size for each
# layer, other limits for sources and targets), FSMT (two vocabularies, a decoder that projects by itself), ProphetNet
# (its decoder predicts from further streams of states).
FAMILIES: dict[str, Family] = {
    "bart": BART_LIKE,
    "mbart": replace(BART_LIKE, starts_with_last_label=True),  # mBART-50 too
    "pegasus": replace(BART_LIKE, computed=("embed_positions.weight",)),
    "marian": BART_LIKE,
    "m2m_100": BART_LIKE,  # NLLB too
    "t5": T5_LIKE,  # T5 v1.1 and Flan-T5 too
    "mt5": T5_LIKE,
    "longt5": T5_LIKE,
}


# Whether a block begins with its norm (else ends with it), and whether the embeddings have a norm. The configs of
# transformers 5 do not say so any more; CTranslate2's converter reads it there.
NORMS = {"bart": (False, True), "mbart": (True, True), "pegasus": (True, False), "marian": (False, False)}


@dataclass(frozen=True)
class Shape:
    """What the plans need to know of a model, read from its config."""

    model_type: str
    encoder_layers: int
    decoder_layers: int
    width: int
    vocabulary: int
    positions: int | None
    feed_forward: tuple[int, int]

    def parameters(self) -> int:
        """Estimated number of parameters: projections, feed-forward blocks and one shared embedding."""
        encoder_ff, decoder_ff = self.feed_forward
        encoder = self.encoder_layers * (4 * self.width**2 + 2 * self.width * encoder_ff)
        decoder = self.decoder_layers * (8 * self.width**2 + 2 * self.width * decoder_ff)
        return encoder + decoder + (self.vocabulary + 2 * (self.positions or 0)) * self.width

    def with_depths(self, encoder_layers: int, decoder_layers: int) -> "Shape":
        return replace(self, encoder_layers=encoder_layers, decoder_layers=decoder_layers)


def family_of(model_type: str, where: str) -> Family:
    """The family of a config's `model_type`; InputError names the known ones."""
    if model_type not in FAMILIES:
        raise InputError(
            f"{where}: model type {model_type!r} is not known; expected one of {', '.join(sorted(FAMILIES))}. "
            "Choose a teacher of these families, or add a line to distill/families.py."
        )
    return FAMILIES[model_type]


def shape_of(config: Mapping[str, Any], where: str) -> Shape:
    """The shape of a model from its config.json; InputError where the family is unknown or a field is missing."""
    family = family_of(str(config.get("model_type")), where)
    encoder_layers = _field(config, family.encoder_depth, where)
    return Shape(
        model_type=config["model_type"],
        encoder_layers=encoder_layers,
        # T5 configs leave the decoder's depth out where it equals the encoder's.
        decoder_layers=_field({family.decoder_depth: encoder_layers} | _given(config), family.decoder_depth, where),
        width=_field(config, family.width, where),
        vocabulary=_field(config, "vocab_size", where),
        positions=_field(config, family.positions, where) if family.positions else None,
        feed_forward=(
            _field(config, family.feed_forward[0], where),
            _field(config, family.feed_forward[1], where),
        ),
    )


def depth_fields(family: Family, encoder_layers: int, decoder_layers: int) -> dict[str, int]:
    """The config fields to change for a model of other depths."""
    fields = {family.encoder_depth: encoder_layers, family.decoder_depth: decoder_layers}
    return fields | dict.fromkeys(family.depth_aliases, encoder_layers)


def teacher_key(family: Family, key: str, encoder_layers: list[int], decoder_layers: list[int]) -> str:
    """The name of the teacher's weight that the student's weight `key` is copied from.

    >>> teacher_key(BART_LIKE, "model.decoder.layers.1.fc1.weight", [0], [0, 6])
    'model.decoder.layers.6.fc1.weight'
    """
    for prefix, layers in ((family.encoder_layer, encoder_layers), (family.decoder_layer, decoder_layers)):
        match = re.match(re.escape(prefix) + r"(\d+)(\..*)", key)
        if match:
            return f"{prefix}{layers[int(match[1])]}{match[2]}"
    return key


def first_layer_key(family: Family, key: str) -> str:
    """`key` with its layer number replaced by 0.

    T5 keeps the relative position bias of all layers in block 0, so a student's first block takes it from there
    whichever block it was copied from.
    """
    for prefix in (family.encoder_layer, family.decoder_layer):
        key = re.sub("^" + re.escape(prefix) + r"\d+\.", f"{prefix}0.", key)
    return key


def _given(config: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in config.items() if value is not None}


def _field(config: Mapping[str, Any], name: str, where: str) -> int:
    value = config.get(name)
    if not isinstance(value, int):
        raise InputError(
            f"{where}: its config.json has {name}={value!r}, expected a whole number. "
            "Use a folder written by transformers' save_pretrained."
        )
    return value
