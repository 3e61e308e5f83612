"""python -m jobs.merge RECIPE --labels NAME [key=value ...]

The shards of a label set, or a file of labels that were made elsewhere, as one table: exactly one row for each document,
with its label and why students must not read it, if so.
"""

import logging

from distill.errors import InputError
from jobs.start import Arguments, main

log = logging.getLogger(__name__)


def merge(arguments: Arguments) -> None:
    run, labels = arguments.run, arguments.labels
    assert labels is not None
    if labels.is_merged():
        log.info("%s is complete", labels.table)
        return
    if labels.settings.file:
        if not run.corpus.exists():
            raise InputError(f"{run.folder} has no corpus; run jobs.prepare first.")
    else:
        run.weights(run.member("teachers", labels.teacher))  # refused before torch is loaded

    from distill.imported import describe_file
    from distill.labels import merge_labels

    manifest = merge_labels(run, labels)
    if labels.settings.file:
        log.info("%s: %s", labels.settings.file, describe_file(manifest["file"]))
    dropped = ", ".join(f"{count} {rule}" for rule, count in manifest["dropped"].items()) or "none"
    log.info("%s: %d of %d kept; dropped: %s", labels, manifest["kept"], manifest["documents"], dropped)


if __name__ == "__main__":
    main(merge, "merge", works_on="labels")
