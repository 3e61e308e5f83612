"""What a teacher says about the training targets, computed once and read by all students and epochs.

A cache is a folder of shards. A shard is a file of fixed-size rows, one for each target token of its examples, in an
order that follows from the examples' lengths alone; it grows batch by batch, is cut back to its last whole batch when
its job was killed, and appears under its final name, beside a manifest, when it is whole. No shard knows of the others.

Shapes: N target tokens, D dimensions, K largest logits.
"""

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from transformers import PreTrainedModel

from distill.batching import collate, padded_tokens
from distill.distillation import Distillation
from distill.errors import InputError
from distill.families import shape_of
from distill.files import atomic_file, read_json
from distill.head import chunk_tokens, chunks, logits_bias, output_scale
from distill.objective import Request
from distill.recipe import Cache
from distill.shards import Shard, content_key, equal_shards, fill
from distill.signal import HiddenSignal, Signal, TopKSignal, top_k
from distill.teacher import FrozenTeacher
from distill.tokens import Tokens, hash_rows

HEAD = "head.safetensors"  # the teacher's projection, for the hidden states


@dataclass(frozen=True)
class Contents:
    """What a cache was made of and how: equal contents, equal rows."""

    keep: str
    k: int | None
    temperatures: list[float] | None
    """Of top_k: those for which the mass of the tail is there."""
    precision: str
    shards: int
    corpus: str
    """Hash of the training split's file."""
    tokens: str
    """Hash of its token ids: other for another tokenizer, or other limits."""
    teacher: str
    """Hash of the teacher's weights, or the name and revision of a hub model."""

    def shard(self, folder: Path, number: int) -> Shard:
        return Shard(folder, number, self.shards, ".bin")

    def differences(self, other: "Contents") -> list[str]:
        return [name for name, value in asdict(self).items() if value != getattr(other, name)]


def contents(cache: Cache, temperatures: Sequence[float], precision: str, identity: dict[str, str]) -> Contents:
    """`identity` has the hashes: corpus, tokens, teacher."""
    is_top_k = cache.keep == "top_k"
    return Contents(
        keep=cache.keep,
        k=cache.k if is_top_k else None,
        temperatures=sorted(set(temperatures)) if is_top_k else None,
        precision=precision,
        shards=cache.shards,
        **identity,
    )


def hash_tokens(tokens: Tokens) -> str:
    """One hash of all token ids and where examples begin and end."""
    return hash_rows(itertools.chain(tokens.source, tokens.target))


def shard_order(tokens: Tokens, shard: int, shards: int) -> list[int]:
    """The examples of a shard, longest first; every shard gets as many tokens as the others."""
    return equal_shards([source + target for source, target in tokens.lengths()], shards)[shard]


def _row_type(made_of: Contents, width: int) -> np.dtype[Any]:
    """One target token's row."""
    if made_of.keep == "hidden":
        kind = {"fp32": "<f4", "bf16": "<u2"}[made_of.precision]  # numpy has no bf16: its bits
        return np.dtype([("hidden", kind, (width,))])
    assert made_of.k is not None and made_of.temperatures is not None
    return np.dtype(
        [
            ("ids", "<i4", (made_of.k,)),
            ("logits", "<f4", (made_of.k,)),
            ("log_tail", "<f4", (len(made_of.temperatures),)),
        ]
    )


# ------------------------------------------------------------------------------------------------ writing


@dataclass(frozen=True)
class CacheWriter:
    """Fills the shards of a teacher's cache."""

    folder: Path
    made_of: Contents
    model: PreTrainedModel
    tokens: Tokens
    pad: int
    batch_tokens: int
    """Most tokens (source and target, padding included) of one batch."""
    device: torch.device
    before_batch: Callable[[], None] = lambda: None
    """May raise, to stop."""

    def write(self, number: int) -> None:
        """Fill a shard, from where a killed attempt left off."""
        shard = self.made_of.shard(self.folder, number)
        if self.made_of.keep == "hidden" and not shard.is_complete():
            self._write_head()
        frozen = FrozenTeacher(self.model, self._last_layer())
        plan = self._batches(shard_order(self.tokens, number, self.made_of.shards))
        fill(
            shard,
            contents=asdict(self.made_of),
            key=content_key([asdict(self.made_of), self.batch_tokens]),
            plan=plan,
            whole=lambda path: self._whole(path, plan),
            make=lambda batch: self._rows(frozen, batch).tobytes(),
            before_batch=self.before_batch,
        )

    def _whole(self, path: Path, plan: list[list[int]]) -> tuple[int, int]:
        """(whole batches, their bytes) of a growing file."""
        done, size, on_disk = 0, 0, path.stat().st_size
        for batch in plan:
            after = size + self._row.itemsize * sum(len(self.tokens.target[i]) for i in batch)
            if after > on_disk:
                break
            done, size = done + 1, after
        return done, size

    def _rows(self, frozen: FrozenTeacher, batch: list[int]) -> np.ndarray[Any, Any]:
        collated = collate(self.tokens, batch, self.pad, self.device)
        request = Request(batch, collated["input_ids"], collated["attention_mask"], collated["labels"], None)
        heard = frozen(request)
        rows = np.empty(heard.hidden_ND.shape[0], dtype=self._row)
        if self.made_of.keep == "hidden":
            rows["hidden"] = _to_numpy(heard.decoder_states[0])
        else:
            self._fill_top_k(rows, heard.hidden_ND)
        return rows

    @torch.no_grad()
    def _fill_top_k(self, rows: np.ndarray[Any, Any], hidden_ND: torch.Tensor) -> None:
        assert self.made_of.k is not None and self.made_of.temperatures is not None
        weight, bias = self.model.get_output_embeddings().weight, logits_bias(self.model)
        for part in chunks(len(rows), chunk_tokens(weight.shape[0])):
            logits = hidden_ND[part] @ weight.T
            logits = logits if bias is None else logits + bias
            for column, temperature in enumerate(self.made_of.temperatures):  # the k largest are the same for all
                ids, values, tail = top_k(logits, self.made_of.k, temperature)
                rows["ids"][part], rows["logits"][part] = ids.cpu().numpy(), values.cpu().numpy()
                rows["log_tail"][part, column] = tail.cpu().numpy()

    def _batches(self, order: list[int]) -> list[list[int]]:
        lengths = self.tokens.lengths()
        batches: list[list[int]] = []
        for index in order:
            if batches and padded_tokens([*batches[-1], index], lengths) <= self.batch_tokens:
                batches[-1].append(index)
            else:
                batches.append([index])
        return batches

    def _write_head(self) -> None:
        bias = logits_bias(self.model)
        head = {"weight": self.model.get_output_embeddings().weight} | ({} if bias is None else {"bias": bias})
        with atomic_file(self.folder / HEAD) as partial:
            save_file({name: tensor.detach().cpu().contiguous() for name, tensor in head.items()}, partial)
            partial.chmod(0o644)

    def _last_layer(self) -> Distillation:
        shape = shape_of(self.model.config.to_dict(), "the teacher")
        return Distillation(decoder_pairs=((0, shape.decoder_layers - 1),))

    @property
    def _row(self) -> np.dtype[Any]:
        return _row_type(self.made_of, self.model.config.d_model)


def _to_numpy(tensor: torch.Tensor) -> np.ndarray[Any, Any]:
    bits = tensor.view(torch.uint16) if tensor.dtype == torch.bfloat16 else tensor
    return bits.cpu().numpy()


# ------------------------------------------------------------------------------------------------ reading


class CachedTeacher:
    """A teacher whose words were kept; it answers from its files, memory-mapped."""

    def __init__(
        self,
        folder: Path,
        made_of: Contents,
        tokens: Tokens,
        config: Mapping[str, Any],
        device: torch.device,
        temperature: float | None,
        pairs: Distillation,
    ) -> None:
        """`config` is the teacher's; InputError where the cache is not there, not whole, or of other contents."""
        made_of = _check(folder, made_of, temperature)
        self._made_of, self._device, self._temperature, self._pairs = made_of, device, temperature, pairs
        self._row = _row_type(made_of, config["d_model"])
        self._shards: list[np.ndarray[Any, Any]] = []
        self._place: dict[int, tuple[int, int, int]] = {}
        for shard in range(made_of.shards):
            path = made_of.shard(folder, shard).data
            # A shard without examples is an empty file, which cannot be mapped.
            rows = np.memmap(path, dtype=self._row, mode="r") if path.stat().st_size else np.empty(0, dtype=self._row)
            self._shards.append(rows)
            for example, start, end in _places(tokens, shard_order(tokens, shard, made_of.shards)):
                self._place[example] = (shard, start, end)
        self._head: dict[str, torch.Tensor] = {}
        if made_of.keep == "hidden":
            self._head = {name: tensor.to(device) for name, tensor in load_file(folder / HEAD).items()}
            self._scale = output_scale(config)

    def signal(self, request: Request) -> Signal:
        counted = request.counted_BT.any(dim=1).tolist()
        wanted = [example for example, counts in zip(request.examples, counted, strict=True) if counts]
        rows = self._read(wanted)
        assert len(rows) == int(request.counted_BT.sum()), "the cache holds other targets"
        if self._made_of.keep == "hidden":
            hidden_ND = self._tensor(rows["hidden"])
            states = [hidden_ND] * len(self._pairs.decoder_pairs)  # of the last layer: no other is asked for
            return HiddenSignal(hidden_ND * self._scale, self._head["weight"], self._head.get("bias"), states)
        assert self._made_of.temperatures is not None and self._temperature is not None
        column = self._made_of.temperatures.index(self._temperature)
        return TopKSignal(
            ids_NK=self._tensor(rows["ids"]).long(),
            logits_NK=self._tensor(rows["logits"]),
            log_tail_N=self._tensor(rows["log_tail"][:, column]),
            temperature=self._temperature,
        )

    def _read(self, examples: list[int]) -> np.ndarray[Any, Any]:
        if not examples:
            return np.empty(0, dtype=self._row)
        places = [self._place[example] for example in examples]
        return np.concatenate([self._shards[shard][start:end] for shard, start, end in places])

    def _tensor(self, values: np.ndarray[Any, Any]) -> torch.Tensor:
        tensor = torch.from_numpy(np.ascontiguousarray(values))
        if tensor.dtype == torch.uint16:
            tensor = tensor.view(torch.bfloat16)
        return tensor.to(self._device)


def _places(tokens: Tokens, order: list[int]) -> Iterator[tuple[int, int, int]]:
    """(example, first row, end row) of a shard."""
    start = 0
    for example in order:
        end = start + len(tokens.target[example])
        yield example, start, end
        start = end


def _check(folder: Path, wanted: Contents, temperature: float | None) -> Contents:
    """The contents that the cache says it has; InputError with the reason where it cannot be right."""
    first: Contents | None = None
    for shard in range(wanted.shards):
        path, manifest = wanted.shard(folder, shard).data, wanted.shard(folder, shard).manifest
        if not manifest.exists() or not path.exists():
            raise InputError(
                f"{folder} has no shard {shard} of {wanted.shards}; run jobs.cache --teacher NAME --shard {shard}."
            )
        found = read_json(manifest)
        stored = Contents(**found["contents"])
        _check_contents(path, stored, wanted, temperature)
        first = first or stored
        if stored != first:
            raise InputError(
                f"{path} was made for the temperatures {stored.temperatures}, the first shard for {first.temperatures}. "
                f"Expected one set; delete {folder} and run jobs.cache again."
            )
        if path.stat().st_size != found["bytes"]:
            raise InputError(
                f"{path} is damaged: it has {path.stat().st_size} bytes, expected {found['bytes']}. "
                f"Delete {path} and {manifest}, and run jobs.cache again."
            )
    if wanted.keep == "hidden" and not (folder / HEAD).exists():
        raise InputError(f"{folder} has no {HEAD}; delete {folder} and run jobs.cache again.")
    assert first is not None
    return first


REASONS = {
    "corpus": "the training documents have changed since it was made",
    "tokens": "the documents are cut into other tokens (another tokenizer, or other limits)",
    "teacher": "the teacher has other weights than when it was made",
}


def _check_contents(path: Path, stored: Contents, wanted: Contents, temperature: float | None) -> None:
    differences = [name for name in stored.differences(wanted) if name != "temperatures"]
    reasons = [REASONS.get(n, f"{n} was {getattr(stored, n)}, is {getattr(wanted, n)}") for n in differences]
    if temperature is not None and stored.temperatures is not None and temperature not in stored.temperatures:
        reasons.append(f"it was made for the temperatures {stored.temperatures}, not for {temperature}")
    if reasons:
        raise InputError(
            f"{path} cannot be used: {'; '.join(reasons)}. "
            f"Expected a cache of what the recipe names now; delete {path.parent} and run jobs.cache again."
        )
