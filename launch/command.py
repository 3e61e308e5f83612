"""The command line of a stage: exactly what a user would type to run it by hand."""

import sys

from distill.run import Run
from distill.stages import Stage


def command(run: Run, stage: Stage) -> list[str]:
    line = [sys.executable, "-m", f"jobs.{stage.job}", str(run.recipe_file), *stage.arguments]
    return [*line, "--runs", str(run.folder.parent)]
