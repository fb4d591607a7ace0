"""Half precision where it is harmless: matrix products of the towers, nothing else.

Embeddings, norms, the residual stream, similarities, softmaxes over them, and losses stay in
float32. A bfloat16 number near 0.3 has steps of 0.002, which at τ = 0.01 are 0.2 logits; and in a
bfloat16 stream the first small updates of an adapter are rounded away.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import nn


class FullPrecisionLinear(nn.Linear):
    """A linear map that stays in float32: one that makes features."""


MATRIX_LAYERS = (nn.Linear, nn.MultiheadAttention, nn.Conv1d, nn.Conv2d, nn.Conv3d)


def half_precision(device: torch.device, dtype: torch.dtype) -> AbstractContextManager[None]:
    """A context in which matrix products are computed in ``dtype``; without effect for float32."""
    if dtype == torch.float32:
        return nullcontext()
    return torch.autocast(device.type, dtype)


def full_precision(device: torch.device) -> AbstractContextManager[None]:
    """A context in which everything is computed in the precision of its input."""
    if not torch.amp.is_autocast_available(device.type):  # such as "meta"
        return nullcontext()
    return torch.autocast(device.type, enabled=False)


def computes_in_half(device: torch.device) -> bool:
    """Whether matrix products on the device are computed in half precision now."""
    kind = device.type
    return torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind)


def convert_matrices(module: nn.Module, dtype: torch.dtype, frozen_only: bool = False) -> None:
    """Convert the weights of linear maps, attention and convolutions to ``dtype``, in place.

    Not those of `FullPrecisionLinear`. ``frozen_only``: not those that are trained.
    """
    for layer in module.modules():
        if not isinstance(layer, MATRIX_LAYERS) or isinstance(layer, FullPrecisionLinear):
            continue
        for parameter in layer.parameters(recurse=False):
            if not (frozen_only and parameter.requires_grad):
                parameter.data = parameter.data.to(dtype)
