"""What a finished stage has achieved, in one line: scores and counts, read from the run's files."""

from typing import Any

from distill.files import read_json, read_jsonl
from distill.run import SPLITS, LabelSet, Member, Run
from distill.stages import Stage


def result(run: Run, stage: Stage) -> str:
    """Return the result of a complete stage; an empty text if there is nothing to tell."""
    if stage.job == "prepare":
        return _documents(run)
    if stage.job == "merge" and isinstance(stage.subject, LabelSet):
        return _labels(stage.subject)
    if stage.member is None:
        return ""
    if stage.job == "train":
        return _training(run, stage.member)
    if stage.job == "search":
        return _search(stage.member)
    if stage.job == "evaluate":
        return _scores(run, stage.member)
    return ""


def warnings(run: Run) -> list[str]:
    """Return what `prepare` warns about, in whole sentences."""
    return list(read_json(run.corpus_warnings)) if run.corpus_warnings.exists() else []


def _documents(run: Run) -> str:
    manifest = run.corpus / "manifest.json"
    if not manifest.exists():
        return ""
    splits = read_json(manifest)["splits"]
    counts = ", ".join(f"{splits[name]['examples']:,} {name}" for name in SPLITS)
    dropped = sum(sum(split["dropped"].values()) for split in splits.values())
    return f"{counts} examples" + (f"; {dropped:,} dropped" if dropped else "")


def _labels(labels: LabelSet) -> str:
    if not labels.manifest.exists():
        return ""
    manifest = read_json(labels.manifest)
    return f"{manifest['kept']:,} of {manifest['documents']:,} labels kept"


def _training(run: Run, member: Member) -> str:
    from distill.scores import TITLES

    metric = run.evaluate_settings(member).metric
    validations = [row for row in read_jsonl(member.metrics) if metric in row and row["step"] > 0]
    if not validations:
        return ""
    best = max(validations, key=lambda row: float(row[metric]))
    last = validations[-1]
    return f"validation {TITLES[metric]} {best[metric]:.2f} at step {best['step']} of {last['step']}"


def _search(member: Member) -> str:
    if not member.search.exists():
        return ""
    best = read_json(member.search)["best"]
    penalty = best.get("length_penalty")  # not given for one beam
    return f"{best['num_beams']} beams" + ("" if penalty is None else f", length penalty {penalty:g}")


def _scores(run: Run, member: Member) -> str:
    from distill.scores import TITLES, central, shown_metrics

    file = member.evaluation("test") / "scores.json"
    if not file.exists():
        return ""
    scores: dict[str, Any] = read_json(file)
    metric = run.evaluate_settings(member).metric
    shown = ", ".join(f"{TITLES[name]} {central(scores[name]):.2f}" for name in shown_metrics(metric))
    if not run.first_sentence.exists():
        return shown
    main = metric if metric in shown_metrics(metric) else shown_metrics(metric)[0]
    baseline = central(read_json(run.first_sentence)["scores"][main])
    return f"{shown} (first sentence: {TITLES[main]} {baseline:.2f})"
