"""Datasets of the Hugging Face hub, by name: from the hub, or from this machine's cache. `datasets` is imported late."""

import contextlib
import logging
import os
import re
import ssl
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from distill.corpus_settings import Corpus
from distill.errors import InputError
from distill.files import is_full_disk
from distill.formats import SUFFIXES, Record

NAME = re.compile(r"[\w.-]+(/[\w.-]+)?")
ROWS = 512  # held at a time
PATIENCE_SECONDS = 5

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Known:
    """Of a dataset whose fields need not be given: (document, summary), and the configuration that is meant by default."""

    fields: tuple[str, str] | None
    """None: one of two languages, which the recipe must choose."""
    config: str | None = None


XSUM = Known(("document", "summary"))
CNN_DAILYMAIL = Known(("article", "highlights"), "3.0.0")
SAMSUM = Known(("dialogue", "summary"))
TRANSLATION = Known(None)

KNOWN = {
    "EdinburghNLP/xsum": XSUM,
    "xsum": XSUM,
    "abisee/cnn_dailymail": CNN_DAILYMAIL,
    "cnn_dailymail": CNN_DAILYMAIL,
    "Samsung/samsum": SAMSUM,
    "knkarthick/samsum": SAMSUM,
    "samsum": SAMSUM,
    **{f"{owner}wmt{year}": TRANSLATION for owner in ("wmt/", "") for year in range(14, 20)},
}


@dataclass(frozen=True)
class Hub:
    """A dataset by its name and configuration."""

    name: str
    config: str | None

    def __str__(self) -> str:
        return f"dataset {self.name}" + (f" ({self.config})" if self.config else "")

    def fields(self, corpus: Corpus) -> tuple[str, str]:
        """(document, summary); InputError where a translation's direction is not given."""
        known = KNOWN.get(self.name, XSUM)
        if known.fields:
            return corpus.document or known.fields[0], corpus.summary or known.fields[1]
        if corpus.document and corpus.summary:
            return corpus.document, corpus.summary
        one, other = (self.config or "ro-en").split("-")[:2]
        raise InputError(
            f"corpus: {self} has pairs of languages. Expected corpus.config (such as {one}-{other}) and the direction: "
            f"corpus.document=translation.{other} and corpus.summary=translation.{one}, or the other way round."
        )

    def records(self, split: str, aliases: Sequence[str]) -> Iterator[Record]:
        """InputError where the dataset or its split is not to be had."""
        splits = self._load()
        found = [name for name in aliases if name in splits]
        if not found:
            advice = (
                ""
                if split == "train"
                else f" Expected one, or corpus.split: {{{split}: 1500}}, which takes it from train."
            )
            raise InputError(f"{self} has no {split} split; its splits are {', '.join(splits)}.{advice}")
        number = 0
        for batch in splits[found[0]].with_format("python").iter(ROWS):
            for values in zip(*batch.values(), strict=True):
                number += 1
                yield f"{self}, {split} row {number}", dict(zip(batch, values, strict=True))

    def is_loadable(self) -> bool:
        """Return False if the dataset is neither in the cache nor, unless `only_the_cache` is asked, on the hub."""
        try:
            self._load()
        except InputError:
            return False
        return True

    def _load(self) -> Any:
        import datasets

        datasets.disable_progress_bars()
        try:
            return datasets.load_dataset(self.name, self.config)
        except Exception as error:  # a dozen kinds: no network, no such name, no such configuration, a torn cache
            if is_full_disk(error):
                raise
            reason = (str(error) or type(error).__name__).splitlines()[0]
            raise InputError(
                f"corpus.train: {str(self.name)!r} is no file or folder here, and as a dataset it cannot be loaded: "
                f"{reason.rstrip('.')}. Expected a path, or a name that this machine can reach or has in its cache; "
                "without a network load it elsewhere, write it with save_to_disk, and give that folder."
            ) from error


@contextlib.contextmanager
def only_the_cache() -> Iterator[None]:
    """Ask the hub for no dataset as long as this is entered."""
    import datasets

    before = datasets.config.HF_HUB_OFFLINE
    datasets.config.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        datasets.config.HF_HUB_OFFLINE = before


def work_offline_if_cut_off() -> None:
    """Ask the hub for nothing, and use this machine's cache, where it does not answer: its libraries would try each of
    many files again and again. To be called before they are imported."""
    if "HF_HUB_OFFLINE" not in os.environ and not _answers(os.environ.get("HF_ENDPOINT", "https://huggingface.co")):
        log.warning("the hub does not answer: only what this machine has in its cache can be used")
        os.environ["HF_HUB_OFFLINE"] = "1"


def _answers(address: str) -> bool:
    """True also for an answer that is an error, or one whose certificate this Python does not trust."""
    try:
        urllib.request.urlopen(address, timeout=PATIENCE_SECONDS).close()  # noqa: S310 - the user's own
    except urllib.error.HTTPError:
        return True
    except urllib.error.URLError as error:
        return isinstance(error.reason, ssl.SSLError)
    except OSError:
        return False
    except ValueError:  # no address: its libraries say so
        return True
    return True


def hub_dataset(corpus: Corpus) -> Hub | None:
    """The dataset that `corpus.train` names; None where it is a path, also of a file that is not there."""
    given = corpus.train if isinstance(corpus.train, str) else ", ".join(corpus.train)
    is_name = NAME.fullmatch(given) and not given.endswith(SUFFIXES) and not Path(given).exists()
    parent_exists = "/" not in given or Path(given).parent.is_dir()
    if not is_name or (parent_exists and given not in KNOWN):
        if corpus.config:
            raise InputError(f"corpus.config: {corpus.config!r} given, but {given!r} is no dataset's name; remove it.")
        return None
    if corpus.validation or corpus.test:
        raise InputError(f"corpus.train: {given!r} is a dataset with splits of its own; remove validation and test.")
    return Hub(given, corpus.config or KNOWN.get(given, XSUM).config)
