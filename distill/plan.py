"""What a recipe means at a world size: schedule, batch arithmetic, DeepSpeed settings, memory. Pure, no torch."""

import math
from collections.abc import Callable, Sequence
from typing import Any

from distill.families import Shape
from distill.recipe import Teacher
from distill.sections import EarlyStopping, Evaluate, Train

BYTES = {"fp32": 4, "bf16": 2}
CHUNK_LOGITS = 2**23  # logits of a chunk of the vocabulary head, 32 MiB in fp32


def total_steps(train: Train, steps_per_epoch: float) -> int:
    """Optimizer steps of the whole training."""
    if train.steps is not None:
        return train.steps
    assert train.epochs is not None
    return max(1, math.ceil(train.epochs * steps_per_epoch))


def warmup_steps(train: Train, steps: int) -> int:
    """Return over how many of `steps` the learning rate rises: the recipe's, else 5 %."""
    default = math.ceil(steps / 20)
    return min(default if train.warmup_steps is None else train.warmup_steps, steps)


def learning_rate(train: Train, step: int, steps: int) -> float:
    """Of optimizer step `step` (0-based) of `steps`: linear warm-up from above zero, then the schedule."""
    warmup = warmup_steps(train, steps)
    if step < warmup:
        return train.learning_rate * (step + 1) / warmup
    return train.learning_rate * SCHEDULES[train.schedule](train, (steps - step) / max(1, steps - warmup))


SCHEDULES: dict[str, Callable[[Train, float], float]] = {
    "linear": lambda train, left: left,
    "cosine": lambda train, left: (1 - math.cos(math.pi * left)) / 2,
    "constant": lambda train, left: 1.0,
    "polynomial": lambda train, left: float(left**train.polynomial_power),
}
"""The share of the learning rate where so large a share of the steps after the warm-up is left (1 to 0)."""


def validation_steps(evaluate: Evaluate, steps_per_epoch: float) -> int:
    """Optimizer steps between two validations."""
    if evaluate.every_steps is not None:
        return evaluate.every_steps
    assert evaluate.every_epochs is not None
    return max(1, round(evaluate.every_epochs * steps_per_epoch))


def has_stalled(scores: Sequence[float], settings: EarlyStopping | None) -> bool:
    """True where the last `patience` validations brought no improvement over the last one that counted."""
    if settings is None or not scores:
        return False
    counted, waited = scores[0], 0
    for score in scores[1:]:
        improved = score > counted and score - counted >= settings.min_delta
        counted, waited = (score, 0) if improved else (counted, waited + 1)
    return waited >= settings.patience


def deepspeed_config(train: Train) -> dict[str, Any]:
    """Settings of the student's engine.

    The caller owns the accumulation (`managed_gradient_accumulation`), since its micro-batches differ in number
    from step to step; it scales the loss itself, so both batch sizes here are the neutral 1.
    """
    zero: dict[str, Any] = {"stage": train.zero_stage}
    if train.offload:
        zero["offload_optimizer"] = {"device": train.offload}
    return {
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 1,
        "managed_gradient_accumulation": False,
        "gradient_clipping": train.clip_norm,
        "zero_optimization": zero,
        "zero_force_ds_cpu_optimizer": False,  # torch's fused AdamW on the host needs no compiler
        "bf16": {"enabled": train.precision == "bf16"},
        "steps_per_print": 2**31,
    }


def teacher_config(teacher: Teacher, dtype: str, width: int) -> dict[str, Any]:
    """Settings of a sharded teacher's engine: no optimizer. `dtype` is torch's name of its precision.

    Vectors (biases, norms) stay whole: fetching them costs more than they take. All else is freed after use.
    """
    zero: dict[str, Any] = {
        "stage": 3,
        "stage3_param_persistence_threshold": 10 * width,
        "stage3_max_reuse_distance": 0,
    }
    if teacher.offload:
        zero["offload_param"] = {"device": teacher.offload}
    return {
        "train_micro_batch_size_per_gpu": 1,
        "zero_optimization": zero,
        "bf16": {"enabled": dtype == "bfloat16"},
        "steps_per_print": 2**31,
    }


def trainable_parameters(shape: Shape, train: Train) -> int:
    """Estimated number of parameters that are not frozen."""
    frozen = 0
    if "encoder" in train.freeze:
        frozen += shape.encoder_layers * (4 * shape.width**2 + 2 * shape.width * shape.feed_forward[0])
    if train.freeze:
        frozen += shape.vocabulary * shape.width
    return shape.parameters() - frozen


def teacher_memory_gb(shape: Shape, teacher: Teacher, precision: str, world_size: int, shares_encoder: bool) -> float:
    """Estimated gigabytes per process of a live teacher's weights; an encoder that serves both is the student's.

    `precision` is that of its student, for a teacher that gives none.
    """
    weights = shape.parameters()
    if shares_encoder:
        weights -= shape.encoder_layers * (4 * shape.width**2 + 2 * shape.width * shape.feed_forward[0])
    return weights * BYTES[teacher.precision or precision] / (world_size if teacher.zero_stage == 3 else 1) / 1e9


def training_memory_gb(shape: Shape, train: Train, world_size: int) -> float:
    """Estimated gigabytes per process: weights, gradients, optimizer states by ZeRO stage, and activations.

    States as in ZeRO (Rajbhandari et al. 2020), section 3: fp32 training keeps 4 + 4 + 8 bytes per parameter, bf16
    training 2 + 2 + 12. Activations are counted as 34 bytes (bf16; twice that in fp32) per token, layer and
    hidden unit (Korthikanti et al. 2022, equation 1, without attention scores); with gradient checkpointing only the
    layers' inputs stay, and one layer's activations at a time. Of the logits one chunk exists at a time
    (`distill/head.py`), with about eight tensors of its size; where the head is trained, its gradient in fp32.
    """
    weights, trained = shape.parameters(), trainable_parameters(shape, train)
    size = BYTES[train.precision]
    states = 0 if train.offload else state_bytes(train)
    shard = [1 if train.zero_stage < stage else world_size for stage in (1, 2, 3)]
    fixed = weights * size / shard[2] + trained * size / shard[1] + trained * states / shard[0]
    layers = shape.decoder_layers + (0 if "encoder" in train.freeze else shape.encoder_layers)
    per_layer = train.micro_batch_tokens * shape.width * size
    activations = per_layer * (17 + layers if train.gradient_checkpointing else 17 * layers)
    head = 8 * 4 * CHUNK_LOGITS + (0 if train.freeze else 4 * shape.vocabulary * shape.width)
    return (fixed + activations + head) / 1e9


def host_memory_gb(shape: Shape, train: Train, world_size: int) -> float:
    """Estimated gigabytes of the host's memory per process that offloaded states and fp32 gradients take."""
    if not train.offload:
        return 0.0
    return trainable_parameters(shape, train) * (12 + 4) / world_size / 1e9


def state_bytes(train: Train) -> int:
    """The optimizer's, per trained parameter: two moments, and in bf16 the weights in fp32.

    Adafactor's are counted as none: a row and a column for a matrix (it trains in fp32).
    """
    if train.optimizer == "adafactor":
        return 0
    return 8 if train.precision == "fp32" else 12
