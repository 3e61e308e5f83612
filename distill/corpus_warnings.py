"""What a user should know of a prepared corpus, in sentences: prepare logs them, the launcher and the report show them."""

from typing import Any

from distill.files import read_json, write_json
from distill.recipe import Recipe
from distill.run import SPLITS, Member, Run

SMALL_SHARE = 0.01
"""The least share of texts that are cut which is worth a warning."""


def write_warnings(run: Run) -> None:
    """Write the sentences of `corpus_warnings` to the run."""
    write_json(run.corpus_warnings, corpus_warnings(run))


def corpus_warnings(run: Run, least_share: float = SMALL_SHARE) -> list[str]:
    """Return the warnings about a prepared corpus, in plain English. Empty if all is well.

    Texts that are cut are left out if their share is below `least_share`.
    """
    splits = read_json(run.corpus / "manifest.json")["splits"]
    counted: dict[str, Any] = {split: splits[split] for split in SPLITS}
    for labels in run.label_sets():
        manifest = labels.documents / "manifest.json"
        if manifest.exists():
            counted[str(labels)] = read_json(manifest)
    sentences: list[str] = []
    for name, counts in counted.items():
        sentences += _of_counts(name, counts)
        if not _translates(run.recipe):
            sentences += _of_lengths(name, counts)
    sentences += _of_split(run.recipe, counted)
    return sentences + _of_cuts(run, least_share)


def _of_counts(name: str, counts: dict[str, Any]) -> list[str]:
    """Rows that are dropped, and documents that are there twice."""
    sentences = []
    total = f"{counts['examples']:,}"
    dropped = counts["dropped"]
    if dropped:
        reasons = ", ".join(f"{reason} ({count:,})" for reason, count in dropped.items())
        sentences.append(f"{sum(dropped.values()):,} of {counts['read']:,} {name} rows are dropped: {reasons}.")
    if counts["duplicate_ids"]:
        sentences.append(f"{counts['duplicate_ids']:,} of {total} {name} examples have the id of an earlier one.")
    if counts["near_duplicates"]:
        exact = f" ({counts['duplicate_documents']:,} of them exactly)" if counts["duplicate_documents"] else ""
        sentences.append(
            f"{counts['near_duplicates']:,} of {total} {name} documents repeat an earlier one, nearly word for word{exact}."
        )
    if counts.get("near_duplicates_in_train"):
        sentences.append(
            f"{counts['near_duplicates_in_train']:,} of {total} {name} documents are in the training split too, nearly "
            f"word for word: scores on {name} may be too good."
        )
    return sentences


def _of_lengths(name: str, counts: dict[str, Any]) -> list[str]:
    document = counts["document_words"]["p50"]
    summary = counts["summary_words"]["p50"]
    if summary <= document:
        return []
    return [
        f"The {name} summaries are longer than the documents ({summary:.0f} words at the median, against {document:.0f}). "
        "Are corpus.document and corpus.summary exchanged?"
    ]


def _translates(recipe: Recipe) -> bool:
    """Return True if the recipe is one of translation, whose targets may well be longer than their sources."""
    metrics = [recipe.evaluate.metric]
    metrics += [member.evaluate.metric for member in recipe.students.values() if member.evaluate]
    has_languages = any(teacher.languages for teacher in recipe.teachers.values())
    return has_languages or "bleu" in metrics or "chrf" in metrics


def _of_split(recipe: Recipe, counted: dict[str, Any]) -> list[str]:
    """Splits that `corpus.split` could not make as large as asked."""
    sentences = []
    for split, asked in recipe.corpus.taken_from_train.items():
        found = counted[split]["read"]
        if found != asked:
            sentences.append(
                f"corpus.split.{split} is {asked:,}, but the split has {found:,} examples: documents that are nearly the "
                "same stay together."
            )
    return sentences


# ------------------------------------------------------------------------------------------------ what is cut


def record_cuts(member: Member, cuts: list[dict[str, Any]]) -> None:
    """Write what `tokenize_corpus` counted as a member reads the corpus."""
    write_json(member.cuts, cuts)


def _of_cuts(run: Run, least_share: float) -> list[str]:
    """Return a sentence for each kind of text that is cut, with all members that cut it alike."""
    readers: dict[str, list[str]] = {}
    for member in run.members():
        cuts = read_json(member.cuts) if member.cuts.exists() else []
        for cut in cuts:
            share = cut["cut"] / max(1, cut["of"])
            if cut["cut"] and share >= least_share:
                sentence = (
                    f"{cut['cut']:,} of {cut['of']:,} {cut['what']} ({_percent(share)} %) are longer than "
                    f"corpus.{cut['limit']} ({cut['tokens']}) and are cut there."
                )
                readers.setdefault(sentence, []).append(str(member))
    return [f"{', '.join(names)}: {sentence}" for sentence, names in readers.items()]


def _percent(share: float) -> str:
    return f"{100 * share:.0f}" if share >= SMALL_SHARE else f"{100 * share:.2g}"
