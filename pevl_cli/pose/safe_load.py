"""Read `.pt` files with torch's safe loader: only tensors, containers, and listed classes."""

from __future__ import annotations

import re
import threading
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any, NoReturn

import torch
from torch import nn
from torch.serialization import add_safe_globals, clear_safe_globals, get_safe_globals

from pevl_cli.errors import PevlError

_registry_lock = threading.Lock()  # torch has one list of allowed classes per process


def load_pt(path: Path, allowed: Mapping[str, object]) -> Any:
    """The content of a `.pt` file, on the CPU. No code in the file is executed.

    ``allowed``: full name of a class or function in the file -> its replacement; for module classes
    the result of `passive_class`. PevlError for any other class (with its name), and for a damaged
    file.
    """
    try:
        with _registry_lock, _only_allowed(allowed), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of file forms that are refused all the same
            return torch.load(path, map_location="cpu", weights_only=True)
    except PevlError as error:
        raise PevlError(f"{path}: {error}.") from error
    except OSError as error:
        raise PevlError(f"{path}: cannot be read ({error.strerror or error}).") from error
    except Exception as error:  # a damaged file raises almost anything
        refused = re.search(r"GLOBAL ([\w.]+)", str(error))
        if refused is None:
            raise PevlError(
                f"{path}: not a YOLO-pose weights file, or damaged "
                f"({(str(error) or type(error).__name__).splitlines()[0][:120]})."
            ) from error
        raise PevlError(
            f"{path}: asks for {refused[1]}, which is no part of a YOLO-pose network; the file is "
            "not read, because it could run any program on this computer."
        ) from error


@contextmanager
def _only_allowed(allowed: Mapping[str, object]) -> Iterator[None]:
    """Inside this block, torch's list of allowed classes is ``allowed`` only."""
    before = get_safe_globals()
    clear_safe_globals()
    try:
        add_safe_globals([(value, name) for name, value in allowed.items()])  # type: ignore[misc]
        yield
    finally:
        clear_safe_globals()
        add_safe_globals(before)


@cache
def passive_class(real: type) -> type:
    """A subclass of ``real`` for loading: its constructor raises PevlError.

    The safe loader lets a file call every allowed class with any arguments, and some constructors
    download files or evaluate text (ultralytics' ``PoseModel``). Objects get their state from the
    file without a constructor call. `restore_classes` gives loaded objects their real class.
    """

    def refuse(*_: object, **__: object) -> NoReturn:
        raise PevlError(f"it calls {real.__module__}.{real.__name__}; the file is not read")

    return type(real.__name__, (real,), {"__init__": refuse, "real_class": real})


def restore_classes(network: nn.Module) -> None:
    """Give all modules of a loaded network their real class, in place."""
    for module in network.modules():
        module.__class__ = getattr(type(module), "real_class", type(module))
