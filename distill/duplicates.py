"""Documents that stand twice, or nearly: sketches of their word 5-grams, and which of them are alike.

A sketch has HASHES minima of random hash functions over the set of a document's 5-grams; the share of equal minima of two
sketches estimates their Jaccard similarity (Broder 1997). Pairs are looked for among documents that agree in a whole band of
minima (Leskovec et al., Mining of Massive Datasets, 3.4).
"""

import re
import zlib
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

Sketches = npt.NDArray[np.uint32]  # (documents, HASHES)

WORDS = 5
HASHES = 24
BAND = 4  # minima of a band: documents of similarity 0.8 share one of the six in 96 % of cases, of 0.5 in 32 %
MOST_COMPARED = 2000  # documents that share a band and are compared with each other
ALIKE = 0.8  # share of equal minima from which on two documents count as the same

_random = np.random.default_rng(0)
FACTORS = _random.integers(1, 2**63, HASHES, dtype=np.uint64) | np.uint64(1)
TERMS = _random.integers(0, 2**63, HASHES, dtype=np.uint64)
POWERS = np.uint64(0x9E3779B97F4A7C15) ** np.arange(1, WORDS + 1, dtype=np.uint64)
WORD = re.compile(r"\w+")


def sketch(text: str) -> npt.NDArray[np.uint32]:
    """HASHES minima over a document's word 5-grams, upper case and punctuation aside."""
    words = [zlib.crc32(word.encode()) for word in WORD.findall(text.lower())]
    words += [0] * (WORDS - len(words))
    grams = np.lib.stride_tricks.sliding_window_view(np.array(words, dtype=np.uint64), WORDS) @ POWERS
    grams ^= grams >> np.uint64(29)
    hashes = np.outer(np.unique(grams), FACTORS) + TERMS
    least: npt.NDArray[np.uint32] = (hashes >> np.uint64(32)).min(axis=0).astype(np.uint32)
    return least


def alike_within(sketches: Sketches) -> int:
    """How many documents are (nearly) one that stands before them."""
    later = np.zeros(len(sketches), dtype=bool)
    for keys in _bands(sketches):
        order = np.argsort(keys, kind="stable")
        first = order[np.searchsorted(keys[order], keys)]  # the first document with the same band
        later |= (first < np.arange(len(keys))) & _alike(sketches, sketches[first])
    return int(later.sum())


def alike_between(sketches: Sketches, others: Sketches) -> int:
    """How many documents are (nearly) among the others."""
    found = np.zeros(len(sketches), dtype=bool)
    for keys, other_keys in zip(_bands(sketches), _bands(others), strict=True):
        order = np.argsort(other_keys, kind="stable")
        place = np.minimum(np.searchsorted(other_keys[order], keys), len(others) - 1)
        found |= _alike(sketches, others[order[place]])
    return int(found.sum())


def groups_of_alike(sketches: Sketches) -> npt.NDArray[np.int64]:
    """Return a group number for every document: documents that are (nearly) the same have the same one.

    All pairs that `alike_between` could find are in one group, also through other documents, so that groups never leak
    from one split to another.
    """
    _, first, of_unique = np.unique(_whole_keys(sketches), return_index=True, return_inverse=True)
    unique = sketches[first]
    parents = np.arange(len(unique))
    for keys in _bands(unique):
        for members in _of_equal_keys(keys):
            if len(members) > MOST_COMPARED:
                _unite(parents, members)  # at once: comparing all pairs would take too long
                continue
            for number, member in enumerate(members[:-1]):
                later = members[number:]
                _unite(parents, later[_alike(unique[later], unique[member])])
    roots = np.array([_root(parents, number) for number in range(len(unique))], dtype=np.int64)
    return roots[of_unique.reshape(-1)]


def _whole_keys(sketches: Sketches) -> npt.NDArray[np.uint64]:
    """Return equal numbers for equal sketches."""
    keys = np.zeros(len(sketches), dtype=np.uint64)
    for band in _bands(sketches):
        keys = (keys ^ (keys >> np.uint64(31))) * POWERS[-1] + band
    return keys


def _of_equal_keys(keys: npt.NDArray[np.uint64]) -> Iterator[npt.NDArray[np.int64]]:
    """Return the places of every key that occurs several times."""
    order = np.argsort(keys, kind="stable")
    ordered = keys[order]
    begins = np.flatnonzero(np.concatenate([[True], ordered[1:] != ordered[:-1]]))
    ends = np.append(begins[1:], len(keys))
    for number in np.flatnonzero(ends - begins > 1):
        yield order[begins[number] : ends[number]]


def _unite(parents: npt.NDArray[np.int64], members: npt.NDArray[np.int64]) -> None:
    """Put documents into one group."""
    roots = [_root(parents, int(member)) for member in members]
    parents[roots] = min(roots)


def _root(parents: npt.NDArray[np.int64], number: int) -> int:
    while parents[number] != number:
        parents[number] = parents[parents[number]]
        number = int(parents[number])
    return number


def _bands(sketches: Sketches) -> list[npt.NDArray[np.uint64]]:
    """One key for each band of each document."""
    weights = FACTORS[:BAND]
    return [sketches[:, i : i + BAND].astype(np.uint64) @ weights for i in range(0, HASHES, BAND)]


def _alike(one: Sketches, other: Sketches) -> npt.NDArray[np.bool_]:
    same: npt.NDArray[np.bool_] = (one == other).mean(axis=1) >= ALIKE
    return same
