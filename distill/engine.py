"""DeepSpeed, and only here: build student and teacher, backward, step, save, load, export.

Student and teacher stand beside each other in one process group, each with its own ZeRO stage and precision. No
process-global Hugging Face DeepSpeed state is used: a model is built on the CPU of every rank (memory-mapped, so that
its file is in memory once) and `deepspeed.initialize` shards it.
"""

import argparse
import contextlib
import copy
import io
import logging
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import deepspeed
import torch
from deepspeed.checkpoint import ds_to_universal
from deepspeed.checkpoint.constants import (
    UNIVERSAL_CHECKPOINT_INFO,
    UNIVERSAL_CHECKPOINT_VERSION_KEY,
    UNIVERSAL_CHECKPOINT_VERSION_VALUE,
)
from transformers import PreTrainedModel
from transformers.optimization import Adafactor

from distill import checkpoint
from distill.compiling import COMMUNICATION, USUAL_TIME, is_compiled
from distill.distillation import Distillation
from distill.distributed import World
from distill.errors import InputError
from distill.files import PARTIAL
from distill.head import logits_bias
from distill.objective import Counts, Request, ScoredStudent, TeacherSource
from distill.plan import deepspeed_config, teacher_config
from distill.recipe import Teacher
from distill.sections import Train
from distill.signal import HiddenSignal
from distill.teacher import FrozenTeacher

log = logging.getLogger(__name__)
logging.getLogger("DeepSpeed").setLevel(logging.WARNING)

STATE = "state"  # ours, among what DeepSpeed saves
UNIVERSAL_INFO = {UNIVERSAL_CHECKPOINT_VERSION_KEY: UNIVERSAL_CHECKPOINT_VERSION_VALUE}


class Engine:
    """The student under DeepSpeed ZeRO 0 to 3, scored against the data and its teacher if it has one."""

    def __init__(
        self, objective: ScoredStudent, train: Train, world: World, teacher: TeacherSource | None = None
    ) -> None:
        self.world, self.terms, self._teacher = world, objective.terms, teacher
        self.stage = train.zero_stage
        _start_deepspeed()
        self._plain = objective.student if self.stage < 3 else copy.deepcopy(objective.student).eval()
        self._engine, *_ = deepspeed.initialize(
            model=objective,
            optimizer=_optimizer(objective, train),
            config=deepspeed_config(train),
        )

    def accumulate(self, batch: dict[str, Any], counts: Counts) -> torch.Tensor:
        """Add the gradient of a micro-batch; return its loss and terms_L as one vector, without gradient.

        They are the micro-batch's part of a mean over the tokens of the whole step (`counts`). DeepSpeed averages
        gradients over the ranks; times their number they add up, however the step was cut.
        """
        self._engine.train()
        loss, terms_L = self._engine(**batch, counts=counts, teacher=self._teacher)
        self._engine.backward(loss * self.world.size)
        return torch.cat([loss.detach()[None], terms_L])

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
        trained = [p.detach() for p in self._engine.module.parameters() if p.requires_grad]
        return None if torch.nn.utils.get_total_norm(trained).isfinite() else float("nan")

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

    def save(self, checkpoints: Path, step: int, state: dict[str, Any]) -> int:
        """Write a checkpoint that appears whole; return its bytes. All ranks must call.

        Frozen weights are left out: they are those of the initial model, from which every attempt begins.
        """
        partial = checkpoint.partial_folder(checkpoints, step)
        if self.world.is_main:
            checkpoint.clear_partial(checkpoints)
            partial.mkdir(parents=True)
        self.world.barrier()
        client_state = {STATE: state, UNIVERSAL_CHECKPOINT_INFO: UNIVERSAL_INFO}
        try:
            self._engine.save_checkpoint(
                str(checkpoints),
                tag=partial.name,
                client_state=client_state,
                save_latest=False,
                exclude_frozen_parameters=True,
            )
        except Exception:
            shutil.rmtree(partial, ignore_errors=True)  # half of it must not keep a full disk full
            raise
        self.world.barrier()
        size = 0
        if self.world.is_main:
            written = len(list(partial.glob("*optim_states.pt")))
            assert self.stage == 0 or written == self.world.size, f"{written} of {self.world.size} states in {partial}"
            made_by = {"world_size": self.world.size, "zero_stage": self.stage}
            _, size = checkpoint.complete(checkpoints, step, made_by)
        self.world.barrier()
        return size

    def load(self, folder: Path) -> dict[str, Any]:
        """Continue from a checkpoint; return the state saved with it. All ranks must call.

        One that was written by another number of processes or at another ZeRO stage is converted first, by rank 0.
        InputError where DeepSpeed cannot do that.
        """
        made = checkpoint.read_manifest(folder)
        settings = [{k: v for k, v in group.items() if k != "params"} for group in self._engine.optimizer.param_groups]
        if made["zero_stage"] == self.stage and (self.stage == 0 or made["world_size"] == self.world.size):
            state = self._load(folder)
        elif made["zero_stage"] != self.stage and {made["zero_stage"], self.stage} != {1, 2}:
            raise InputError(
                f"{folder} was saved at ZeRO stage {made['zero_stage']}, but train.zero_stage is {self.stage}. DeepSpeed "
                f"converts between the stages 1 and 2 only; set zero_stage back, or delete {folder.parent}."
            )
        else:
            log.info(
                "%s is of %d process(es) at ZeRO %d: converting it for %d at ZeRO %d",
                folder, made["world_size"], made["zero_stage"], self.world.size, self.stage,
            )  # fmt: skip
            state = self._load_converted(folder)
        for group, own in zip(self._engine.optimizer.param_groups, settings, strict=True):
            group.update(own)  # at stage 3 a converted checkpoint brings the first group's settings to all
        return state

    def _load_converted(self, folder: Path) -> dict[str, Any]:
        temporary = folder.parent / f"universal{PARTIAL}"
        if self.world.is_main:
            shutil.rmtree(temporary, ignore_errors=True)
            (temporary / folder.name).mkdir(parents=True)
            options = {"num_extract_workers": 1, "num_merge_workers": 1, "keep_temp_folder": False, "strict": True}
            names = {"input_folder": str(folder), "output_folder": str(temporary / folder.name)}
            with contextlib.redirect_stdout(None):
                ds_to_universal.main(argparse.Namespace(**options, **names, inject_missing_state=False))
        self.world.barrier()
        self._engine._config.load_universal_checkpoint = True
        state = self._load(temporary / folder.name)
        self._engine._config.load_universal_checkpoint = False
        for moments in self._engine.optimizer.optimizer.state.values():
            # At stage 3 all groups come back with one and the same counter, which each of them would then raise.
            moments["step"] = moments["step"].clone()
        self.world.barrier()
        if self.world.is_main:
            shutil.rmtree(temporary)
        return state

    def _load(self, folder: Path) -> dict[str, Any]:
        path, state = self._engine.load_checkpoint(str(folder.parent), tag=folder.name, load_module_strict=False)
        assert path is not None, f"DeepSpeed found nothing in {folder}"
        saved: dict[str, Any] = state[STATE]
        return saved

    def _pairs(self) -> Iterator[tuple[torch.nn.Parameter, torch.nn.Parameter]]:
        """(sharded, plain) of every parameter; one at a time is gathered."""
        return zip(self._engine.module.student.parameters(), self._plain.parameters(), strict=True)


class LiveTeacher:
    """A frozen teacher that answers during training: a replica (ZeRO 0), or sharded over the ranks (ZeRO 3).

    A replica is a plain module: DeepSpeed has nothing to do for weights that are neither trained nor sharded, and the
    memory map of its file stays shared by the processes of a machine. The teacher is in no checkpoint.
    """

    def __init__(self, model: PreTrainedModel, settings: Teacher, pairs: Distillation, world: World) -> None:
        """`model` has the precision of its engine and loses its encoder where `pairs` says that it is shared."""
        self._model, self._weight, self._bias = model, model.get_output_embeddings().weight, logits_bias(model)
        frozen = FrozenTeacher(model, pairs)
        self._sharded = settings.zero_stage == 3
        if self._sharded:
            _start_deepspeed()
            config = teacher_config(settings, str(model.dtype).removeprefix("torch."), model.config.d_model)
            # One parameter after the other goes to the device and is cut there; `initialize` alone would first put the
            # whole teacher on every device.
            deepspeed.zero.Init(module=frozen, config_dict_or_path=config, dtype=model.dtype)
            for buffer in frozen.buffers():
                buffer.data = buffer.data.to(world.device)
            self._forward, *_ = deepspeed.initialize(model=frozen, config=config)
        else:
            self._forward = frozen.to(world.device)
        self._bias = None if self._bias is None else self._bias.to(world.device)

    def signal(self, request: Request) -> HiddenSignal:
        """What the teacher says about a micro-batch; all ranks must ask where it is sharded."""
        heard = self._forward(request)
        weight = self._whole(self._weight)
        return HiddenSignal(heard.hidden_ND, weight, self._bias, heard.decoder_states, heard.encoder_states)

    def bytes_held(self) -> int:
        """Bytes of the teacher's weights on this rank between two requests: whole ones and shards."""
        held = [tensor for p in self._model.parameters() for tensor in (p.data, getattr(p, "ds_tensor", None))]
        return sum(tensor.numel() * tensor.element_size() for tensor in held if tensor is not None)

    def _whole(self, parameter: torch.nn.Parameter) -> torch.Tensor:
        if not self._sharded:
            return parameter.detach()
        with deepspeed.zero.GatheredParameters([parameter]):
            return parameter.detach().clone()  # outlives the gathering: the head reads it later


def _start_deepspeed() -> None:
    """Give torch's process group to DeepSpeed, which may first compile a library for it."""
    if not torch.cuda.is_available() and not is_compiled(COMMUNICATION):  # of CPU processes only
        log.info("DeepSpeed compiles its communication library, once on this machine: %s", USUAL_TIME)
    with contextlib.redirect_stdout(io.StringIO()):  # "built successfully", from every process at every start
        deepspeed.init_distributed(auto_mpi_discovery=False, verbose=False)


def _optimizer(module: torch.nn.Module, train: Train) -> torch.optim.Optimizer:
    """AdamW, fused on GPUs and on the host alike; or Adafactor with an external learning rate.

    transformers' Adafactor, since torch's own always scales by the parameters' size and caps the rate at 1 / sqrt(step).
    The published runs (Shleifer & Rush 2020, examples/seq2seq/lightning_base.py) switch both off.
    """
    groups = _parameter_groups(module, train.weight_decay)
    if train.optimizer == "adafactor":
        own: torch.optim.Optimizer = Adafactor(
            groups, lr=train.learning_rate, scale_parameter=False, relative_step=False
        )
        return own
    return torch.optim.AdamW(groups, lr=train.learning_rate, fused=True)


def _parameter_groups(module: torch.nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Decay matrices only: biases and norms are vectors."""
    trained = [parameter for parameter in module.parameters() if parameter.requires_grad]
    groups = [
        {"params": [p for p in trained if p.dim() > 1], "weight_decay": weight_decay},
        {"params": [p for p in trained if p.dim() <= 1], "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]
