from __future__ import annotations

import pytest
import torch

from pevl_cli import hardware
from pevl_cli.errors import UsageError


def test_a_device_that_is_not_there_is_a_usage_error() -> None:
    with pytest.raises(UsageError, match="--device tpu9"):
        hardware.choose_device("tpu9")
    with pytest.raises(UsageError, match="--device meta"):
        hardware.choose_device("meta")
    if not torch.cuda.is_available():
        with pytest.raises(UsageError, match="--device cuda"):
            hardware.choose_device("cuda")


def test_auto_picks_the_gpu_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert hardware.choose_device("auto") == "cuda"


@pytest.mark.parametrize(("has", "expected"), [(True, "bf16"), (False, "fp32")])
def test_a_large_model_is_halved_only_where_the_processor_can(
    monkeypatch: pytest.MonkeyPatch, has: bool, expected: str
) -> None:
    monkeypatch.setattr(hardware, "has_bf16", lambda device: has)
    assert hardware.choose_precision("auto", "cpu", large=True) == expected
    assert hardware.choose_precision("auto", "cpu", large=False) == "fp32"
    assert hardware.choose_precision("bf16", "cpu", large=False) == "bf16"


def test_wrong_precisions_are_usage_errors() -> None:
    with pytest.raises(UsageError, match="fp8"):
        hardware.choose_precision("fp8", "cpu", large=True)
    with pytest.raises(UsageError, match="needs a GPU"):
        hardware.choose_precision("fp16", "cpu", large=True)
