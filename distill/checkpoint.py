"""Checkpoints: names, completeness, retention, choice of what to resume. Files only, no torch.

A checkpoint is written to `step-00000500.partial`; a manifest of its files (sizes and SHA-256) is added and the folder
renamed, so a folder of the final name is complete unless it was damaged later, which its hashes tell.
"""

import concurrent.futures
import hashlib
import json
import logging
import re
import shutil
from pathlib import Path
from typing import Any

from distill.files import PARTIAL, REPLACED, publish_folder, read_json, sha256_file, write_text

log = logging.getLogger(__name__)

MANIFEST = "manifest.json"
NAME = re.compile(r"step-(\d{8})")
HASHING_THREADS = 8


def partial_folder(checkpoints: Path, step: int) -> Path:
    return checkpoints / f"step-{step:08d}{PARTIAL}"


def clear_partial(checkpoints: Path) -> None:
    """Remove what killed saves left."""
    for leftover in [*checkpoints.glob(f"*{PARTIAL}"), *checkpoints.glob(f"step-*{REPLACED}")]:
        shutil.rmtree(leftover)


def complete(checkpoints: Path, step: int, made_by: dict[str, Any]) -> tuple[Path, int]:
    """Turn the written partial folder into a checkpoint; (its folder, its bytes). `made_by`: world size, ZeRO stage."""
    partial = partial_folder(checkpoints, step)
    files = _describe(partial)
    write_text(partial / MANIFEST, _manifest_text({"step": step, **made_by, "files": files}))
    folder = checkpoints / f"step-{step:08d}"
    publish_folder(partial, folder)
    return folder, sum(file["bytes"] for file in files.values())


def read_manifest(folder: Path) -> dict[str, Any]:
    manifest: dict[str, Any] = read_json(folder / MANIFEST)
    return manifest


def damage(folder: Path) -> str | None:
    """What is wrong with a checkpoint, in words; None where every file is as it was written."""
    if not (folder / MANIFEST).is_file():
        return f"{MANIFEST} is missing"
    try:
        text = (folder / MANIFEST).read_text(encoding="utf-8")
        manifest = json.loads(text)
        expected: dict[str, dict[str, Any]] = manifest["files"]
    except (ValueError, KeyError, TypeError):
        return f"{MANIFEST} is torn"
    manifest.pop("sha256", None)
    if text != _manifest_text(manifest):
        return f"{MANIFEST} was altered"
    try:
        found = _describe(folder)
    except OSError as error:
        return f"{error.filename} cannot be read ({error.strerror})"
    for name, file in expected.items():
        if name not in found:
            return f"{name} is missing"
        if found[name] != file:
            return f"{name} was altered ({found[name]['bytes']} bytes, {file['bytes']} were written)"
    return None


def newest_intact(checkpoints: Path) -> Path | None:
    """The checkpoint of the highest step that is as it was written; damaged ones are named in the log and passed over."""
    for folder in reversed(_folders(checkpoints)):
        wrong = damage(folder)
        if wrong is None:
            return folder
        log.warning("%s is damaged: %s; passed over", folder, wrong)
    return None


def prune(checkpoints: Path, keep: int, keep_every_steps: int | None, best_step: int | None) -> None:
    """Remove checkpoints but the `keep` newest, every so many steps, and that of the best step.

    Only complete ones count (by size); damaged ones older than those that are kept go too.
    """
    steps = [_step(folder) for folder in _folders(checkpoints) if _has_sizes(folder)]
    kept = set(steps[-keep:]) | {best_step}
    kept |= {step for step in steps if keep_every_steps and step % keep_every_steps == 0}
    for folder in _folders(checkpoints):
        if _step(folder) not in kept and steps and _step(folder) < steps[-1]:
            leaving = folder.with_name(f"{folder.name}.pruned{PARTIAL}")  # half of it must not look like a damaged one
            folder.replace(leaving)
            shutil.rmtree(leaving)


def _manifest_text(manifest: dict[str, Any]) -> str:
    """With a hash of itself, so that no byte of it can change unseen."""
    own = hashlib.sha256(json.dumps(manifest).encode()).hexdigest()
    return json.dumps(manifest | {"sha256": own}, indent=2) + "\n"


def _describe(folder: Path) -> dict[str, dict[str, Any]]:
    """{file: its bytes and SHA-256} of all files but the manifest; several at a time, since hashing needs no interpreter."""
    files = sorted(file for file in folder.rglob("*") if file.is_file() and file.name != MANIFEST)
    with concurrent.futures.ThreadPoolExecutor(HASHING_THREADS) as pool:
        hashes = list(pool.map(sha256_file, files))
    return {
        str(file.relative_to(folder)): {"bytes": file.stat().st_size, "sha256": digest}
        for file, digest in zip(files, hashes, strict=True)
    }


def _has_sizes(folder: Path) -> bool:
    """True where the manifest is there and every file has the size it names."""
    try:
        files = read_manifest(folder)["files"]
        return all((folder / name).stat().st_size == file["bytes"] for name, file in files.items())
    except (OSError, ValueError, KeyError, TypeError):
        return False


def _step(folder: Path) -> int:
    return int(folder.name.removeprefix("step-"))


def _folders(checkpoints: Path) -> list[Path]:
    return sorted(folder for folder in checkpoints.glob("step-*") if NAME.fullmatch(folder.name))
