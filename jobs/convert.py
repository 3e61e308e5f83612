"""python -m jobs.convert RECIPE --labels NAME [key=value ...]

Before an engine other than Hugging Face labels anything: the teacher in its format, and both engines' summaries of some
documents side by side. Refused where they agree less than labels.NAME.engine.agreement_at_least.
"""

import logging

from jobs.start import Arguments, main

log = logging.getLogger(__name__)


def convert_teacher(arguments: Arguments) -> None:
    from distill.errors import InputError

    run, labels = arguments.run, arguments.labels
    assert labels is not None
    if labels.settings.engine.name == "huggingface":
        raise InputError(f"{labels} are made by huggingface; nothing is converted. Give labels of another engine.")
    if labels.has_engine():
        log.info("%s is complete", labels.engine)
        return
    run.weights(run.member("teachers", labels.teacher))  # refused before torch is loaded

    from distill import distributed
    from distill.engines import make_engine
    from distill.task import label_task

    world = distributed.place()
    figures = make_engine(labels, label_task(run, labels), run.recipe.seed, world.device)
    speeds = figures["documents_per_second"]
    log.info(
        "%s: ROUGE-L %.2f between the engines on %d documents (%d identical); documents a second: %s",
        labels,
        figures["agreement"],
        figures["documents"],
        figures["identical"],
        ", ".join(f"{name} {speed:.2f}" for name, speed in speeds.items()),
    )


if __name__ == "__main__":
    main(convert_teacher, "convert", works_on="labels")
