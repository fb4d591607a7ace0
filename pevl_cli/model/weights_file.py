"""Weights in a file: safetensors, torch's format, or a TorchScript archive. Knows no model.

No program in a file is run: pickles are read by torch's safe loader, and of a TorchScript archive
only the tensors are used.
"""

from __future__ import annotations

import hashlib
import re
import warnings
import zipfile
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from pevl_cli.errors import PevlError


def read_weights(path: Path) -> dict[str, Tensor]:
    """The tensors of a file, name -> tensor (…), on the CPU and as they are stored.

    The format is recognised by the content. A training checkpoint gives its entry "state_dict";
    the prefix `module.` of distributed training is removed. PevlError for a file that is damaged,
    contains more than weights, or has another format.
    """
    try:
        content = _read(path)
    except OSError as error:
        raise PevlError(f"{path}: cannot be read ({error.strerror or error}).") from error
    except Exception as error:  # a damaged file raises almost anything
        refused = re.search(r"GLOBAL ([\w.]+)", str(error))
        if refused is not None:
            raise PevlError(
                f"{path}: contains {refused[1]}, not only weights; the file is not read, because "
                "it could run any program on this computer; save its state dict alone."
            ) from error
        reason = (str(error).strip() or type(error).__name__).splitlines()[0][:120].rstrip(".")
        raise PevlError(f"{path}: not a weights file, or damaged ({reason}).") from error
    if isinstance(content, dict) and isinstance(content.get("state_dict"), dict):
        content = content["state_dict"]
    if not isinstance(content, dict) or not content:
        raise PevlError(f"{path}: contains no weights.")
    for name, value in content.items():
        if not isinstance(name, str) or not isinstance(value, Tensor):
            raise PevlError(f"{path}: is no state dict: its entry '{name}' is not a tensor.")
        if value.is_meta or value.layout != torch.strided or value.is_quantized:
            raise PevlError(f"{path}: its entry '{name}' is sparse, quantised, or has no data.")
    if all(name.startswith("module.") for name in content):
        content = {name.removeprefix("module."): value for name, value in content.items()}
    return content


def _read(path: Path) -> Any:
    with path.open("rb") as file:
        start = file.read(9)
    if len(start) == 9 and start[8:] == b"{":  # the length of safetensors' JSON header, then this
        return load_file(path)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # TorchScript is deprecated, but OpenAI's files remain
        if _is_torchscript(path):
            return dict(torch.jit.load(path, map_location="cpu").state_dict())
        with path.open("rb") as file:  # of a path, torch would read the ending
            return torch.load(file, map_location="cpu", weights_only=True)


def _is_torchscript(path: Path) -> bool:
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return any(name.endswith("/constants.pkl") for name in archive.namelist())


def state_digest(state: dict[str, Tensor]) -> str:
    """Hash of names and values (as float32), the same on every machine: 16 bytes as hexadecimal."""
    digest = hashlib.blake2b(digest_size=16)
    for key in sorted(state):
        digest.update(key.encode())
        digest.update(state[key].detach().cpu().contiguous().float().numpy().tobytes())
    return digest.hexdigest()
