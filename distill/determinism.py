"""Deterministic mode: the same run twice gives the same numbers, on GPUs too."""

import contextlib
import os
from collections.abc import Iterator

import torch

from distill.errors import InputError

WORKSPACE = "CUBLAS_WORKSPACE_CONFIG"
WORKSPACES = (
    ":4096:8",
    ":16:8",
)  # with which cuBLAS is deterministic (cuBLAS documentation, "Results Reproducibility")


@contextlib.contextmanager
def deterministic(wanted: bool) -> Iterator[None]:
    """While it lasts, torch takes deterministic algorithms only; an operation that has none is an error.

    To be entered before the first product on a GPU: cuBLAS looks at its variable once. InputError where that asks for
    something else.
    """
    if not wanted:
        yield
        return
    given = os.environ.setdefault(WORKSPACE, WORKSPACES[0])
    if given not in WORKSPACES:
        raise InputError(
            f"train.deterministic: true given, but {WORKSPACE} is {given!r}. Expected one of {', '.join(WORKSPACES)}; "
            "unset it, or change it."
        )
    before = torch.get_deterministic_debug_mode()
    cudnn = torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark
    torch.use_deterministic_algorithms(True)
    torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark = True, False
    try:
        yield
    finally:
        torch.set_deterministic_debug_mode(before)
        torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark = cudnn
