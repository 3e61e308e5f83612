"""What a recipe needs of a machine: models, files, room on the disk, memory at its ZeRO stages. No torch."""

from dataclasses import dataclass, field
from pathlib import Path

from distill import plan
from distill.distillation import distillation
from distill.preflight import base_shape, looks_like_folder, teacher_shape
from distill.reading import documents_source, sources
from distill.recipe import Recipe, Student, Teacher
from distill.run import Member, Run
from launch.doctor.probe import Request, model_folder, model_problem
from launch.overview import shape_of_member

ROOM_GB = 1.0  # without a recipe
WHOLE_COPIES = 3  # of the weights: initial, best, final
MORE_CHECKPOINTS = 2  # the best step's, and the one that is being written


@dataclass(frozen=True)
class Needs:
    """What the doctor compares with what its processes see."""

    models: tuple[str, ...] = ()
    files: tuple[str, ...] = ()
    room_gb: float = ROOM_GB
    memory_gb: dict[str, float] = field(default_factory=dict)
    """Estimated, per process, of each training."""
    unknown: tuple[str, ...] = ()
    """Trainings whose models are not on this machine."""
    wants_bf16: bool = False

    def request(self, time_limit_min: int | None) -> Request:
        return Request(self.models, self.files, time_limit_min)


def needs_of(recipe: Recipe, processes: int) -> Needs:
    """InputError where a file of the corpus is missing."""
    teachers = [teacher for teacher in recipe.teachers.values() if not teacher.run]
    given: list[Teacher | Student] = [*teachers, *recipe.students.values()]
    models = dict.fromkeys(settings.model for settings in given if settings.model)
    documents = [documents_source(recipe.corpus, labels, name) for name, labels in recipe.labels.items()]
    read = [*sources(recipe.corpus).values(), *(source for source in documents if source)]
    files = [file for source in read for file in source.files]
    files += [Path(labels.file) for labels in recipe.labels.values() if labels.file]
    run = Run(_with_cached_models(recipe), Path())
    trained = [member for member in run.members() if run.train_settings(member)]
    known = {str(member): (_memory_gb(run, member, processes), _room_gb(run, member)) for member in trained}
    whole = {name: (memory, room) for name, (memory, room) in known.items() if memory is not None and room is not None}
    return Needs(
        models=tuple(models),
        files=tuple(map(str, files)),
        room_gb=ROOM_GB + sum(room for _, room in whole.values()),
        memory_gb={name: memory for name, (memory, _) in whole.items()},
        unknown=tuple(name for name in known if name not in whole),
        wants_bf16=_wants_bf16(run),
    )


def _with_cached_models(recipe: Recipe) -> Recipe:
    """Hub names as the folders of the cache, where they are there: their shapes are known then."""

    def local(settings: Teacher | Student) -> Teacher | Student:
        name = settings.model
        if name is None or looks_like_folder(name) or model_problem(name):
            return settings
        return settings.model_copy(update={"model": str(model_folder(name))})

    groups = {"teachers": recipe.teachers, "students": recipe.students}
    changed = {group: {name: local(block) for name, block in blocks.items()} for group, blocks in groups.items()}  # type: ignore[attr-defined]
    return recipe.model_copy(update=changed)


def _memory_gb(run: Run, member: Member, processes: int) -> float | None:
    """Estimated, per process: the model's training, and a live teacher beside it."""
    shape, train, settings = shape_of_member(run, member), run.train_settings(member), run.settings(member)
    if shape is None or train is None:
        return None
    memory = plan.training_memory_gb(shape, train, processes)
    if not isinstance(settings, Student) or not settings.objective.needs_teacher:
        return memory
    chosen, teacher = run.recipe.teachers[settings.teacher], teacher_shape(run.recipe, settings.teacher)
    base = base_shape(run.recipe, member.name, teacher)
    if chosen.cache or teacher is None or base is None:
        return memory if chosen.cache else None
    shares = distillation(run.recipe, member.name, teacher, base).shares_encoder
    return memory + plan.teacher_memory_gb(teacher, chosen, train.precision, processes, shares)


def _room_gb(run: Run, member: Member) -> float | None:
    """Estimated: the weights in fp32 three times, and in each kept checkpoint what is trained with the optimizer's states."""
    shape, train = shape_of_member(run, member), run.train_settings(member)
    if shape is None or train is None:
        return None
    kept = train.keep_checkpoints + MORE_CHECKPOINTS
    if train.keep_every_steps and train.steps:
        kept += train.steps // train.keep_every_steps
    trained = plan.trainable_parameters(shape, train)
    states = plan.BYTES[train.precision] + plan.state_bytes(train)
    return (WHOLE_COPIES * 4 * shape.parameters() + kept * states * trained) / 1e9


def _wants_bf16(run: Run) -> bool:
    trains = [run.train_settings(member) for member in run.members()]
    teaches = [teacher.precision for teacher in run.recipe.teachers.values()]
    labels = [labels.precision for labels in run.recipe.labels.values()]
    return "bf16" in [*(train.precision for train in trains if train), *teaches, *labels]
