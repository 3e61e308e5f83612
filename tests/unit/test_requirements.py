"""The lock files: what a user installs has a hash, and nothing optional is in it."""

import re
from importlib.metadata import requires
from pathlib import Path

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).parents[2]
LOCKS = ("requirements.lock", "requirements-dev.lock")


def locked(name: str) -> dict[str, list[str]]:
    """Return the lines of each pinned package of a lock file, without comments."""
    found: dict[str, list[str]] = {}
    lines: list[str] = []
    for line in (ROOT / name).read_text(encoding="utf-8").splitlines():
        pin = re.match(r"([a-z0-9-]+)==", line)
        if pin:
            lines = found.setdefault(pin[1], [])
        if not line.lstrip().startswith("#"):
            lines.append(line.removesuffix("\\").strip())
    return found


def pins(name: str) -> dict[str, set[str]]:
    """Return the versions that a lock file gives for each package, one or one for each Python."""
    first = {package: [line for line in lines if "==" in line] for package, lines in locked(name).items()}
    return {
        package: {re.sub(r".*?==([^ ;]+).*", r"\1", line) for line in lines if not line.startswith("--")}
        for package, lines in first.items()
    }


@pytest.mark.parametrize("name", LOCKS)
def test_every_package_has_hashes(name: str) -> None:
    assert len(locked(name)) > 70
    for package, lines in locked(name).items():
        assert any(line.startswith("--hash=sha256:") for line in lines), package


@pytest.mark.parametrize("name", LOCKS)
def test_the_build_of_torch_is_left_to_the_user(name: str) -> None:
    assert not [package for package in locked(name) if re.match("torch|nvidia|cuda|triton", package)]
    line = (ROOT / "requirements-torch.txt").read_text(encoding="utf-8").splitlines()[-1]
    assert re.fullmatch(r"torch==\d+\.\d+\.\d+", line)


def test_both_lock_files_agree() -> None:
    users, developers = (pins(name) for name in LOCKS)
    assert {package: developers[package] for package in users} == users


def test_nothing_optional_is_in_the_users_lock_file() -> None:
    requirements = [Requirement(line) for line in requires("distill-jobs") or []]
    extras = {requirement.name for requirement in requirements if requirement.marker is not None}
    needed = {requirement.name for requirement in requirements if requirement.marker is None}
    assert {"wandb", "pytest", "ruff", "ctranslate2"} <= extras
    names = {name.lower().replace("_", "-") for name in extras}
    assert not names & set(locked("requirements.lock"))
    assert names <= set(locked("requirements-dev.lock"))
    assert {name.lower() for name in needed} - set(locked("requirements.lock")) == {"torch"}
