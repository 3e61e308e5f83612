"""Files that appear whole: written under a temporary name, flushed to disk, then renamed."""

import contextlib
import errno
import glob
import hashlib
import json
import os
import shutil
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from distill.errors import InputError

PARTIAL = ".partial"
REPLACED = ".replaced"


@contextlib.contextmanager
def atomic_file(path: Path, keep: bool = False) -> Iterator[Path]:
    """Give a temporary path beside `path`; on success it becomes `path`, on failure it is removed.

    `keep`: a file that stands there by then stays, since others may have mapped it; it must be the same.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.{_unique()}{PARTIAL}")
    try:
        yield partial
        fsync(partial)
        if not (keep and path.exists()):
            partial.replace(path)
            fsync(path.parent)
    finally:
        partial.unlink(missing_ok=True)


@contextlib.contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """Give an empty temporary folder beside `path`, this process's own; on success it becomes `path`.

    A folder that stood at `path` is replaced. Leftovers of earlier, killed attempts are removed.
    """
    restore_replaced(path)
    clear_leftovers(path)
    partial = path.with_name(f"{path.name}.{_unique()}{PARTIAL}")
    partial.mkdir(parents=True)
    try:
        yield partial
        publish_folder(partial, path)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def publish_folder(partial: Path, path: Path) -> None:
    """Flush every file of `partial` to disk and rename it to `path`, replacing what stood there."""
    for entry in [*partial.rglob("*"), partial]:
        fsync(entry)
    if path.exists():
        replaced = path.with_name(path.name + REPLACED)
        shutil.rmtree(replaced, ignore_errors=True)
        path.replace(replaced)
        partial.replace(path)
        shutil.rmtree(replaced)
    else:
        partial.replace(path)
    fsync(path.parent)


def restore_replaced(path: Path) -> None:
    """Bring back what `publish_folder` had moved away when it was killed before the new folder took its place."""
    replaced = path.with_name(path.name + REPLACED)
    if replaced.exists() and not path.exists():
        replaced.replace(path)


def clear_leftovers(path: Path) -> None:
    """Remove what processes of this machine that are gone have left beside `path` of their attempts to write it."""
    for leftover in path.parent.glob(f"{glob.escape(path.name)}.{socket.gethostname()}-*{PARTIAL}"):
        owner = leftover.name.removesuffix(PARTIAL).rpartition("-")[2]
        if owner.isdecimal() and not Path(f"/proc/{owner}").exists():
            shutil.rmtree(leftover, ignore_errors=True) if leftover.is_dir() else leftover.unlink(missing_ok=True)


def fsync(path: Path) -> None:
    """Flush a file or a folder entry to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _unique() -> str:
    """Differs between processes, also of several machines on one disk."""
    return f"{socket.gethostname()}-{os.getpid()}"


def write_text(path: Path, text: str) -> None:
    with atomic_file(path) as partial:
        partial.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any) -> None:
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def read_json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def write_jsonl(path: Path, rows: list[dict[str, Any]]) -> None:
    write_text(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


def append_jsonl(path: Path, row: dict[str, Any]) -> None:
    """Add one record to a growing file. A torn last line is dropped by `read_jsonl`."""
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(row, ensure_ascii=False) + "\n")


def read_jsonl(path: Path) -> list[dict[str, Any]]:
    """The whole records of a growing file: empty where it does not exist, without a torn last line."""
    if not path.exists():
        return []
    lines = path.read_bytes().split(b"\n")[:-1]  # what follows the last newline was torn
    return [json.loads(line) for line in lines]


def sha256_file(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def is_full_disk(error: Exception) -> bool:
    """True also where a quota is used up."""
    return isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)


def check_writable(folder: Path) -> None:
    """Raise InputError where `folder` cannot be made or written to, or has a name that libraries cannot spell."""
    try:
        str(folder).encode()
    except UnicodeEncodeError:
        raise InputError(
            f"the folder {str(folder)!a} has a name that this locale cannot spell. Expected a locale of UTF-8; set "
            "LC_ALL=C.UTF-8 or PYTHONUTF8=1, or choose another name."
        ) from None
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / f".write-probe-{_unique()}"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise InputError(
            f"cannot write to {folder}: {error.strerror or error}. Expected a folder this user may write to; "
            "choose another place with --runs DIR, or change its permissions."
        ) from error
