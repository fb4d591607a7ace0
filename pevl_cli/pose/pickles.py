"""Read and write pickles of poses of PYSKL and MMAction2, as data only: no code is run."""

from __future__ import annotations

import pickle
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from pevl_cli.cache import atomic_write
from pevl_cli.errors import PevlError

# Allowed dtype kinds: numbers and text. Arrays of objects or records could forge pointers.
PLAIN_KINDS = "biufSU"


class _DType:
    """Replaces numpy.dtype: a forged pickle could set a dtype's state to any value."""

    def __init__(self, name: str, align: object = False, copy: object = False) -> None:
        if not isinstance(name, str) or np.dtype(name).kind not in PLAIN_KINDS:
            raise PevlError(f"it contains arrays of '{name}', which are not numbers")
        self.real = np.dtype(name)

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        _, order, subarray, names, fields, *_ = state
        if subarray is not None or names is not None or fields is not None:
            raise PevlError("it contains arrays of records, which are not numbers")
        self.real = self.real.newbyteorder(order)


class _Array(np.ndarray):
    """An array that checks a pickled state before numpy uses it."""

    def __setstate__(self, state: Any) -> None:
        version, shape, dtype, fortran, data = state
        if not isinstance(dtype, _DType) or not isinstance(data, bytes):
            raise PevlError("it contains an array of objects, which are not numbers")
        super().__setstate__((version, shape, dtype.real, fortran, data))


def _new_array(_class: object, _shape: object, _kind: object) -> _Array:
    return np.ndarray.__new__(_Array, (0,), "b")


def _new_scalar(dtype: _DType, data: bytes) -> Any:
    return np.frombuffer(data, dtype.real, 1)[0]


def _from_buffer(data: Any, dtype: _DType, shape: Any, order: str) -> np.ndarray:
    return np.frombuffer(data, dtype.real).reshape(shape, order=order)  # type: ignore[call-overload]


def _encode(text: str, encoding: str) -> bytes:
    """Bytes, which pickles of protocol 2 store as text."""
    return text.encode("latin1" if encoding == "latin1" else "ascii")


# The classes and functions allowed in a pickle -> replacement; any other could run code.
ALLOWED: dict[tuple[str, str], object] = {
    ("numpy", "ndarray"): "numpy.ndarray",  # only used as an argument of _new_array
    ("numpy", "dtype"): _DType,
    ("collections", "OrderedDict"): OrderedDict,
    ("builtins", "set"): set,
    ("builtins", "frozenset"): frozenset,
    ("_codecs", "encode"): _encode,
}
for _core in ("core", "_core"):
    ALLOWED[f"numpy.{_core}.multiarray", "_reconstruct"] = _new_array
    ALLOWED[f"numpy.{_core}.multiarray", "scalar"] = _new_scalar
    ALLOWED[f"numpy.{_core}.numeric", "_frombuffer"] = _from_buffer


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in ALLOWED:
            raise PevlError(
                f"asks for {module}.{name}, which is not data; the file is not read, because it "
                "could run any program on this computer"
            )
        return ALLOWED[module, name]


def read_pickle(path: Path) -> tuple[list[dict[str, Any]], dict[str, list[str]]]:
    """The annotations of a PYSKL pickle and its splits (name -> clip names).

    Only numpy arrays and plain containers are allowed: PevlError gives the name of anything else.
    """
    try:
        stat = path.stat()
    except OSError as error:
        raise PevlError(f"{path}: {(error.strerror or str(error)).lower()}.") from error
    return _read(path, stat.st_size, stat.st_mtime_ns)


@lru_cache(maxsize=1)  # a pickle is read twice: as a data set, and for its poses
def _read(path: Path, _size: int, _time: int) -> tuple[list[dict[str, Any]], dict[str, list[str]]]:
    try:
        with path.open("rb") as file:
            content = _Unpickler(file).load()
    except PevlError as error:
        raise PevlError(f"{path}: {error}.") from error
    except Exception as error:  # unpickling a damaged file raises almost anything
        raise PevlError(f"{path}: cannot be read as a pickle ({error or 'damaged'}).") from error
    try:
        return _checked(content, path)
    except (ValueError, TypeError, AttributeError, OverflowError) as error:
        raise PevlError(f"{path}: not in PYSKL's format ({error}).") from error


def _checked(content: Any, path: Path) -> tuple[list[dict[str, Any]], dict[str, list[str]]]:
    splits: dict[str, list[str]] = {}
    if isinstance(content, dict) and "annotations" in content:
        splits = {str(k): [str(n) for n in v] for k, v in dict(content.get("split") or {}).items()}
        content = content["annotations"]
    if not isinstance(content, list) or not all(isinstance(a, dict) for a in content):
        raise PevlError(
            f"{path}: not in PYSKL's format: a dict of 'split' and 'annotations', or a list of "
            "annotations, is needed."
        )
    if not content:
        raise PevlError(f"{path}: it contains no clip.")
    names = set()
    plain = []
    for i, annotation in enumerate(content):
        missing = {"frame_dir", "keypoint"} - annotation.keys()
        if missing:
            raise PevlError(f"{path}: annotation {i} has no '{sorted(missing)[0]}'.")
        name = str(annotation["frame_dir"])
        if np.ndim(annotation["keypoint"]) != 4:
            shape = np.shape(annotation["keypoint"])
            raise PevlError(f"{path}: keypoint of '{name}' has shape {shape}, not (M, T, V, 2).")
        if name in names:
            raise PevlError(f"{path}: '{name}' is listed twice.")
        names.add(name)
        plain.append(
            {k: v.view(np.ndarray) if isinstance(v, _Array) else v for k, v in annotation.items()}
        )
    return plain, splits


def write_pickle(
    path: Path, annotations: Sequence[Mapping[str, Any]], splits: Mapping[str, Sequence[str]]
) -> None:
    """Write a PYSKL pickle: annotations, and per split the names (``frame_dir``) of its clips.

    PevlError when it cannot be written.
    """
    content = {
        "split": {name: list(clips) for name, clips in splits.items()},
        "annotations": [dict(a) for a in annotations],
    }
    with atomic_write(path) as temporary, temporary.open("wb") as file:
        pickle.dump(content, file, protocol=4)
