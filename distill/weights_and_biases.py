"""Weights & Biases (optional: `pip install -e .[wandb]`): one run for each training, which every attempt continues."""

import uuid
from typing import Any

from distill.errors import InputError
from distill.files import read_json, write_json
from distill.run import Member
from distill.sections import Wandb

# A job that was asked to stop must leave in time; what was not sent by then lies in the member's wandb/ (`wandb sync`).
SECONDS_TO_FINISH = 10


class WandbRun:
    """The records of one training, as they stand in its metrics.jsonl."""

    def __init__(self, settings: Wandb, member: Member, config: dict[str, Any]) -> None:
        """InputError where wandb refuses: no login, no such entity, no network."""
        import wandb

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
                settings=wandb.Settings(console="off", silent=True, finish_timeout=SECONDS_TO_FINISH),
            )
        except wandb.Error as error:
            raise InputError(
                f"wandb: {error} Log in with `wandb login`, set WANDB_MODE=offline, or remove the recipe's wandb block."
            ) from None

    def record(self, row: dict[str, Any]) -> None:
        """Add the numbers of a record. Steps that a killed attempt has told already are left: they were the same."""
        if row["step"] >= self._run.step:
            numbers = {name: value for name, value in row.items() if isinstance(value, int | float) and name != "step"}
            self._run.log(numbers, step=row["step"])

    def close(self) -> None:
        self._run.finish()


def _own_id(member: Member) -> str:
    if not member.wandb_id.exists():
        write_json(member.wandb_id, {"id": uuid.uuid4().hex})
    return str(read_json(member.wandb_id)["id"])
