"""Jobs that stand still at a known place until the test lets them go on, on a machine of any speed.

Python runs `sitecustomize.py` at its start if PYTHONPATH leads to one. Nothing of this is in the package itself.
"""

import shlex
from pathlib import Path

HELD_STEPS = 5

SHARDS = """
if "jobs.label" in sys.orig_argv:
    while not RELEASED.exists():
        time.sleep(0.05)
"""

TRAINING = """
import importlib.abc
import importlib.util


def hold(trainer):
    train_step = trainer.train_step

    def held(self, tracker):
        first = self.__dict__.setdefault("first_step_of_this_attempt", self.step)
        while self.step >= first + HELD_STEPS and not RELEASED.exists() and not self.stop.is_set():
            time.sleep(0.05)
        self._looked = time.monotonic()  # the wait is none of the training's own
        return train_step(self, tracker)

    trainer.train_step = held


class Finder(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name != "distill.trainer":
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        execute = spec.loader.exec_module
        spec.loader.exec_module = lambda module: (execute(module), hold(module.Trainer))
        return spec


if "jobs.train" in sys.orig_argv:
    sys.meta_path.insert(0, Finder())
"""


class Hold:
    """Hold every job whose PYTHONPATH has `folder`: a training after HELD_STEPS steps of an attempt, a shard before it begins.

    A training that is asked to stop leaves as it would at any other step.
    """

    def __init__(self, folder: Path, code: str) -> None:
        self.folder = folder
        folder.mkdir(parents=True)
        head = f"import sys\nimport time\nfrom pathlib import Path\n\nRELEASED = Path({str(self._released)!r})\n"
        (folder / "sitecustomize.py").write_text(f"{head}HELD_STEPS = {HELD_STEPS}\n{code}", encoding="utf-8")

    @property
    def _released(self) -> Path:
        return self.folder / "released"

    @property
    def setup(self) -> list[str]:
        """The lines of a profile's `setup`."""
        return [f"export PYTHONPATH={shlex.quote(str(self.folder))}"]

    def release(self) -> None:
        """Let all of them go on, also those that begin later."""
        self._released.touch()
