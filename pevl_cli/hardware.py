"""The device and the number format (precision) that a model computes with."""

from __future__ import annotations

import torch

from pevl_cli.errors import UsageError

PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def choose_device(name: str) -> str:
    """The name of a torch device; "auto" is CUDA's GPU, otherwise Apple's, otherwise the CPU.

    UsageError for a device that this machine does not have.
    """
    if name == "auto":
        if torch.cuda.is_available():
            return "cuda"
        return "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        torch.zeros(1, device=name).item()  # "meta" has no values
    except (RuntimeError, AssertionError) as error:
        raise UsageError(
            f"--device {name}: not available; hint: use auto, cpu, or a GPU that torch supports."
        ) from error
    return name


def choose_precision(name: str, device: str, large: bool) -> str:
    """The name of a precision, a key of `PRECISIONS`.

    "auto" chooses half precision for a ``large`` model on hardware that supports it. A small model
    is not faster in half precision and stays in float32. UsageError for a precision that the
    device does not support.
    """
    if name != "auto":
        if name not in PRECISIONS:
            raise UsageError(
                f"--precision {name}: unknown; hint: use auto, {', '.join(PRECISIONS)}."
            )
        if name == "fp16" and device == "cpu":
            raise UsageError("--precision fp16 needs a GPU; hint: use bf16 or fp32 on the CPU.")
        return name
    if not large:
        return "fp32"
    if has_bf16(device):
        return "bf16"
    return "fp16" if device.startswith("cuda") else "fp32"


def has_bf16(device: str) -> bool:
    """Whether the device has bfloat16 instructions; emulating them would be slower than float32."""
    if device.startswith("cuda"):
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if not device.startswith("cpu") or torch.backends.cpu.get_cpu_capability() != "AVX512":
        return False
    return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())
