"""Profiles: what each stage asks of a SLURM cluster. One YAML file is one cluster (or one way to use it)."""

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, StringConstraints, ValidationError

from distill.errors import InputError
from distill.sections import Number, Positive, Section, no_bool
from distill.stages import Stage
from distill.validation import explain, read_yaml

JobName = Literal[
    "prepare",
    "teacher",
    "cache",
    "convert",
    "label",
    "merge",
    "shrink",
    "train",
    "search",
    "evaluate",
    "benchmark",
    "report",
]
Text = Annotated[str, StringConstraints(min_length=1, max_length=1000, pattern=r"^[^\n\r\x00]*$")]
Variable = Annotated[str, StringConstraints(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")]
Option = Annotated[str, StringConstraints(pattern=r"^[a-z][a-z-]*$")]
NotNegative = Annotated[int, BeforeValidator(no_bool), Field(ge=0)]
OWN_OPTIONS = {"array", "chdir", "dependency", "error", "export", "job-name", "nodes", "ntasks", "ntasks-per-node", "open-mode",
               "output", "signal", "time", "wrap"}  # fmt: skip
ON_A_GPU: tuple[JobName, ...] = ("cache", "convert", "label", "train", "search", "evaluate", "benchmark")


class Resources(Section):
    """What one stage asks for."""

    partition: Text | None = None
    account: Text | None = None
    qos: Text | None = None
    constraint: Text | None = None
    nodes: Positive = 1
    """Of a training, a search or an evaluation; every other stage, and every label or cache shard, has one process on one node."""
    gpus_per_node: NotNegative = 0
    """One process for every GPU; 0: CPU processes."""
    processes_per_node: Positive = 1
    """Where there are no GPUs."""
    cpus_per_process: Positive = 1
    memory_gb_per_process: Annotated[Number, Field(gt=0)] | None = None
    """Host memory; the cluster's default where it is left out."""
    time_limit_min: Positive = 1440
    """A job that reaches it saves, leaves and is requeued."""
    signal_lead_seconds: Positive = 120
    """How long before the time limit SLURM sends the signal."""
    grace_seconds: Annotated[Number, Field(gt=0)] | None = None
    """From the signal of a preemption to the kill (the partition's GraceTime), where known."""
    array_throttle: Positive | None = None
    """Most shards at one time; all where it is left out."""
    setup: list[Text] = Field(default_factory=list)
    """Lines of shell before the job: modules, a virtual environment."""
    environment: dict[Variable, str] = Field(default_factory=dict)
    options: dict[Option, Text | int | bool] = Field(default_factory=dict)
    """Any other option of sbatch, without its dashes: `{reservation: night, exclude: "n[1-3]"}`."""

    @property
    def processes(self) -> int:
        """Per node."""
        return self.gpus_per_node or self.processes_per_node


class Profile(Resources):
    """The resources of all stages, with what single stages have instead; how often a job may come back."""

    max_requeues: NotNegative = 100
    """How often a stage may be stopped by preemption or its time limit before it counts as failed."""
    max_retries: NotNegative = 2
    """How often a stage may fail for another reason and be tried again; wrong input (exit code 2) never is."""
    stages: dict[JobName, Resources] = Field(default_factory=dict)
    """By job, over what stands above."""

    def of(self, stage: Stage) -> Resources:
        """What a stage asks for: a process group all of it, workers one process for each shard, others one process."""
        asked = self.stages.get(stage.job, self)  # type: ignore[call-overload]
        assert isinstance(asked, Resources)
        if stage.kind == "process group":
            return asked
        gpus = min(1, asked.gpus_per_node) if stage.job in ON_A_GPU else 0
        return asked.model_copy(update={"nodes": 1, "gpus_per_node": gpus, "processes_per_node": 1})


def load_profile(path: Path) -> Profile:
    """Read and validate. InputError lists every error with its dotted path."""
    raw = read_yaml(path, "profile", "partition, nodes, gpus_per_node, time_limit_min, stages")
    shared = {key: value for key, value in raw.items() if key in Resources.model_fields}
    merged, own = dict(raw), raw.get("stages")
    if isinstance(own, dict):
        merged["stages"] = {job: shared | block if isinstance(block, dict) else block for job, block in own.items()}

    def is_inherited(at: list[str]) -> bool:
        block: Any = own.get(at[1]) if len(at) > 2 and at[0] == "stages" and isinstance(own, dict) else None
        return isinstance(block, dict) and at[2] not in block

    try:
        profile = Profile.model_validate(merged)
    except ValidationError as error:
        raise InputError(explain(error, Profile, f"{path} is not a valid profile:", is_inherited)) from None
    _refuse_late_signals(profile, path)
    _refuse_own_options(profile, path)
    return profile


def _refuse_late_signals(profile: Profile, path: Path) -> None:
    for name, block in _blocks(profile):
        if block.signal_lead_seconds >= 60 * block.time_limit_min:
            raise InputError(
                f"{path} is not a valid profile:\n  {name}signal_lead_seconds: {block.signal_lead_seconds} given, but "
                f"the time limit is {block.time_limit_min} min; expected less, or a job is stopped as it begins"
            )


def _refuse_own_options(profile: Profile, path: Path) -> None:
    for name, block in _blocks(profile):
        if wrong := sorted(OWN_OPTIONS & set(block.options)):
            raise InputError(
                f"{path} is not a valid profile:\n  {name}options: {', '.join(wrong)} given; the launcher sets this itself, or "
                "it has a key of its own; leave it out"
            )


def _blocks(profile: Profile) -> list[tuple[str, Resources]]:
    return [("", profile), *((f"stages.{job}.", block) for job, block in profile.stages.items())]
