"""Where the model runs, and how precisely it should compute there."""

from __future__ import annotations

import torch

from pevl_cli.errors import UsageError

PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def choose_device(name: str) -> str:
    """The name of a device; "auto" is the first GPU, else Apple's, else the CPU.

    UsageError for one that is not there.
    """
    if name == "auto":
        if torch.cuda.is_available():
            return "cuda"
        return "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        torch.zeros(1, device=name)
    except (RuntimeError, AssertionError) as error:
        raise UsageError(
            f"--device {name}: not available here; use auto, cpu, or a GPU this torch can use."
        ) from error
    return name


def choose_precision(name: str, device: str, large: bool) -> str:
    """The name of a precision: "auto" is half of it for a large model where the hardware has it.

    A small model gains nothing and stays in float32. UsageError for what the device lacks.
    """
    if name != "auto":
        if name not in PRECISIONS:
            raise UsageError(f"--precision {name}: use auto, {', '.join(PRECISIONS)}.")
        if name == "fp16" and device == "cpu":
            raise UsageError("--precision fp16 needs a GPU; on the CPU use bf16 or fp32.")
        return name
    if not large:
        return "fp32"
    if has_bf16(device):
        return "bf16"
    return "fp16" if device.startswith("cuda") else "fp32"


def has_bf16(device: str) -> bool:
    """Whether the hardware computes in bfloat16; where it does not, emulation is slower."""
    if device.startswith("cuda"):
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if not device.startswith("cpu") or torch.backends.cpu.get_cpu_capability() != "AVX512":
        return False
    return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())
