"""The import ladder: every module of distill stands on a rung and imports only from rungs below."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
RUNGS = [
    {"errors", "sections", "markdown", "machine"},
    {"corpus_settings", "text_files"},
    {
        "preemption",
        "recipe",
        "validation",
        "losses",
        "scores",
        "docstrings",
        "signal",
        "json_array",
        "duplicates",
        "families",
        "benchmark_plan",
    },
    {
        "files",
        "formats",
        "splitting",
        "layers",
        "recipe_file",
        "distributed",
        "forward",
        "filters",
        "attention",
        "determinism",
        "folder",
        "speed_table",
        "compiling",
    },
    {"hub", "corpus_files", "run", "plan", "distillation", "checkpoint", "student", "claim", "failure"},
    {"reading", "corpus_warnings", "search", "shared", "changed_keys", "shards", "weights_and_biases", "head"},
    {"stages", "tracking", "preflight", "tokens", "corpus", "imported", "objective", "generation", "begun"},
    {"pretrained", "ctranslate", "export", "summaries", "batching", "baseline", "redo"},
    {"data", "speed", "tables", "teacher", "changes"},
    {"engine", "teacher_cache", "task", "peak_memory", "pictures"},
    {"scoring", "trainer", "engines", "evaluation", "report"},
    {"labels"},
]
RUNG = {module: number for number, rung in enumerate(RUNGS) for module in rung}
MODULES = sorted(path for name in ("distill", "jobs", "launch") for path in (ROOT / name).rglob("*.py"))


def imports(path: Path, top_level_only: bool = False) -> Iterator[str]:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in tree.body if top_level_only else ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


@pytest.mark.parametrize("path", sorted((ROOT / "distill").glob("*.py")), ids=lambda path: path.stem)
def test_every_module_imports_from_below(path: Path) -> None:
    if path.stem == "__init__":
        return
    assert path.stem in RUNG, f"{path.stem} stands on no rung"
    for name in imports(path):
        parts = name.split(".")
        assert parts[0] not in ("jobs", "launch"), f"{path.stem} imports {name}"
        if parts[0] == "distill" and len(parts) > 1 and parts[1] in RUNG:
            assert RUNG[parts[1]] < RUNG[path.stem], f"{path.stem} (rung {RUNG[path.stem]}) imports {parts[1]}"


def test_every_rung_is_there() -> None:
    assert set(RUNG) == {path.stem for path in (ROOT / "distill").glob("*.py")} - {"__init__"}


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_heavy_packages_have_one_place(path: Path) -> None:
    top = {name.split(".")[0] for name in imports(path)}
    assert "deepspeed" not in top or path == ROOT / "distill" / "engine.py"
    assert "submitit" not in top or path.parent == ROOT / "launch"
    assert path.parent != ROOT / "jobs" or "launch" not in top


def test_launch_and_the_top_of_jobs_import_no_torch() -> None:
    jobs = [f"jobs.{path.stem}" for path in (ROOT / "jobs").glob("*.py")]
    modules = ", ".join(["launch.cli", *jobs])
    heavy = "{'torch', 'transformers', 'deepspeed', 'datasets', 'pyarrow', 'matplotlib'}"
    code = f"import sys, {modules}; print(sorted({heavy} & set(sys.modules)))"
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"
