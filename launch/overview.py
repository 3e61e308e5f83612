"""The dry run: stages, commands, batch arithmetic, steps, estimated memory. Nothing is started, no torch."""

import shlex
from pathlib import Path

from rich.console import Console

from distill import plan
from distill.distillation import distillation, student_layers
from distill.families import Shape
from distill.files import read_json
from distill.preflight import base_shape, teacher_shape
from distill.recipe import Student
from distill.run import Member, Run
from distill.sections import Train
from distill.stages import Stage, stages
from launch.local import Processes, command


def show(run: Run, processes: Processes, console: Console) -> None:
    graph = stages(run)
    where = f"{processes.count} {processes.device} process{'es' if processes.count > 1 else ''}"
    console.print(f"{run.folder}: {len(graph)} stages on this machine, training on {where}", highlight=False)
    for number, stage in enumerate(graph, start=1):
        state = "complete" if stage.is_complete() else f"after {', '.join(stage.needs) or 'nothing'}"
        console.print(f"\n[{number}/{len(graph)}] {stage.name} ({state})", markup=False, highlight=False)
        line = shlex.join(command(run, stage, processes))
        console.print(f"    {line}", markup=False, highlight=False, soft_wrap=True)
        for text in _arithmetic(run, stage, processes):
            console.print(f"    {text}", markup=False, highlight=False, soft_wrap=True)


def _arithmetic(run: Run, stage: Stage, processes: Processes) -> list[str]:
    train = run.train_settings(stage.member) if stage.member else None
    if stage.job != "train" or train is None or stage.member is None:
        return []
    lines = [_batch(train, processes.count), _steps(train, _training_examples(run))]
    shape = _shape(run, stage.member)
    if shape is None:
        lines.append("memory: known once the teacher is on this machine (a hub name was given)")
    else:
        memory = plan.training_memory_gb(shape, train, processes.count)
        lines.append(
            f"{shape.encoder_layers}-{shape.decoder_layers} layers, about {shape.parameters() / 1e6:.1f} M parameters "
            f"({plan.trainable_parameters(shape, train) / 1e6:.1f} M trained); ZeRO {train.zero_stage}, "
            f"{train.precision}: about {memory:.1f} GB per process"
        )
    return lines + _objective(run, stage.member, processes.count)


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


def _steps(train: Train, examples: int | None) -> str:
    rate = f"learning rate {train.learning_rate:g} after {train.warmup_steps} warm-up steps"
    if examples is None or train.batch_examples is None:
        given = f"{train.steps} steps" if train.steps else f"{train.epochs:g} epochs"
        return f"{given} (the other is known once the corpus is prepared and batched); {rate}"
    per_epoch = -(-examples // train.batch_examples)
    steps = plan.total_steps(train, per_epoch)
    return f"{examples} examples = {per_epoch} steps per epoch; {steps} steps = {steps / per_epoch:.2f} epochs; {rate}"


def _training_examples(run: Run) -> int | None:
    manifest: Path = run.corpus / "manifest.json"
    if not manifest.exists():
        return None
    examples: int = read_json(manifest)["splits"]["train"]["examples"]
    return examples


def _shape(run: Run, member: Member) -> Shape | None:
    settings = run.settings(member)
    if not isinstance(settings, Student):
        return teacher_shape(run.recipe, member.name)
    teacher = teacher_shape(run.recipe, settings.teacher)
    base = base_shape(run.recipe, member.name, teacher)
    if base is None:
        return None
    encoder, decoder = student_layers(run.recipe, member.name, base)
    return base.with_depths(len(encoder), len(decoder))
