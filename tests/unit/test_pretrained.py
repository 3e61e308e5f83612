import pytest
import torch

from distill.errors import InputError
from distill.pretrained import dtype_of


@pytest.mark.parametrize("has_bf16", [True, False])
def test_bf16_on_a_gpu_that_only_emulates_it_is_refused(monkeypatch: pytest.MonkeyPatch, has_bf16: bool) -> None:
    """A GPU's answers are given: where the tests run there is none."""
    assert dtype_of("bf16") == torch.bfloat16
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: including_emulation or has_bf16)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "Tesla V100")
    assert dtype_of("fp32") == torch.float32
    if has_bf16:
        assert dtype_of("bf16") == torch.bfloat16
        return
    with pytest.raises(InputError, match="bf16 given, but Tesla V100 does not compute in it"):
        dtype_of("bf16")
