"""The version of this package, and of the code that runs."""

import subprocess
from importlib.metadata import version as installed_version
from pathlib import Path

ROOT = Path(__file__).parent.parent


def version() -> str:
    """Return the installed version, with the git commit if the code lies in a repository of its own."""
    return f"distill-jobs {installed_version('distill-jobs')}" + (
        f" (commit {commit})" if (commit := _commit()) else ""
    )


def _commit() -> str:
    """Return the short hash, with a + if files were changed since; an empty text without git."""
    if not (ROOT / ".git").exists():
        return ""
    try:
        described = subprocess.run(
            ["git", "-C", str(ROOT), "describe", "--always", "--dirty=+", "--exclude=*"],  # noqa: S607 - the user's git
            capture_output=True,
            text=True,
            check=False,
        )
    except FileNotFoundError:
        return ""
    return described.stdout.strip()
