"""The dry run: stages, commands, batch arithmetic, steps, estimated memory. Nothing is started, no torch."""

import shlex
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from distill import plan
from distill.corpus_settings import shown_paths
from distill.distillation import distillation, student_layers
from distill.families import Shape
from distill.preflight import base_shape, teacher_shape
from distill.recipe import GOLD, Student, sources
from distill.run import LabelSet, Member, Run
from distill.search import points
from distill.sections import Evaluate, Generation, Train
from distill.stages import Stage
from launch.local import Processes, count_of
from launch.profile import Profile
from launch.slurm import Submission, sbatch_parameters
from launch.steps import planned_steps, training_examples


@dataclass(frozen=True)
class Place:
    """Where a run would run: in words, and for each stage its processes and what there is to say about them."""

    title: str
    processes: Callable[[Stage], int]
    describe: Callable[[Stage], str]


def this_machine(processes: Processes) -> Place:
    many = f"{processes.count} {processes.device} process{'es' if processes.count > 1 else ''}"

    def describe(stage: Stage) -> str:
        count = count_of(stage, processes)
        together = "workers, which share the shards out" if stage.kind == "workers" else "processes in one group"
        return f"({count} {together})" if count > 1 else ""

    return Place(f"on this machine, training on {many}", lambda stage: count_of(stage, processes), describe)


def cluster(run: Run, profile: Profile, file: Path) -> Place:
    def describe(stage: Stage) -> str:
        shards = tuple(shard.number for shard in stage.shards if not shard.is_complete()) or None
        parameters = sbatch_parameters(run, Submission(stage, profile.of(stage), shards), "", [])
        parameters |= parameters.pop("additional_parameters")
        shown = ("partition", "nodes", "ntasks_per_node", "gpus_per_node", "cpus_per_task", "mem", "time", "qos")
        asked = ", ".join(f"{key} {parameters[key]}" for key in shown if key in parameters)
        array = f"an array of {len(shards)}, {parameters['array_parallelism']} at a time; " if shards else ""
        after = f"after {', '.join(stage.needs)}; " if stage.needs else ""
        return f"\n    {after}{array}{asked}"

    def processes(stage: Stage) -> int:
        return profile.of(stage).nodes * profile.of(stage).processes

    return Place(f"by SLURM as {file} says", processes, describe)


def show(run: Run, graph: list[Stage], place: Place, console: Console) -> None:
    """Print the stages of `graph` to do, each with its command and what is known of it, and a summary."""
    to_do = [stage for stage in graph if not stage.is_complete()]
    if to_do and graph[-1].job == "report" and graph[-1] not in to_do:
        to_do.append(graph[-1])  # it is made of what the others change

    def say(text: str = "") -> None:
        console.print(text.rstrip(), highlight=False, markup=False, soft_wrap=True)

    say(f"{run.folder}: {len(to_do)} of {len(graph)} stages to do {place.title}")
    if to_do:
        say(f"commands: RUN is {run.recipe_file} --runs {run.folder.parent}, written when the run begins")
    width = max(len(stage.name) for stage in graph)
    digits = len(str(len(graph)))
    for number, stage in enumerate(graph, start=1):
        if stage in to_do:
            line = shlex.join(["python", "-m", f"jobs.{stage.job}", "RUN", *stage.arguments])
            count = f"[{number:>{digits}}/{len(graph)}]"
            say(f"{count} {stage.name:{width}}  {line}  {place.describe(stage)}")
            for text in _arithmetic(run, stage, place.processes(stage)):
                say(f"    {text}")
    say()
    say(_summary(run, graph, to_do))


def _summary(run: Run, graph: list[Stage], to_do: list[Stage]) -> str:
    if not to_do:
        return f"nothing to do: {run.folder} is complete"
    counts = Counter(stage.job for stage in to_do)
    parts = [f"{job} x {count}" if count > 1 else job for job, count in counts.items()]
    lines = [f"to do: {', '.join(parts)}; done before: {len(graph) - len(to_do)}"]
    trainings = [stage.member for stage in to_do if stage.job == "train" and stage.member]
    steps = [planned_steps(run, member) for member in trainings]
    known = [count for count in steps if count is not None]
    if known:
        lines.append(f"training steps: {sum(known):,}")
    if len(known) < len(steps):
        lines.append(f"trainings whose steps are known once the corpus is prepared: {len(steps) - len(known)}")
    return "\n".join(lines)


def _arithmetic(run: Run, stage: Stage, processes: int) -> list[str]:
    if stage.job == "label" and isinstance(stage.subject, LabelSet):
        return [_labels(run, stage.subject)]
    if stage.job == "merge" and isinstance(stage.subject, LabelSet) and stage.subject.settings.file:
        return [f"labels read from {stage.subject.settings.file}; {_rules(stage.subject)}"]
    if stage.job == "search" and stage.member:
        return [_search(run, stage.member)]
    train = run.train_settings(stage.member) if stage.member else None
    if stage.job != "train" or train is None or stage.member is None:
        return []
    evaluate = run.evaluate_settings(stage.member)
    lines = [_batch(train, processes), _steps(train, evaluate, training_examples(run, stage.member))]
    shape = shape_of_member(run, stage.member)
    if shape is None:
        lines.append("memory: known once the teacher is on this machine (a hub name was given)")
    else:
        memory = plan.training_memory_gb(shape, train, processes)
        lines.append(
            f"{shape.encoder_layers}-{shape.decoder_layers} layers, about {shape.parameters() / 1e6:.1f} M parameters "
            f"({plan.trainable_parameters(shape, train) / 1e6:.1f} M trained); ZeRO {train.zero_stage}, "
            f"{train.precision}, {_optimizer(train, plan.host_memory_gb(shape, train, processes))}: about {memory:.1f} GB per "
            "process"
        )
    settings = run.settings(stage.member)
    if isinstance(settings, Student) and settings.train_on != {GOLD: 1.0}:
        lines.append(f"trains on {sources(settings.train_on)}")
    return lines + _objective(run, stage.member, processes)


def _objective(run: Run, member: Member, processes: int) -> list[str]:
    """What a student is scored against, where that is more than the target texts."""
    settings = run.settings(member)
    if not isinstance(settings, Student) or not settings.objective.needs_teacher:
        return []
    chosen = run.recipe.teachers[settings.teacher]
    how = f"from its cache of {chosen.cache.keep}" if chosen.cache else f"live, ZeRO {chosen.zero_stage}"
    lines = [f"scored against teacher {settings.teacher}, {how}"]
    teacher = teacher_shape(run.recipe, settings.teacher)
    base = base_shape(run.recipe, member.name, teacher)
    if teacher is None or base is None:
        return lines
    pairs = distillation(run.recipe, member.name, teacher, base)
    sides = (("decoder", pairs.decoder_pairs), ("encoder", pairs.encoder_pairs))
    lines += [f"{name} layers (student: teacher) {dict(side)}" for name, side in sides if side]
    if not chosen.cache:
        memory = plan.teacher_memory_gb(teacher, chosen, settings.train.precision, processes, pairs.shares_encoder)
        encoder = "one frozen encoder for both" if pairs.shares_encoder else "each runs its own encoder"
        lines.append(f"{encoder}; the teacher's weights: about {memory:.2f} GB per process more")
    return lines


def _batch(train: Train, processes: int) -> str:
    size = f"{train.batch_examples} examples" if train.batch_examples else f"{train.batch_tokens} padded tokens"
    return (
        f"a step reads {size}, over {processes} process(es); each holds at most {train.micro_batch_tokens} padded "
        "tokens at once and accumulates the rest"
    )


def _optimizer(train: Train, host_memory_gb: float) -> str:
    offload = f", its states in the host's memory (about {host_memory_gb:.1f} GB per process)" if train.offload else ""
    return train.optimizer + offload + (", gradient checkpointing" if train.gradient_checkpointing else "")


def _steps(train: Train, evaluate: Evaluate, examples: int | None) -> str:
    rate = f"learning rate {train.learning_rate:g} after {_warmup(train, train.steps)}, then {train.schedule}"
    if examples is None or train.batch_examples is None:
        given = (
            f"{train.steps} steps"
            if train.steps
            else f"{train.epochs:g} epochs (in steps: once the corpus is prepared)"
        )
        every = f"{evaluate.every_steps} steps" if evaluate.every_steps else f"{evaluate.every_epochs:g} epochs"
        return f"{given}; {rate}; validated every {every}"
    per_epoch = -(-examples // train.batch_examples)
    steps = plan.total_steps(train, per_epoch)
    rate = f"learning rate {train.learning_rate:g} after {_warmup(train, steps)}, then {train.schedule}"
    return (
        f"{examples} examples = {per_epoch} steps per epoch; {steps} steps = {steps / per_epoch:.2f} epochs; {rate}; "
        f"validated every {plan.validation_steps(evaluate, per_epoch)} steps"
    )


def _warmup(train: Train, steps: int | None) -> str:
    if steps is not None:
        return f"{plan.warmup_steps(train, steps)} warm-up steps"
    return "5 % of the steps" if train.warmup_steps is None else f"{train.warmup_steps} warm-up steps"


def _labels(run: Run, labels: LabelSet) -> str:
    settings = labels.settings
    documents = shown_paths(settings.documents) if settings.documents else "the training split"
    given = settings.model_dump(include=set(Generation.model_fields), exclude_none=True)
    decoding = ", ".join(f"{key} {value}" for key, value in given.items()) or "the teacher's own decoding"
    made = f"{documents} by teacher {labels.teacher} ({settings.engine.name}; {decoding}), {settings.shards} shards"
    return f"{made}; {_rules(labels)}"


def _rules(labels: LabelSet) -> str:
    given = labels.settings.keep_if.given
    return ", ".join(f"{rule} {bound}" for rule, bound in given.items()) or "all labels are kept"


def _search(run: Run, member: Member) -> str:
    settings = run.evaluate_settings(member)
    assert settings.search is not None
    tried = ", ".join(
        " x ".join(f"{value:g}" for value in p.settings.values()) for p in points(settings.search, member)
    )
    return f"beams x length penalty: {tried}; on {settings.search.examples} validation examples, by {settings.metric}"


def shape_of_member(run: Run, member: Member) -> Shape | None:
    """What a member is trained as; None where it comes from a hub name, not looked up here."""
    settings = run.settings(member)
    if not isinstance(settings, Student):
        return teacher_shape(run.recipe, member.name)
    teacher = teacher_shape(run.recipe, settings.teacher)
    base = base_shape(run.recipe, member.name, teacher)
    if base is None:
        return None
    encoder, decoder = student_layers(run.recipe, member.name, base)
    return base.with_depths(len(encoder), len(decoder))
