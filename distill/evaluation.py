"""The scores of a model on a split, from the shards of its summaries; of one decoding, or of a grid of them."""

import shutil
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeVar

from distill.claim import TakenOverError
from distill.distributed import World
from distill.errors import InputError
from distill.export import save_decoding
from distill.files import atomic_folder, read_json, write_json, write_jsonl
from distill.generation import HuggingFace
from distill.preemption import StoppedError
from distill.run import Member, Run, Split
from distill.scores import corpus_scores, score
from distill.search import Point, best_point, points
from distill.sections import Evaluate
from distill.shards import fill_each
from distill.summaries import SummaryWriter, read_summaries
from distill.task import Task, decoded

Result = TypeVar("Result")


def summary_writer(
    task: Task, folder: Path, settings: Evaluate, world: World, before_batch: Callable[[], None]
) -> SummaryWriter:
    """Fills the shards of a task in `folder` with the model itself, on this process's device."""
    return SummaryWriter(
        folder=folder,
        contents=task.contents,
        engine=HuggingFace(task.model.to(world.device), task.tokenizer, task.config, world.device),
        ids=task.ids,
        source=task.source,
        batch_tokens=settings.batch_tokens,
        before_batch=before_batch,
    )


def fill_together(writer: SummaryWriter, world: World) -> None:
    """Fill all shards, dealt over the processes. Where one of them stops or fails to write, all raise."""
    stopped: BaseException | None = None
    try:
        fill_each(range(world.rank, writer.contents.shards, world.size), writer.write)
    except (StoppedError, TakenOverError, OSError) as error:
        stopped = error
    if world.any(stopped is not None):  # none waits for one that is gone
        raise stopped or StoppedError("another process stopped")


def on_main(world: World, work: Callable[[], Result]) -> Result | None:
    """Do it on rank 0, whose result it is; None on the others. An InputError is raised on all."""
    problem, result = None, None
    if world.is_main:
        try:
            result = work()
        except InputError as error:
            problem = str(error)
    problem = world.broadcast(problem)
    if problem:
        raise InputError(problem)
    return result


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
    _export_decoding(run, member, task)
    with atomic_folder(member.evaluation(split)) as partial:
        write_jsonl(partial / "predictions.jsonl", predictions)
        write_json(partial / "scores.json", scores)
    shutil.rmtree(shards)
    return scores


def score_point(run: Run, member: Member, task: Task, point: Point, seconds: float | None) -> None:
    """Write the result of a point of the search, and remove its shards. `seconds`: None where they were not all seen.

    InputError, by name, where a shard is missing or altered.
    """
    job = f"jobs.search --{member.group.removesuffix('s')} {member.name}"
    summaries = read_summaries(point.folder, task.contents, task.ids, task.source, job)
    texts, settings = [one[0].text for one in summaries], run.evaluate_settings(member)
    result = {
        "num_beams": point.num_beams,
        "length_penalty": point.length_penalty,
        "score": corpus_scores(texts, task.references(), settings.bleu_tokenize)[settings.metric],
        "summary_words": sum(len(text.split()) for text in texts) / len(texts),
        "seconds": seconds,
    }
    write_json(point.result, result)
    shutil.rmtree(point.folder)


def write_best(run: Run, member: Member, task: Task) -> dict[str, Any]:
    """Write search.json from the results of all points, remove these, return it."""
    settings = run.evaluate_settings(member)
    assert settings.search is not None
    grid = points(settings.search, member)
    results = [read_json(point.result) for point in grid]
    best = grid[results.index(best_point(results))]
    generation = settings.generation.model_copy(update=best.settings)
    _export_decoding(run, member, decoded(task, generation, run.recipe.corpus.max_target_tokens))
    found = {
        "metric": settings.metric,
        "examples": len(task.ids),
        "best": best.settings,
        "points": results,
        "contents": asdict(task.contents),
    }
    write_json(member.search, found)
    shutil.rmtree(member.search_points)
    return found


def _export_decoding(run: Run, member: Member, task: Task) -> None:
    """Write the task's decoding into the weights that the run exports; a model from elsewhere stays as it is."""
    if run.train_settings(member) is not None:
        save_decoding(task.config, member.best)
