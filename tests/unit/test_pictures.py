"""What can be seen in the report's pictures."""

import io
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from distill import pictures
from distill.pictures import plot_labels, plot_quality_against_speed, plot_training
from distill.recipe import Labels
from distill.run import LabelSet, Member
from distill.tables import Line
from tests.unit.test_run import make_run
from tests.unit.test_speed_table import speed


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The figures, which stay open after they are saved."""
    figures: list[Any] = []
    usual = pictures._save

    def save(figure: Any, path: Path) -> None:
        figures.append(figure)
        usual(figure, path)

    monkeypatch.setattr(pictures, "_save", save)
    return figures


def line(name: str, latency: float, quality: float, group: str = "students", **changes: Any) -> Line:
    scores = {metric: {"mean": quality, "low": quality - 1, "high": quality + 1} for metric in ("rouge1", "rouge2")}
    member = Member(group, name, Path(name))  # type: ignore[arg-type]
    return Line(member, scores, speed(name, latency), changes.get("metrics", []), [])


def pixels(figure: Any) -> np.ndarray:
    file = io.BytesIO()
    figure.savefig(file, format="rgba")
    return np.frombuffer(file.getvalue(), dtype=np.uint8)


def test_a_single_logged_point_can_be_seen(tmp_path: Path, drawn: list[Any]) -> None:
    rows = [{"step": 20, "loss": 3.0}, {"step": 0, "rouge2": 2.0}]
    plot_training([line("s", 40, 20, metrics=rows)], make_run(tmp_path), tmp_path)
    for figure in drawn:
        curve = figure.axes[0].lines[0]
        with_point = pixels(figure)
        curve.set_visible(False)
        assert (with_point != pixels(figure)).any()
    assert drawn[1].axes[0].get_ylabel() == "ROUGE-2 on the validation sample", "evaluate.metric of the recipe"


def test_a_curve_of_another_metric_is_named(tmp_path: Path, drawn: list[Any]) -> None:
    run = make_run(tmp_path, students={"a": {"teacher": "t"}, "b": {"teacher": "t", "evaluate": {"metric": "bleu"}}})
    rows = [{"step": 1, "loss": 3.0, "rouge2": 2.0, "bleu": 1.0}]
    plot_training([line(name, 40, 20, metrics=rows) for name in "ab"], run, tmp_path)
    labels = [text.get_text() for text in drawn[1].axes[0].get_legend().get_texts()]
    assert labels == ["student a (ROUGE-2)", "student b (BLEU)"]
    assert drawn[1].axes[0].get_ylabel() == "score on the validation sample"


def test_labels_stand_at_their_points_and_do_not_cover_each_other(tmp_path: Path, drawn: list[Any]) -> None:
    lines = [line("teacher", 100, 28, "teachers"), *(line(f"sft-{n}", 40 + n / 10, 25 + n / 50) for n in range(5))]
    baseline = {"rouge1": {"mean": 20.0}}
    plot_quality_against_speed(lines, baseline, "rouge1", tmp_path / "q.png")
    [axes] = drawn[0].axes
    assert axes.get_ylabel().startswith("ROUGE-1")
    texts = [text for text in axes.texts if text.get_text()]
    assert len(texts) == 6
    boxes = [text.get_window_extent() for text in texts]
    assert not any(a.overlaps(b) for i, a in enumerate(boxes) for b in boxes[:i])
    assert all(box.x1 <= axes.bbox.x1 for box in boxes), "inside the picture"
    marks = [bar.lines[0].get_marker() for bar in axes.containers]
    assert marks == ["s", "o", "o", "o", "o", "o"]


def test_a_measure_with_one_value_has_an_axis_that_shows_it(tmp_path: Path, drawn: list[Any]) -> None:
    folder = tmp_path / "labels"
    folder.mkdir()
    rows = [
        {name: float(number) for name in pictures.MEASURES} | {"repeated_ngrams": 0.0, "dropped": number == 3}
        for number in range(5)
    ]
    labels = LabelSet("l", folder, Labels())
    pq.write_table(pa.Table.from_pylist(rows), labels.table)
    plot_labels(labels, tmp_path / "labels.png")
    by_title = {axes.get_xlabel(): axes for axes in drawn[0].axes}
    constant = by_title["repeated trigrams %"]
    assert list(constant.get_xticks()) == [0]
    assert max(patch.get_height() for patch in constant.patches) >= 4
    assert len(by_title["copied bigrams %"].get_xticks()) > 1
    plt.close("all")
