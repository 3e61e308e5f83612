"""python -m jobs.report RECIPE [key=value ...]

report/report.md: the table of quality and speed, the pictures, ten documents with every summary.
"""

import logging

from distill.errors import InputError
from jobs.start import Arguments, main

log = logging.getLogger(__name__)


def report(arguments: Arguments) -> None:
    from distill.stages import benchmark_is_current, report_inputs, report_is_current, report_manifest

    run = arguments.run
    missing = [name for name, file in report_inputs(run).items() if not file.exists()]
    if missing:
        raise InputError(
            f"the report of {run.folder} lacks {', '.join(missing)}; run the stages that make them first "
            "(python -m launch run does all of them)."
        )
    if not benchmark_is_current(run):
        raise InputError(
            f"the benchmark.json of the models in {run.folder} are not of one measurement with the recipe's benchmark "
            f"settings, or were made by an older version. Expected one measurement of all models; run python -m "
            "jobs.benchmark first (python -m launch run does it)."
        )
    if report_is_current(run):
        log.info("%s is complete", run.report)
        return

    from distill.corpus import read_split
    from distill.files import atomic_folder, write_json
    from distill.report import write_report

    with atomic_folder(run.report) as folder:
        write_report(run, read_split(run.split("test")), folder)
        write_json(folder / "manifest.json", report_manifest(run))
    log.info("wrote %s", run.report / "report.md")


if __name__ == "__main__":
    main(report, "report")
