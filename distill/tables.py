"""The report's tables: quality, training, decoding, labels."""

from dataclasses import dataclass
from typing import Any

from distill.families import shape_of
from distill.files import read_json, read_jsonl
from distill.imported import describe_file
from distill.markdown import markdown_table
from distill.pretrained import load_config
from distill.recipe import GOLD, Student, sources
from distill.run import LabelSet, Member, Run
from distill.scores import TITLES, TRANSLATION, central
from distill.speed_table import Speed, latency_cell, parameters_cell, speed_up_cell

SCORES = ("rouge1", "rouge2", "rougeL")


@dataclass(frozen=True)
class Line:
    """What the report says of one model."""

    member: Member
    scores: dict[str, Any]
    speed: Speed
    metrics: list[dict[str, Any]]
    summaries: list[str]

    @property
    def minutes(self) -> float | None:
        values = [row["training_minutes"] for row in self.metrics if "training_minutes" in row]
        return values[-1] if values else None

    def validations(self, metric: str) -> list[tuple[int, float]]:
        return [(row["step"], row[metric]) for row in self.metrics if metric in row]


def read_line(run: Run, member: Member) -> Line:
    """Read all results of one model."""
    settings = run.settings(member)
    shape = shape_of(load_config(run.weights(member)), str(member))
    teacher = run.member("teachers", settings.teacher) if isinstance(settings, Student) else member
    folder = member.evaluation("test")
    return Line(
        member=member,
        scores=read_json(folder / "scores.json"),
        speed=Speed(
            name=str(member),
            layers=f"{shape.encoder_layers}-{shape.decoder_layers}",
            teacher=str(teacher),
            values=read_json(member.benchmark),
        ),
        metrics=read_jsonl(member.metrics),
        summaries=[row["summary"] for row in read_jsonl(folder / "predictions.jsonl")],
    )


def results(lines: list[Line], baseline: dict[str, Any], metrics: tuple[str, ...]) -> str:
    """Return the table of quality beside speed."""
    speeds = [line.speed for line in lines]
    head = ["model", "layers", "M params", "ms/doc", "speed-up"]
    head += [*(TITLES[metric] for metric in metrics), "words", "novel bigrams %", "training min"]
    rows = [["first sentence", *["-"] * 4, *_quality(baseline, metrics), "-"]]
    for line in lines:
        rows.append(
            [
                str(line.member),
                line.speed.layers,
                parameters_cell(line.speed),
                latency_cell(line.speed, speeds),
                speed_up_cell(line.speed, speeds),
                *_quality(line.scores, metrics),
                f"{line.minutes:.1f}" if line.minutes is not None else "-",
            ]
        )
    return f"{markdown_table(head, rows)}\n\n{_quality_note(lines[0].scores, metrics)}\n"


def _quality(scores: dict[str, Any], metrics: tuple[str, ...]) -> list[str]:
    shown = [f"{central(scores[m]):.2f} [{scores[m]['low']:.2f}, {scores[m]['high']:.2f}]" for m in metrics]
    novel = scores["novel_bigrams"]
    return [*shown, f"{scores['summary_words']:.1f}", f"{novel:.0f}" if novel is not None else "-"]


def _quality_note(scores: dict[str, Any], metrics: tuple[str, ...]) -> str:
    signatures = ", ".join(f"{TITLES[m]} {scores[m]['signature']}" for m in metrics if m in TRANSLATION)
    quality = f"sacrebleu ({signatures})" if signatures else "ROUGE: F-measure with stemming"
    return (
        f"{quality} on {scores['examples']} documents, 95 % bootstrap intervals in brackets. Layers: encoder-decoder."
    )


def labels_table(sets: list[LabelSet]) -> str:
    """Return the table of the label sets: how many labels, and their measures."""
    head = ["labels", "teacher", "documents", "kept", "dropped by", "words", "ROUGE-1", "ROUGE-2", "ROUGE-L", "copied %",
            "unfinished"]  # fmt: skip
    rows = []
    for labels in sets:
        manifest = read_json(labels.manifest)
        measures = manifest["measures"]
        dropped = ", ".join(f"{rule}: {count}" for rule, count in manifest["dropped"].items()) or "-"
        means = [measures.get(name, {}).get("mean") for name in ("words", *SCORES, "copied_share")]
        counts = [str(manifest["documents"]), str(manifest["kept"]), dropped]
        shown = ["-" if mean is None else f"{mean:.2f}" for mean in means]
        unfinished = "-" if measures["unfinished"] is None else str(measures["unfinished"])
        rows.append([labels.name, labels.origin, *counts, *shown, unfinished])
    note = (
        "Means over all labels, the dropped ones too; ROUGE against gold summaries, where there are any. One label may "
        "break several rules."
    )
    parts = [markdown_table(head, rows), "", f"{note}\n", *map(_read_from_file, sets)]
    return "\n".join(parts)


def _read_from_file(labels: LabelSet) -> str:
    """Return what was found in a file of labels; nothing for other labels."""
    found = read_json(labels.manifest).get("file")
    return f"{labels}: {found['path']} has {describe_file(found)}.\n" if found else ""


def before_and_after(lines: list[Line], run: Run) -> str:
    """Return the table of the trainings."""
    head = ["model", "reads", "scored against", "metric", "before training", "best", "at step", "steps"]
    rows = []
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
        rows.append([str(line.member), reads, against, metric, shown, f"{best:.2f}", str(step), steps])
    note = "On the validation sample, with the beams of `evaluate.num_beams`."
    return f"{markdown_table(head, rows)}\n\n{note}\n"


def searches(members: list[Member]) -> str:
    """Return the table of all points of the searches."""
    head = ["model", "beams", "length penalty", "metric", "score", "words", "seconds"]
    rows = []
    for member in members:
        found = read_json(member.search)
        for point in found["points"]:
            given = {key: point[key] for key in ("num_beams", "length_penalty") if point[key] is not None}
            seconds = "-" if point["seconds"] is None else f"{point['seconds']:.1f}"
            shown = [f"{point['score']:.2f}", f"{point['summary_words']:.1f}", seconds]
            cells = [str(point["num_beams"]), f"{given.get('length_penalty', '-')}", found["metric"], *shown]
            rows.append([str(member), *(f"**{cell}**" if given == found["best"] else cell for cell in cells)])
    note = "In bold what was found best. Seconds: wall time; - where the search was interrupted."
    return f"{markdown_table(head, rows)}\n\n{note}\n"


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
