"""The report of a run: a table of the paper's kind, two pictures of the way there, summaries side by side."""

import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import pyarrow.parquet as pq

from distill.corpus import read_references
from distill.corpus_settings import shown_paths
from distill.corpus_warnings import corpus_warnings
from distill.families import shape_of
from distill.files import read_json, read_jsonl
from distill.imported import describe_file
from distill.pretrained import load_config
from distill.reading import Row
from distill.recipe import GOLD, Student, sources
from distill.run import LabelSet, Member, Run
from distill.scores import TRANSLATION, central, first_sentence, score, shown_metrics
from distill.shared import describe_sources

SCORES = ("rouge1", "rouge2", "rougeL")
TITLES = {"rouge1": "ROUGE-1", "rouge2": "ROUGE-2", "rougeL": "ROUGE-L", "bleu": "BLEU", "chrf": "chrF"}
MEASURES = {
    "rouge1": "ROUGE-1 to gold",
    "rouge2": "ROUGE-2 to gold",
    "rougeL": "ROUGE-L to gold",
    "length_ratio": "words / gold words",
    "copied_share": "copied bigrams %",
    "repeated_ngrams": "repeated trigrams %",
    "log_probability": "mean log-probability",
}


@dataclass(frozen=True)
class Line:
    """What the report says of one model."""

    member: Member
    layers: str
    scores: dict[str, Any]
    speed: dict[str, Any]
    metrics: list[dict[str, Any]]
    summaries: list[str]
    teacher: str | None

    @property
    def minutes(self) -> float | None:
        values = [row["training_minutes"] for row in self.metrics if "training_minutes" in row]
        return values[-1] if values else None

    def validations(self, metric: str) -> list[tuple[int, float]]:
        return [(row["step"], row[metric]) for row in self.metrics if metric in row]


def write_report(run: Run, rows: list[Row], folder: Path) -> None:
    """Write report.md and its pictures to `folder`. `rows` are the test split."""
    lines = [_line(run, member) for member in run.members()]
    documents, references = [row["document"] for row in rows], read_references(run.split("test"))
    firsts, tokenize = [first_sentence(text) for text in documents], run.recipe.evaluate.bleu_tokenize
    baseline = score(documents, firsts, references, run.recipe.seed, tokenize)
    metrics = _metrics(run)
    main = "bleu" if "bleu" in metrics else "rouge2"
    plot_quality_against_speed(lines, baseline, main, folder / "quality_against_speed.png")
    trained = [line for line in lines if line.metrics]
    parts = [
        _heading(run, rows),
        "## Results on the test split\n",
        _results(lines, baseline, metrics),
        f"![{TITLES[main]} against speed](quality_against_speed.png)\n",
    ]
    if trained:
        plot_training(trained, run, folder)
        parts += [
            "## Training\n",
            _before_and_after(trained, run),
            "![training loss](training_loss.png)\n",
            "![validation](validation.png)\n",
        ]
    searched = [line.member for line in lines if run.evaluate_settings(line.member).search]
    if searched:
        parts += ["## Decoding found on the validation split\n", _searches(searched)]
    sets = run.label_sets()
    if sets:
        parts += ["## Labels\n", _labels(sets)]
        for labels in sets:
            plot_labels(labels, folder / f"labels_{labels.name}.png")
            parts.append(f"![labels {labels.name}](labels_{labels.name}.png)\n")
    parts += ["## Summaries side by side\n", *_examples(run, lines, rows, references)]
    (folder / "report.md").write_text("\n".join(parts), encoding="utf-8")


# ------------------------------------------------------------------------------------------------ pictures


def plot_quality_against_speed(lines: list[Line], baseline: dict[str, Any], metric: str, path: Path) -> None:
    figure, axes = plt.subplots(figsize=(7, 4.5))
    for line in lines:
        quality = line.scores[metric]
        height = central(quality)
        error = [[height - quality["low"]], [quality["high"] - height]]
        marker = "s" if line.teacher is None else "o"
        x = line.speed["latency_ms"]
        axes.errorbar(x, height, yerr=error, marker=marker, capsize=3, label=str(line.member))
    axes.axhline(central(baseline[metric]), color="grey", linestyle=":", label="first sentence")
    axes.set(xlabel="milliseconds per document (batch 1)", ylabel=f"{TITLES[metric]} (95 % interval)", xlim=(0, None))
    axes.legend(fontsize=8)
    _save(figure, path)


def plot_training(lines: list[Line], run: Run, folder: Path) -> None:
    """training_loss.png and validation.png."""
    figure, axes = plt.subplots(figsize=(7, 4))
    for line in lines:
        # Of all terms of a student's loss the one that every model has.
        points = [(row["step"], row.get("cross_entropy", row["loss"])) for row in line.metrics if "loss" in row]
        axes.plot(*zip(*points, strict=True), label=str(line.member), linewidth=1)
    axes.set(xlabel="optimizer step", ylabel="cross-entropy per target token (nats)")
    axes.legend(fontsize=8)
    _save(figure, folder / "training_loss.png")
    figure, axes = plt.subplots(figsize=(7, 4))
    for line in lines:
        points = line.validations(run.evaluate_settings(line.member).metric)
        axes.plot(*zip(*points, strict=True), marker=".", label=str(line.member))
    axes.set(xlabel="optimizer step", ylabel="validation score (evaluate.metric)")
    axes.legend(fontsize=8)
    _save(figure, folder / "validation.png")


def plot_labels(labels: LabelSet, path: Path) -> None:
    """How every measure is distributed over the labels, those that were dropped apart."""
    rows = pq.read_table(labels.table).to_pylist()
    measures = {name: title for name, title in MEASURES.items() if any(row[name] is not None for row in rows)}
    figure, grid = plt.subplots(2, -(-len(measures) // 2), figsize=(12, 5), squeeze=False)
    for axes, (name, title) in zip(grid.flat, measures.items(), strict=False):
        groups = {"kept": [], "dropped": []}  # type: dict[str, list[float]]
        for row in rows:
            if row[name] is not None:
                groups["dropped" if row["dropped"] else "kept"].append(row[name])
        axes.hist(list(groups.values()), bins=30, stacked=True, label=list(groups), color=["tab:blue", "lightgrey"])
        axes.set(xlabel=title, ylabel="labels")
    for axes in grid.flat[len(measures) :]:
        axes.axis("off")
    grid[0, 0].legend(fontsize=8)
    _save(figure, path)


def _save(figure: Any, path: Path) -> None:
    figure.tight_layout()
    figure.savefig(path, dpi=120, metadata={"Software": None})
    plt.close(figure)


# ------------------------------------------------------------------------------------------------ text


def _line(run: Run, member: Member) -> Line:
    settings = run.settings(member)
    shape = shape_of(load_config(run.weights(member)), str(member))
    folder = member.evaluation("test")
    return Line(
        member=member,
        layers=f"{shape.encoder_layers}-{shape.decoder_layers}",
        scores=read_json(folder / "scores.json"),
        speed=read_json(member.benchmark),
        metrics=read_jsonl(member.metrics),
        summaries=[row["summary"] for row in read_jsonl(folder / "predictions.jsonl")],
        teacher=str(run.member("teachers", settings.teacher)) if isinstance(settings, Student) else None,
    )


def _heading(run: Run, rows: list[Row]) -> str:
    manifest = read_json(run.corpus / "manifest.json")["splits"]
    counts = ", ".join(f"{split} {manifest[split]['examples']:,}" for split in manifest)
    words = manifest["test"]
    return (
        f"# {run.recipe.name}\n\nCorpus: {shown_paths(run.recipe.corpus.train)} ({counts} examples; test documents of "
        f"{words['document_words']['mean']:.0f} words, summaries of {words['summary_words']['mean']:.0f}). "
        f"Seed {run.recipe.seed}. The recipe is [recipe.yaml](../recipe.yaml).\n{warnings_block(corpus_warnings(run, least_share=0.0))}"
        + "".join(f"\n{sentence}\n" for sentence in describe_sources(run))
    )


def warnings_block(sentences: list[str]) -> str:
    """Return the warnings about the corpus as a list; nothing if there are none."""
    if not sentences:
        return ""
    return "\n**To know about the corpus:**\n\n" + "".join(f"- {sentence}\n" for sentence in sentences)


def _metrics(run: Run) -> tuple[str, ...]:
    """What the report shows: BLEU and chrF where one of them decides any model's best weights."""
    decisive = [run.evaluate_settings(member).metric for member in run.members()]
    return shown_metrics(next((metric for metric in decisive if metric in TRANSLATION), decisive[0]))


def _results(lines: list[Line], baseline: dict[str, Any], metrics: tuple[str, ...]) -> str:
    latency = {str(line.member): line.speed["latency_ms"] for line in lines}
    head = ["model", "layers", "M params", "MB on disk", "ms/doc", "speed-up", "docs/s", "peak MB"]
    head += [*(TITLES[metric] for metric in metrics), "words", "novel bigrams %", "training min"]
    table = [_row(head), _row(["---"] * len(head))]
    table.append(_row(["first sentence", *["-"] * 7, *_quality(baseline, metrics), "-"]))
    for line in lines:
        speed = line.speed
        table.append(
            _row(
                [
                    str(line.member),
                    line.layers,
                    f"{speed['parameters'] / 1e6:.1f}",
                    f"{speed['disk_bytes'] / 1e6:.1f}" if speed["disk_bytes"] else "-",
                    f"{speed['latency_ms']:.1f}",
                    f"{latency[line.teacher or str(line.member)] / speed['latency_ms']:.2f}",
                    f"{speed['documents_per_second']:.1f}",
                    f"{speed['peak_memory_bytes'] / 1e6:.0f}",
                    *_quality(line.scores, metrics),
                    f"{line.minutes:.1f}" if line.minutes is not None else "-",
                ]
            )
        )
    speed = lines[0].speed
    signatures = ", ".join(f"{TITLES[m]} {lines[0].scores[m]['signature']}" for m in metrics if m in TRANSLATION)
    quality = f"sacrebleu ({signatures})" if signatures else "ROUGE: F-measure with stemming"
    note = (
        f"{quality} on {lines[0].scores['examples']} documents, 95 % bootstrap intervals in "
        "brackets. Layers: encoder-decoder. ms/doc: latency at batch 1; docs/s: at the best batch size; speed-up: "
        f"latency against the student's own teacher. Measured on {speed['device']} ({speed['threads']} threads), "
        "all models in turn.\n"
    )
    return "\n".join([*table, "", note])


def _quality(scores: dict[str, Any], metrics: tuple[str, ...]) -> list[str]:
    shown = [f"{central(scores[m]):.2f} [{scores[m]['low']:.2f}, {scores[m]['high']:.2f}]" for m in metrics]
    novel = scores["novel_bigrams"]
    return [*shown, f"{scores['summary_words']:.1f}", f"{novel:.0f}" if novel is not None else "-"]


def _labels(sets: list[LabelSet]) -> str:
    head = ["labels", "teacher", "documents", "kept", "dropped by", "words", "ROUGE-1", "ROUGE-2", "ROUGE-L", "copied %",
            "unfinished"]  # fmt: skip
    table = [_row(head), _row(["---"] * len(head))]
    for labels in sets:
        manifest = read_json(labels.manifest)
        measures = manifest["measures"]
        dropped = ", ".join(f"{rule}: {count}" for rule, count in manifest["dropped"].items()) or "-"
        means = [measures.get(name, {}).get("mean") for name in ("words", *SCORES, "copied_share")]
        counts = [str(manifest["documents"]), str(manifest["kept"]), dropped]
        shown = ["-" if mean is None else f"{mean:.2f}" for mean in means]
        unfinished = "-" if measures["unfinished"] is None else str(measures["unfinished"])
        table.append(_row([labels.name, labels.origin, *counts, *shown, unfinished]))
    note = (
        "Means over all labels, the dropped ones too; ROUGE against gold summaries, where there are any. One label may "
    )
    return "\n".join([*table, "", note + "break several rules.\n", *map(_read_from_file, sets)])


def _read_from_file(labels: LabelSet) -> str:
    """What was found in a file of labels; empty for others."""
    found = read_json(labels.manifest).get("file")
    return f"{labels}: {found['path']} has {describe_file(found)}.\n" if found else ""


def _before_and_after(lines: list[Line], run: Run) -> str:
    head = ["model", "reads", "scored against", "metric", "before training", "best", "at step", "steps"]
    table = [_row(head), _row(["---"] * len(head))]
    for line in lines:
        metric = run.evaluate_settings(line.member).metric
        curve = line.validations(metric)
        before = [value for step, value in curve if step == 0]
        step, best = max(((s, v) for s, v in curve if s > 0), key=lambda point: point[1])
        shown = f"{before[0]:.2f}" if before else "-"
        against = _objective(run, line.member)
        reads = _reads(run, line.member)
        early = " (stopped early)" if any("stopped_early" in row for row in line.metrics) else ""
        steps = f"{curve[-1][0]}{early}"
        table.append(_row([str(line.member), reads, against, metric, shown, f"{best:.2f}", str(step), steps]))
    return "\n".join([*table, "", "On the validation sample, with the beams of `evaluate.num_beams`.\n"])


def _searches(members: list[Member]) -> str:
    """All points of the searches."""
    head = ["model", "beams", "length penalty", "metric", "score", "words", "seconds"]
    table = [_row(head), _row(["---"] * len(head))]
    for member in members:
        found = read_json(member.search)
        for point in found["points"]:
            given = {key: point[key] for key in ("num_beams", "length_penalty") if point[key] is not None}
            seconds = "-" if point["seconds"] is None else f"{point['seconds']:.1f}"
            shown = [f"{point['score']:.2f}", f"{point['summary_words']:.1f}", seconds]
            cells = [str(point["num_beams"]), f"{given.get('length_penalty', '-')}", found["metric"], *shown]
            table.append(_row([str(member), *(f"**{cell}**" if given == found["best"] else cell for cell in cells)]))
    return "\n".join(
        [*table, "", "In bold what was found best. Seconds: wall time; - where the search was interrupted.\n"]
    )


def _reads(run: Run, member: Member) -> str:
    settings = run.settings(member)
    return sources(settings.train_on) if isinstance(settings, Student) else GOLD


def _objective(run: Run, member: Member) -> str:
    """The terms of the loss with their weights."""
    settings = run.settings(member)
    if not isinstance(settings, Student):
        return "targets"
    objective = settings.objective
    terms = [f"{objective.cross_entropy:g} targets"] if objective.cross_entropy else []
    if objective.kl:
        terms.append(f"{objective.kl.weight:g} KL ({objective.kl.direction}, T {objective.kl.temperature:g})")
    if objective.hidden:
        terms.append(f"{objective.hidden.weight:g} hidden states")
    cache = run.recipe.teachers[settings.teacher].cache
    how = f"; teacher from its cache of {cache.keep}" if cache and objective.needs_teacher else ""
    return " + ".join(terms) + how if objective.needs_teacher else "targets"


def _examples(run: Run, lines: list[Line], rows: list[Row], references: list[list[str]]) -> list[str]:
    chosen = random.Random(run.recipe.seed).sample(range(len(rows)), min(run.recipe.report.examples, len(rows)))
    parts = []
    for number in chosen:  # predictions are in corpus order; ids need not be unique
        row = rows[number]
        table = [_row(["", "summary"]), _row(["---"] * 2), *(_row(["gold", text]) for text in references[number])]
        table += [_row([str(line.member), line.summaries[number]]) for line in lines]
        document = row["document"] if len(row["document"]) <= 700 else row["document"][:700] + " ..."
        parts.append("\n".join([f"### {row['id']}\n", "> " + " ".join(document.split()) + "\n", *table, ""]))
    return parts


def _row(cells: list[str]) -> str:
    return "| " + " | ".join(" ".join(cell.replace("|", "\\|").split()) for cell in cells) + " |"
