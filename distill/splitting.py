"""Which examples of one corpus become its validation and test split: whole groups of near-duplicates, seeded."""

import random

import numpy as np
import numpy.typing as npt

from distill.duplicates import Sketches, groups_of_alike
from distill.errors import InputError

TRAIN = "train"


def choose_splits(sketches: Sketches, counts: dict[str, int], seed: int) -> npt.NDArray[np.str_]:
    """Return the name of the split of every document: one of `counts`, with so many documents, or train.

    Documents that are (nearly) the same are in one split, so that a count may be missed if the groups do not add up to it.
    The result depends on the documents, their order, the counts and the seed.

    Raise InputError if no documents are left to train on, or if a split stays empty.
    """
    total = len(sketches)
    asked = ", ".join(f"{split}: {count}" for split, count in counts.items())
    if sum(counts.values()) >= total:
        raise InputError(
            f"corpus.split: {{{asked}}} given, but the training files have {total} examples. Expected some that are left "
            "to train on; lower the counts."
        )
    _, of_document, sizes = np.unique(groups_of_alike(sketches), return_inverse=True, return_counts=True)
    order = list(range(len(sizes)))
    random.Random(seed).shuffle(order)
    split_of_group = np.full(len(sizes), TRAIN, dtype=f"<U{max(map(len, [TRAIN, *counts]))}")
    for split, count in counts.items():
        chosen = fill([group for group in order if split_of_group[group] == TRAIN], sizes, count)
        if not chosen:
            raise InputError(
                f"corpus.split.{split}: {count} given, but nearly the same documents stay together, and their smallest "
                f"group has {sizes.min()} of the {total}. Expected different documents; give {split} files of its own."
            )
        split_of_group[chosen] = split
    chosen_splits: npt.NDArray[np.str_] = split_of_group[of_document.reshape(-1)]
    return chosen_splits


def fill(order: list[int], sizes: npt.NDArray[np.int64], count: int) -> list[int]:
    """Return groups, taken in their order if they fit, with `count` documents or as near to it as they come."""
    chosen: list[int] = []
    left = count
    for group in order:
        if sizes[group] <= left:
            chosen.append(group)
            left -= int(sizes[group])
        if left == 0:
            return chosen
    rest = sorted(set(order) - set(chosen), key=lambda group: int(sizes[group]))
    leaves_some = len(rest) > 1
    if leaves_some and sizes[rest[0]] - left < left:  # a little more is nearer than a little less
        chosen.append(rest[0])
    return chosen
