"""python -m jobs.prepare RECIPE [key=value ...]

The corpus, once: train, validation and test as parquet, and a manifest of what was read, kept and dropped.
"""

import logging

from jobs.start import Arguments, main

log = logging.getLogger(__name__)


def prepare(arguments: Arguments) -> None:
    from distill.corpus import prepare_corpus
    from distill.run import SPLITS

    run = arguments.run
    if run.corpus.exists():
        log.info("%s is complete", run.corpus)
        return
    manifest = prepare_corpus(run.recipe.corpus, run.recipe.seed, run.corpus)
    for split in SPLITS:
        counts = manifest["splits"][split]
        log.info(
            "%s: %d examples (%d dropped, %d duplicate documents), words %s -> %s",
            split,
            counts["examples"],
            sum(counts["dropped"].values()),
            counts["duplicate_documents"],
            counts["document_words"]["mean"],
            counts["summary_words"]["mean"],
        )


if __name__ == "__main__":
    main(prepare, "prepare")
