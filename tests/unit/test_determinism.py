import os

import pytest
import torch

from distill.determinism import WORKSPACE, deterministic
from distill.errors import InputError


def state() -> tuple[object, ...]:
    cudnn = torch.backends.cudnn
    return torch.get_deterministic_debug_mode(), cudnn.deterministic, cudnn.benchmark


def unrepeatable() -> torch.Tensor:
    """Where an index stands twice, either value may win: torch has no deterministic algorithm for it."""
    return torch.zeros(2).put_(torch.tensor([0, 0]), torch.tensor([1.0, 2.0]))


def test_what_cannot_be_repeated_is_refused_while_it_lasts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(WORKSPACE, raising=False)
    before = state()
    with pytest.raises(RuntimeError, match="does not have a deterministic implementation"), deterministic(True):
        assert state() == (2, True, False) and os.environ[WORKSPACE] == ":4096:8"
        unrepeatable()
    assert state() == before, "restored, after an error too"
    with deterministic(False):
        assert state() == before
        unrepeatable()


def test_a_cublas_setting_that_contradicts_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(WORKSPACE, ":0:0")
    with pytest.raises(InputError, match=r"is ':0:0'. Expected one of :4096:8, :16:8"), deterministic(True):
        pass
    monkeypatch.setenv(WORKSPACE, ":16:8")
    with deterministic(True):
        assert os.environ[WORKSPACE] == ":16:8"
