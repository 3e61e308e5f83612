"""The scores of a model on a split, from the shards of its summaries."""

import shutil
from typing import Any

from distill.files import atomic_folder, write_json, write_jsonl
from distill.run import Member, Run, Split
from distill.scores import score
from distill.summaries import read_summaries
from distill.task import Task


def score_split(run: Run, member: Member, split: Split, task: Task) -> dict[str, Any]:
    """Write predictions.jsonl in corpus order and scores.json, remove the shards, return the scores.

    InputError, by name, where a shard is missing, altered, or of other settings.
    """
    group = member.group.removesuffix("s")
    shards, job = member.evaluation_shards(split), f"jobs.evaluate --{group} {member.name} --split {split}"
    summaries = [one[0] for one in read_summaries(shards, task.contents, task.ids, task.source, job)]
    rows, texts = task.rows(), [one.text for one in summaries]
    tokenize = run.evaluate_settings(member).bleu_tokenize
    scores = score([row["document"] for row in rows], texts, task.references(), run.recipe.seed, tokenize)
    scores |= {"split": split, "truncated_documents": task.truncated}
    scores |= {"unfinished": sum(not one.finished for one in summaries), "generation": task.contents.decoding}
    predictions = [
        {
            "id": row["id"],
            "summary": one.text,
            "log_probability": round(one.log_probability, 6),
            "finished": one.finished,
        }
        for row, one in zip(rows, summaries, strict=True)
    ]
    with atomic_folder(member.evaluation(split)) as partial:
        write_jsonl(partial / "predictions.jsonl", predictions)
        write_json(partial / "scores.json", scores)
    shutil.rmtree(shards)
    return scores
