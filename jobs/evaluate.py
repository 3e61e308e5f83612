"""deepspeed --module jobs.evaluate RECIPE --student NAME [--split test] [key=value ...]     (or torchrun, python -m)

Beam search on a whole split over all processes; predictions.jsonl in corpus order and scores.json.
"""

import logging

from jobs.start import Arguments, main

log = logging.getLogger(__name__)


def evaluate(arguments: Arguments) -> None:
    run, member, split = arguments.run, arguments.member, arguments.split
    assert member is not None
    folder = member.evaluation(split)
    if (folder / "scores.json").exists():
        log.info("%s is complete", folder)
        return
    weights = run.weights(member)

    from distill import distributed
    from distill.batching import tokenize
    from distill.corpus import read_split
    from distill.data import limits_of
    from distill.files import atomic_folder, write_json, write_jsonl
    from distill.generation import generation_config, summarize
    from distill.pretrained import load_model, load_tokenizer
    from distill.scores import score

    world = distributed.start()
    settings = run.evaluate_settings(member)
    model, tokenizer = load_model(weights).to(world.device), load_tokenizer(weights)
    rows = read_split(run.split(split))
    tokens = tokenize(tokenizer, rows, *limits_of(run, model))
    config = generation_config(model, settings.generation, run.recipe.corpus.max_target_tokens)
    summaries = summarize(model, tokenizer, tokens.source, config, settings.batch_tokens, world)
    if summaries is not None:
        references = [row["summary"] for row in rows]
        scores = score([row["document"] for row in rows], summaries, references, run.recipe.seed)
        scores |= {"split": split, "truncated_documents": tokens.truncated["documents"]}
        scores["generation"] = {k: v for k, v in config.to_diff_dict().items() if k != "transformers_version"}
        pairs = zip(rows, summaries, strict=True)
        with atomic_folder(folder) as partial:
            write_jsonl(partial / "predictions.jsonl", [{"id": row["id"], "summary": text} for row, text in pairs])
            write_json(partial / "scores.json", scores)
        log.info(
            "%s on %s: %s", member, split, {k: round(scores[k]["mean"], 2) for k in ("rouge1", "rouge2", "rougeL")}
        )
    world.barrier()


if __name__ == "__main__":
    main(evaluate, "evaluate", needs_member=True)
