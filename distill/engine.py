"""DeepSpeed, and only here: build the engine, backward, step, save, load, export.

No process-global Hugging Face DeepSpeed state is used: the model is built on the CPU of every rank and
`deepspeed.initialize` shards it, so that a second engine (a teacher) can stand beside it.
"""

import contextlib
import copy
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import deepspeed
import torch
from transformers import PreTrainedModel

from distill import checkpoint
from distill.distributed import World
from distill.objective import Objective
from distill.plan import deepspeed_config
from distill.recipe import Train

log = logging.getLogger(__name__)
logging.getLogger("DeepSpeed").setLevel(logging.WARNING)


class Engine:
    """The student under DeepSpeed ZeRO 0 to 3."""

    def __init__(self, objective: Objective, train: Train, world: World) -> None:
        self.world = world
        self.stage = train.zero_stage
        deepspeed.init_distributed(auto_mpi_discovery=False, verbose=False)  # adopts torch's process group
        self._plain = objective.student if self.stage < 3 else copy.deepcopy(objective.student).eval()
        self._engine, *_ = deepspeed.initialize(
            model=objective,
            optimizer=torch.optim.AdamW(_parameter_groups(objective, train.weight_decay), lr=train.learning_rate),
            config=deepspeed_config(train),
        )

    def accumulate(self, batch: dict[str, torch.Tensor], scale: float) -> torch.Tensor:
        """Add the gradient of `scale` times the micro-batch's summed loss; return the sum, without gradient.

        DeepSpeed averages over the ranks: with `scale` = world size / the step's tokens over all ranks, the gradient
        is that of the mean loss per token of the whole step, however it was cut.
        """
        self._engine.train()
        loss = self._engine(**batch)
        self._engine.backward(loss * scale)
        summed: torch.Tensor = loss.detach()
        return summed

    def step(self, learning_rate: float) -> float | None:
        """Clip, update the weights, clear the gradients; return the gradient's norm before clipping.

        None at ZeRO 0 in fp32, where DeepSpeed does not tell it; nan where the gradient was not finite.
        """
        for group in self._engine.optimizer.param_groups:
            group["lr"] = learning_rate
        self._engine.step()
        norm = self._engine.get_global_grad_norm()
        if norm is not None:
            return float(norm)
        return None if all(bool(p.isfinite().all()) for p in self._engine.module.parameters()) else float("nan")

    @contextlib.contextmanager
    def replica(self) -> Iterator[PreTrainedModel]:
        """A whole model in eval mode on every rank, for generation without collectives. All ranks must enter."""
        if self.stage == 3:
            self._plain.to(self.world.device)
            for own, plain in self._pairs():
                with deepspeed.zero.GatheredParameters([own]):
                    plain.data.copy_(own.data)
        self._plain.eval()
        try:
            yield self._plain
        finally:
            if self.stage == 3:
                self._plain.to("cpu")
            self._plain.train()

    def save(self, checkpoints: Path, step: int, state: dict[str, Any], keep: int) -> None:
        """Write a checkpoint that appears whole. All ranks must call."""
        partial = checkpoint.partial_folder(checkpoints, step)
        if self.world.is_main:
            checkpoint.clear_partial(checkpoints)
            partial.mkdir(parents=True)
        self.world.barrier()
        self._engine.save_checkpoint(str(checkpoints), tag=partial.name, client_state=state, save_latest=False)
        self.world.barrier()
        if self.world.is_main:
            checkpoint.complete(checkpoints, step, self.world.size)
            checkpoint.prune(checkpoints, keep)
        self.world.barrier()

    def load(self, folder: Path) -> dict[str, Any]:
        """Continue from a checkpoint; return the state saved with it. All ranks must call."""
        checkpoint.check_world_size(folder, self.world.size)
        path, state = self._engine.load_checkpoint(str(folder.parent), tag=folder.name)
        assert path is not None, f"DeepSpeed found nothing in {folder}"
        saved: dict[str, Any] = state
        return saved

    def _pairs(self) -> Iterator[tuple[torch.nn.Parameter, torch.nn.Parameter]]:
        """(sharded, plain) of every parameter; one at a time is gathered."""
        return zip(self._engine.module.student.parameters(), self._plain.parameters(), strict=True)


def _parameter_groups(module: torch.nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Decay matrices only: biases and norms are vectors."""
    trained = [parameter for parameter in module.parameters() if parameter.requires_grad]
    groups = [
        {"params": [p for p in trained if p.dim() > 1], "weight_decay": weight_decay},
        {"params": [p for p in trained if p.dim() <= 1], "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]
