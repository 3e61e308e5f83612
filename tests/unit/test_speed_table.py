"""What the report says of speed."""

from typing import Any

from distill.speed_table import MARK, Speed, latency_cell, speed_notes, speed_table, speed_up_cell

PLAN = {"documents": 20, "rounds": 3, "batch_sizes": [1, 8], "seconds": 50.0, "note": "", "rounds_measured": 3}
MACHINE = {
    "device": "Some CPU",
    "precision": "fp32",
    "threads": 2,
    "cores": 2,
    "load_before": 0.4,
    "load_during": 2.1,
    "other_cores": 0.1,
    "is_busy": False,
}


def speed(name: str, latency: float, tokens: float = 10, **changes: Any) -> Speed:
    rounds = [latency, 0.9 * latency, 1.1 * latency]
    values = {
        "unfit": None,
        "parameters": 2_200_000,
        "num_beams": 4,
        "latency_ms": latency,
        "latency_ms_rounds": rounds,
        "tokens_per_document": tokens,
        "ms_per_token": latency / tokens,
        "best_batch": 8,
        "documents_per_second": 50.0,
        "documents_per_second_rounds": {"1": [20.0, 21.0, 22.0], "8": [49.0, 50.0, 60.0]},
        "peak_memory_bytes": 300_000_000,
        "disk_bytes": 9_000_000,
        "plan": PLAN,
        "machine": MACHINE,
    }
    return Speed(name, "2-1", "teacher", values | changes)


TEACHER = Speed("teacher", "2-4", "teacher", speed("", 100, parameters=3_700_000).values)


def test_the_table_shows_medians_and_spreads() -> None:
    rows = speed_table([TEACHER, speed("s", 40)]).splitlines()
    assert rows[0].startswith("| model | ms/doc | ms/token | tokens/doc | docs/s | batch |")
    assert rows[3] == "| s | 40.0 [36.0, 44.0] | 4.00 | 10.0 | 50.0 [49.0, 60.0] | 8 | 300 | 9.0 |"
    assert speed_up_cell(speed("s", 40), [TEACHER, speed("s", 40)]) == "2.50"
    assert speed_up_cell(TEACHER, [TEACHER]) == "1.00"
    notes = speed_notes([TEACHER, speed("s", 40)])
    for part in ("Some CPU (threads: 2, cores: 2, fp32)", "20 documents, 3 rounds, batches of 1, 8", "0.4 before"):
        assert part in notes
    assert "**" not in notes, "nothing is wrong"


def test_one_round_shows_no_speed_up() -> None:
    plan = PLAN | {"rounds": 1, "rounds_measured": 1}
    values = TEACHER.values | {"latency_ms_rounds": [100.0], "plan": plan}
    one = Speed("teacher", "2-4", "teacher", values)
    student = speed("s", 40, latency_ms_rounds=[40.0])
    assert speed_up_cell(student, [one, student]) == "-"
    assert "No speed-up is shown: one round has no spread" in speed_notes([one, student])
    assert "[" not in speed_table([one]).split("|")[9], "and no spread"


def test_equal_shapes_with_different_speeds_are_marked() -> None:
    speeds = [TEACHER, speed("a", 40), speed("b", 60), speed("c", 44)]
    assert [latency_cell(each, speeds) for each in speeds] == ["100.0", f"40.0 {MARK}", f"60.0 {MARK}", f"44.0 {MARK}"]
    notes = speed_notes(speeds)
    assert notes.count("Not reliable") == 1, "one sentence for each shape, about those that differ most"
    assert "a (40.0 ms) and b (60.0 ms)" in notes and "differ by 50 %" in notes


def test_what_explains_a_difference_is_not_marked() -> None:
    plain = speed("a", 40)
    for other in (
        speed("b", 45),  # less than 20 %
        speed("b", 80, tokens=20),  # longer summaries
        speed("b", 80, num_beams=8),
        speed("b", 80, parameters=5_000_000),
        Speed("b", "2-2", "teacher", speed("b", 80).values),
    ):
        assert latency_cell(other, [plain, other]) == f"{other.latency_ms:.1f}"
        assert "Not reliable" not in speed_notes([plain, other])


def test_what_did_not_fit_is_said() -> None:
    big = Speed("big", "2-1", "big", {"unfit": "big does not fit into memory", "disk_bytes": 10**9, "plan": PLAN,
                                      "machine": MACHINE})  # fmt: skip
    student = Speed("s", "2-1", "big", speed("s", 40).values)
    speeds = [big, student, speed("t", 40, peak_memory_bytes=None)]
    assert speed_table(speeds).splitlines()[2] == "| big | - | - | - | - | - | - | 1000.0 |"
    assert speed_up_cell(student, speeds) == "-", "there is nothing to compare it with"
    notes = speed_notes(speeds)
    assert "big does not fit into memory: its speed is not measured" in notes
    assert "t does not fit into memory in a process of its own with a batch of 8" in notes


def test_a_busy_machine_and_a_short_measurement_are_said() -> None:
    machine = MACHINE | {"is_busy": True, "other_cores": 1.3}
    plan = PLAN | {"note": "This machine is slow.", "rounds": 5, "rounds_measured": 3}
    notes = speed_notes([Speed("t", "2-4", "t", TEACHER.values | {"machine": machine, "plan": plan})])
    assert "busy with other work" in notes and "kept 1.3 cores busy" in notes
    assert "This machine is slow." in notes
    assert "after 3 of the 5 planned rounds" in notes
