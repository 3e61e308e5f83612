"""Paths of a recipe -> the files of every split: single files, lists, patterns, shards, folders of several layouts."""

import glob
import json
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from distill.corpus_settings import Corpus
from distill.errors import InputError
from distill.formats import LINES, SUFFIXES

BUILT_IN = "docstrings"
ALIASES = {
    "train": ("train",),
    "validation": ("validation", "valid", "val", "dev"),
    "test": ("test",),
}
KINDS = f"a file that ends in {', '.join(SUFFIXES)}"
SHARD = re.compile(r"(?P<name>.+?)-(?P<number>\d{2,})-of-(?P<count>\d{2,})(-[0-9a-f]{8,})?(?=\.)")
IS_PATTERN = re.compile(r"[*?\[]")


def split_files(corpus: Corpus) -> dict[str, list[Path]]:
    """Return the files of train, validation and test; without those that `corpus.split` takes from train.

    Raise InputError if a split has none, if it has several sets of files, or if a shard is missing.
    """
    given = {"train": corpus.train, "validation": corpus.validation, "test": corpus.test}
    wanted = [split for split in ALIASES if split not in corpus.taken_from_train]
    folder = Path(corpus.train) if isinstance(corpus.train, str) else Path()
    has_splits = isinstance(corpus.train, str) and folder.is_dir() and _holds_splits(folder)
    if has_splits:
        _refuse_twice(folder, corpus)
        return {
            split: files_of(f"corpus.{split}", given[split])
            if split != "train" and given[split]
            else _files_in(folder, split)
            for split in wanted
        }
    files = {"train": files_of("corpus.train", given["train"])}
    for split in wanted[1:]:
        if not given[split]:
            raise InputError(_no_split(split))
        files[split] = files_of(f"corpus.{split}", given[split])
    return files


def files_of(key: str, given: str | Sequence[str] | None) -> list[Path]:
    """Return the files that a path, a pattern, or a list of them names, in their order.

    Raise InputError if there are none, or if one of them is of no known kind.
    """
    files: list[Path] = []
    for one in [given] if isinstance(given, str) else given or []:
        files += _files_of_one(key, one)
    twice = [path for path, times in Counter(files).items() if times > 1]
    if twice:
        raise InputError(f"{key}: {twice[0]} is named twice. Expected each file once; remove one.")
    pairs = [path for path in files if path.name.endswith(LINES)]
    if pairs and len(pairs) < len(files):
        raise InputError(f"{key}: .source files and others are mixed. Expected one of them; convert the others.")
    return files


def _files_of_one(key: str, given: str) -> list[Path]:
    path = Path(given)
    if path.is_dir():
        return _files_of_folder(key, path)
    if not path.exists() and IS_PATTERN.search(given):
        return _files_of_pattern(key, given)
    if not path.is_file():
        also = ", a pattern (data/train-*.parquet), a folder of such files"
        also += f", a dataset's name OWNER/NAME or {BUILT_IN!r}" if key == "corpus.train" else ""
        raise InputError(
            f"{key}: {given!r} given, but there is no such file or folder. Expected {KINDS}{also}; correct the path."
        )
    if not path.name.endswith(SUFFIXES):
        raise InputError(f"{key}: {given!r} given, expected {KINDS}.")
    return [path]


def _files_of_pattern(key: str, pattern: str) -> list[Path]:
    names = sorted(glob.glob(pattern, recursive=True))  # noqa: PTH207 - Path.glob takes no absolute pattern
    found = [Path(name) for name in names if Path(name).is_file() and not _is_target(Path(name))]
    if not found:
        raise InputError(f"{key}: no file matches {pattern!r}. Expected {KINDS}; correct the pattern.")
    others = [path for path in found if not path.name.endswith(SUFFIXES)]
    if others:
        raise InputError(
            f"{key}: {pattern!r} matches {others[0]}, which is no file of a known kind. Expected {KINDS}; "
            "narrow the pattern."
        )
    check_shards(found)
    return found


def _is_target(path: Path) -> bool:
    """Return True for the summaries beside a .source file, which are read with it."""
    return path.suffix == ".target" and path.with_suffix(".source").is_file()


# ------------------------------------------------------------------------------------------------ folders


def _holds_splits(folder: Path) -> bool:
    if (folder / "dataset_dict.json").is_file():
        return True
    return any(_candidates(folder, split) for split in ALIASES)


def _files_in(folder: Path, split: str) -> list[Path]:
    """Return the files of a split in a folder of splits."""
    found = _candidates(folder, split)
    if not found:
        raise InputError(
            f"{folder} has no {split} split; expected {split}.jsonl (also .json, .csv, .tsv, .parquet, .source with "
            f".target; .gz, .xz), shards such as {split}-00000-of-00002.parquet, or a folder {split} there (or in "
            f"{folder / 'data'}). Or give its path in corpus.{split}"
            + (", or take it from train: corpus.split." if split != "train" else ".")
        )
    if len(found) > 1:
        names = ", ".join(found)
        raise InputError(f"{folder} has several {split} splits: {names}. Remove all but one, or name it.")
    files = next(iter(found.values()))
    check_shards(files)
    return files


def _candidates(folder: Path, split: str) -> dict[str, list[Path]]:
    """Return the sets of files of a folder, or of `data` in it, that bear a split's name."""
    found: dict[str, list[Path]] = {}
    for place in (folder, folder / "data"):
        for alias in ALIASES[split]:
            for suffix in SUFFIXES:
                path = place / f"{alias}{suffix}"
                if path.is_file():
                    found[str(path.relative_to(folder))] = [path]
                shards = sorted(place.glob(f"{alias}-*-of-*{suffix}"))
                shards = [path for path in shards if _is_shard(path, alias, suffix)]
                if shards:
                    found[f"{shards[0].relative_to(folder)} and its other shards"] = shards
            for inner in (place / alias, place / f"{alias}.parquet"):
                if inner.is_dir():
                    found[f"the folder {inner.relative_to(folder)}"] = _files_of_folder(f"corpus.{split}", inner)
        if found:
            break
    return found


def _is_shard(path: Path, name: str, suffix: str) -> bool:
    found = SHARD.match(path.name)
    return found is not None and found["name"] == name and path.name[found.end() :] == suffix


def _files_of_folder(key: str, folder: Path) -> list[Path]:
    """Return all files of a folder that holds one split: what `save_to_disk` wrote, or files of one kind."""
    if (folder / "dataset_dict.json").is_file():
        raise InputError(
            f"{key}: {folder} holds several splits. Give it as corpus.train alone, or name one of its folders."
        )
    if (folder / "state.json").is_file():
        return _saved_files(folder)
    files = [path for path in sorted(folder.iterdir()) if path.is_file() and path.name.endswith(SUFFIXES)]
    kinds = sorted({next(suffix for suffix in SUFFIXES if path.name.endswith(suffix)) for path in files})
    if not files:
        raise InputError(f"{key}: {folder} is a folder without {KINDS}. Expected such files in it; correct the path.")
    if len(kinds) > 1:
        raise InputError(
            f"{key}: {folder} holds files of several kinds ({', '.join(kinds)}). Expected one; give a pattern, "
            f"such as {folder / ('*' + kinds[0])}."
        )
    check_shards(files)
    return files


def _saved_files(folder: Path) -> list[Path]:
    """Return the Arrow files of a folder that `Dataset.save_to_disk` wrote."""
    try:
        state: dict[str, Any] = json.loads((folder / "state.json").read_text(encoding="utf-8"))
        files = [folder / entry["filename"] for entry in state["_data_files"]]
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"{folder / 'state.json'} is not what save_to_disk writes ({type(error).__name__}: {error}). "
            "Expected a whole folder of it; save the dataset again."
        ) from None
    missing = [path.name for path in files if not path.is_file()]
    if missing:
        raise InputError(
            f"{folder}: {len(missing)} of {len(files)} files are missing ({', '.join(missing[:3])}). "
            "Expected the whole folder that save_to_disk wrote; copy it again."
        )
    return files


# ------------------------------------------------------------------------------------------------ what is missing


def _refuse_twice(folder: Path, corpus: Corpus) -> None:
    """Raise InputError if a folder has a split that `corpus.split` takes from train."""
    for split in corpus.taken_from_train:
        if _candidates(folder, split):
            raise InputError(
                f"corpus.split.{split}: given, but {folder} has a {split} split. Remove the key, or give the path of "
                "the training files alone in corpus.train."
            )


def _no_split(split: str) -> str:
    return (
        f"corpus.{split} is missing, and corpus.train is no folder with a {split} split. Expected the path of the "
        f"{split} examples in corpus.{split}, or corpus.split: {{{split}: 1500}}, which takes them from train "
        "(and keeps near-duplicates together)."
    )


def check_shards(files: list[Path]) -> None:
    """Raise InputError if files are numbered shards (`train-00000-of-00002.parquet`) and some of them are missing."""
    numbers: dict[tuple[str, str], set[int]] = {}
    for path in files:
        found = SHARD.match(path.name)
        if found:
            key = (str(path.with_name(found["name"])), found["count"])
            numbers.setdefault(key, set()).add(int(found["number"]))
    for (name, count), present in numbers.items():
        first = 1 if int(count) in present else 0
        missing = sorted(set(range(first, first + int(count))) - present)
        if missing:
            shown = ", ".join(f"{number:05d}" for number in missing[:5])
            more = f" and {len(missing) - 5} more" if len(missing) > 5 else ""
            raise InputError(
                f"{name}-*-of-{count}: {len(missing)} of {int(count)} shards are missing ({shown}{more}). "
                "Expected all of them; copy them too, or list the files that are to be read."
            )
