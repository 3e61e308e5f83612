"""The report of a run: tables, pictures, summaries side by side."""

import random
import statistics
from pathlib import Path

from distill.baseline import first_sentence_scores
from distill.corpus import read_references
from distill.corpus_settings import shown_paths
from distill.corpus_warnings import corpus_warnings
from distill.files import read_json
from distill.markdown import markdown_table
from distill.pictures import plot_labels, plot_quality_against_speed, plot_training
from distill.reading import Row
from distill.run import Run
from distill.scores import TITLES, TRANSLATION, shown_metrics
from distill.shared import describe_sources
from distill.speed_table import speed_notes, speed_table
from distill.tables import Line, before_and_after, labels_table, read_line, results, searches


def write_report(run: Run, rows: list[Row], folder: Path) -> None:
    """Write report.md and its pictures to `folder`. `rows` are the test split."""
    lines = [read_line(run, member) for member in run.members()]
    references = read_references(run.split("test"))
    parts = [
        _heading(run, rows),
        *_results(run, lines, folder),
        *_training(run, lines, folder),
        *_searches(run),
        *_labels(run, folder),
        "## Summaries side by side\n",
        *_examples(run, lines, rows, references),
    ]
    (folder / "report.md").write_text("\n".join(parts), encoding="utf-8")


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


def _results(run: Run, lines: list[Line], folder: Path) -> list[str]:
    baseline = first_sentence_scores(run)
    metric = main_metric(run)
    plot_quality_against_speed(lines, baseline, metric, folder / "quality_against_speed.png")
    speeds = [line.speed for line in lines]
    return [
        "## Results on the test split\n",
        results(lines, baseline, shown_metrics(metric)),
        f"{speed_table(speeds)}\n",
        speed_notes(speeds),
        f"![{TITLES[metric]} against speed](quality_against_speed.png)\n",
    ]


def main_metric(run: Run) -> str:
    """Return the `evaluate.metric` of most models; BLEU or chrF if it is one of them for any model."""
    decisive = [run.evaluate_settings(member).metric for member in run.members()]
    return next((metric for metric in decisive if metric in TRANSLATION), statistics.mode(decisive))


def _training(run: Run, lines: list[Line], folder: Path) -> list[str]:
    trained = [line for line in lines if line.metrics]
    if not trained:
        return []
    plot_training(trained, run, folder)
    return [
        "## Training\n",
        before_and_after(trained, run),
        "![training loss](training_loss.png)\n",
        "![validation](validation.png)\n",
    ]


def _searches(run: Run) -> list[str]:
    searched = [member for member in run.members() if run.evaluate_settings(member).search]
    return ["## Decoding found on the validation split\n", searches(searched)] if searched else []


def _labels(run: Run, folder: Path) -> list[str]:
    sets = run.label_sets()
    if not sets:
        return []
    parts = ["## Labels\n", labels_table(sets)]
    for labels in sets:
        plot_labels(labels, folder / f"labels_{labels.name}.png")
        parts.append(f"![labels {labels.name}](labels_{labels.name}.png)\n")
    return parts


def _examples(run: Run, lines: list[Line], rows: list[Row], references: list[list[str]]) -> list[str]:
    chosen = random.Random(run.recipe.seed).sample(range(len(rows)), min(run.recipe.report.examples, len(rows)))
    parts = []
    for number in chosen:  # predictions are in corpus order; ids need not be unique
        row = rows[number]
        summaries = [["gold", text] for text in references[number]]
        summaries += [[str(line.member), line.summaries[number]] for line in lines]
        table = markdown_table(["", "summary"], summaries)
        document = row["document"] if len(row["document"]) <= 700 else row["document"][:700] + " ..."
        parts.append("\n".join([f"### {row['id']}\n", "> " + " ".join(document.split()) + "\n", table, ""]))
    return parts
