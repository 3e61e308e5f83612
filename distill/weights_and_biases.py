"""Weights & Biases (optional: `pip install -e .[wandb]`): one run for each training, which every attempt continues."""

import logging
import uuid
from typing import Any

from distill.errors import InputError
from distill.files import read_json, write_json
from distill.run import Member
from distill.sections import Wandb

# A job that was asked to stop must leave in time; what was not sent by then lies in the member's wandb/ (`wandb sync`).
SECONDS_TO_FINISH = 10
SECONDS_TO_BEGIN = 30

log = logging.getLogger(__name__)


class WandbRun:
    """The records of one training, as they stand in its metrics.jsonl."""

    def __init__(self, settings: Wandb, member: Member, config: dict[str, Any]) -> None:
        """InputError where there is no login. Where it cannot be reached the training goes on without it."""
        import wandb
        from wandb.errors import AuthenticationError, UsageError

        name = f"{member.folder.parents[1].name}/{member.folder.name}"
        try:
            self._run = wandb.init(
                project=settings.project,
                entity=settings.entity,
                id=_own_id(member),
                resume="allow",
                name=name,
                config=config,
                dir=member.folder,
                settings=wandb.Settings(
                    console="off", silent=True, init_timeout=SECONDS_TO_BEGIN, finish_timeout=SECONDS_TO_FINISH
                ),
            )
        except (AuthenticationError, UsageError) as error:
            raise InputError(
                f"wandb: {error} Log in with `wandb login`, set WANDB_MODE=offline, or remove the recipe's wandb block."
            ) from None
        except wandb.Error as error:
            log.warning("Weights & Biases is not told of this attempt, metrics.jsonl is: %s", error)
            self._run = wandb.init(mode="disabled")
        self._run.define_metric("*", step_metric="step")

    def record(self, row: dict[str, Any]) -> None:
        """Add the numbers of a record, over its step; what a killed attempt has told already stands there twice."""
        self._run.log({name: value for name, value in row.items() if isinstance(value, int | float)})

    def close(self) -> None:
        self._run.finish()


def _own_id(member: Member) -> str:
    if not member.wandb_id.exists():
        write_json(member.wandb_id, {"id": uuid.uuid4().hex})
    return str(read_json(member.wandb_id)["id"])
