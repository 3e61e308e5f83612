"""How many steps a training will take, before it says so itself. No torch."""

from distill import plan
from distill.files import read_json
from distill.recipe import GOLD, Student
from distill.run import Member, Run


def planned_steps(run: Run, member: Member) -> int | None:
    """Return the steps of a training; None if its examples are not counted yet, or a step is given in tokens."""
    train = run.train_settings(member)
    if train is None or train.steps is not None:
        return None if train is None else train.steps
    examples = training_examples(run, member)
    if examples is None or train.batch_examples is None:
        return None
    return plan.total_steps(train, -(-examples // train.batch_examples))


def training_examples(run: Run, member: Member) -> int | None:
    """Return the examples of an epoch; None if the corpus is not prepared, or labels are read that are not merged."""
    settings = run.settings(member)
    examples = 0
    for source, times in (settings.train_on if isinstance(settings, Student) else {GOLD: 1.0}).items():
        file = run.corpus / "manifest.json" if source == GOLD else run.label_set(source).manifest
        if not file.exists():
            return None
        manifest = read_json(file)
        examples += round(times * (manifest["splits"]["train"]["examples"] if source == GOLD else manifest["kept"]))
    return examples
