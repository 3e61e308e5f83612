"""Checkpoints: names, completeness, retention, choice of what to resume. Files only, no torch.

A checkpoint is written to `step-00000500.partial`; a manifest of its files is added and the folder renamed, so a
folder of the final name is complete unless it was damaged later.
"""

import re
import shutil
from pathlib import Path

from distill.errors import InputError
from distill.files import PARTIAL, publish_folder, read_json, write_json

MANIFEST = "manifest.json"
NAME = re.compile(r"step-(\d{8})")


def partial_folder(checkpoints: Path, step: int) -> Path:
    return checkpoints / f"step-{step:08d}{PARTIAL}"


def clear_partial(checkpoints: Path) -> None:
    """Remove what killed saves left."""
    for leftover in checkpoints.glob(f"step-*{PARTIAL}"):
        shutil.rmtree(leftover)


def complete(checkpoints: Path, step: int, world_size: int) -> Path:
    """Turn the written partial folder into a checkpoint."""
    partial = partial_folder(checkpoints, step)
    files = {str(f.relative_to(partial)): f.stat().st_size for f in sorted(partial.rglob("*")) if f.is_file()}
    write_json(partial / MANIFEST, {"step": step, "world_size": world_size, "files": files})
    folder = checkpoints / f"step-{step:08d}"
    publish_folder(partial, folder)
    return folder


def is_complete(folder: Path) -> bool:
    """True where the manifest is there and every file has the size it names."""
    if not (folder / MANIFEST).is_file():
        return False
    files: dict[str, int] = read_json(folder / MANIFEST)["files"]
    return all((folder / name).is_file() and (folder / name).stat().st_size == size for name, size in files.items())


def newest_complete(checkpoints: Path) -> Path | None:
    """The complete checkpoint of the highest step, or None."""
    return next((folder for folder in reversed(_folders(checkpoints)) if is_complete(folder)), None)


def check_world_size(folder: Path, world_size: int) -> None:
    """InputError where a checkpoint was written by another number of processes."""
    saved: int = read_json(folder / MANIFEST)["world_size"]
    if saved != world_size:
        raise InputError(
            f"{folder} was saved by {saved} process(es), but {world_size} are running now. Expected the same number; "
            f"start {saved} (--processes {saved}), or delete {folder.parent} to begin again."
        )


def prune(checkpoints: Path, keep: int) -> None:
    """Remove all but the `keep` newest complete checkpoints."""
    for folder in [folder for folder in _folders(checkpoints) if is_complete(folder)][:-keep]:
        shutil.rmtree(folder)


def _folders(checkpoints: Path) -> list[Path]:
    return sorted(folder for folder in checkpoints.glob("step-*") if NAME.fullmatch(folder.name))
