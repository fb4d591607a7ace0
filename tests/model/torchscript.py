"""TorchScript archives with given tensors, as OpenAI publishes CLIP."""

from __future__ import annotations

import warnings
from pathlib import Path

import torch
from torch import Tensor, nn


class _Archive(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x


def save_torchscript(state: dict[str, Tensor], file: Path) -> None:
    """An archive whose state_dict is ``state``."""
    archive = _Archive()
    for name, value in state.items():
        module: nn.Module = archive
        *path, last = name.split(".")
        for part in path:
            if part not in dict(module.named_children()):
                module.add_module(part, nn.Module())
            module = module.get_submodule(part)
        module.register_buffer(last, value)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.save(torch.jit.script(archive), file)
