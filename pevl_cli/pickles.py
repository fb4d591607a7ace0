"""PYSKL's and MMAction2's pickles of poses, read without running what they may hold."""

from __future__ import annotations

import pickle
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from pevl_cli.cache import write_aside
from pevl_cli.errors import PevlError

# What a pickle of poses may be made of; all else could run code.
ALLOWED = {
    *(
        (f"numpy.{core}.multiarray", n)
        for core in ("core", "_core")
        for n in ("_reconstruct", "scalar")
    ),
    *((f"numpy.{core}.numeric", "_frombuffer") for core in ("core", "_core")),
    ("numpy", "ndarray"),
    ("numpy", "dtype"),
    ("collections", "OrderedDict"),
    ("builtins", "set"),
    ("builtins", "frozenset"),
    ("_codecs", "encode"),
}


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in ALLOWED:
            raise PevlError(
                f"it asks for {module}.{name}, which is not data: such a pickle can run any "
                "program on this computer, and is not read"
            )
        return super().find_class(module, name)


def read_pickle(path: Path) -> tuple[list[dict[str, Any]], dict[str, list[str]]]:
    """The annotations of a PYSKL pickle and its splits (name -> clip names).

    Reads numpy arrays and plain containers only: PevlError names anything else that is asked for.
    """
    try:
        stat = path.stat()
    except OSError as error:
        raise PevlError(f"{path}: {(error.strerror or str(error)).lower()}.") from error
    return _read(path, stat.st_size, stat.st_mtime_ns)


@lru_cache(maxsize=1)  # a data set of poses is read as a list of clips, and again as their poses
def _read(path: Path, _size: int, _time: int) -> tuple[list[dict[str, Any]], dict[str, list[str]]]:
    try:
        with path.open("rb") as file:
            content = _Unpickler(file).load()
    except PevlError as error:
        raise PevlError(f"{path}: {error}.") from error
    except Exception as error:  # unpickling a damaged file raises almost anything
        raise PevlError(f"{path}: cannot be read as a pickle ({error or 'damaged'}).") from error
    splits: dict[str, list[str]] = {}
    if isinstance(content, dict) and "annotations" in content:
        splits = {str(k): [str(n) for n in v] for k, v in dict(content.get("split", {})).items()}
        content = content["annotations"]
    if not isinstance(content, list) or not all(isinstance(a, dict) for a in content):
        raise PevlError(
            f"{path}: not in PYSKL's form: a dict of 'split' and 'annotations', or a list of "
            "annotations, is needed."
        )
    names = set()
    for i, annotation in enumerate(content):
        absent = {"frame_dir", "keypoint"} - annotation.keys()
        if absent:
            raise PevlError(f"{path}: annotation {i} has no '{sorted(absent)[0]}'.")
        name = str(annotation["frame_dir"])
        if np.ndim(annotation["keypoint"]) != 4:
            shape = np.shape(annotation["keypoint"])
            raise PevlError(f"{path}: keypoint of '{name}' has shape {shape}, not (M, T, V, 2).")
        if name in names:
            raise PevlError(f"{path}: '{name}' stands in it twice.")
        names.add(name)
    return content, splits


def write_pickle(
    path: Path, annotations: Sequence[Mapping[str, Any]], splits: Mapping[str, Sequence[str]]
) -> None:
    """The same form: annotations, and which clips (by ``frame_dir``) each split has."""
    content = {
        "split": {name: list(clips) for name, clips in splits.items()},
        "annotations": [dict(a) for a in annotations],
    }
    with write_aside(path) as temporary, temporary.open("wb") as file:
        pickle.dump(content, file, protocol=4)
