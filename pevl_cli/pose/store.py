"""TODO."""

from __future__ import annotations

import json
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import replace
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np

from pevl_cli.errors import PevlError
from pevl_cli.pose.skeletons import layout_of
from pevl_cli.pose.stored import READING, StoredPoses, _check_joints

# -- arrays and our own store ---------------------------------------------------------------------


def _entries_of_npz(path: Path, layout: str | None) -> dict[str, Callable[[], StoredPoses]]:
    try:
        files = _opened(path, path.stat().st_mtime_ns).namelist()
    except (OSError, zipfile.BadZipFile) as error:
        raise PevlError(f"{path}: cannot be read as an .npz file ({error}).") from error
    if STORE_FACTS in files:
        names = [f.removesuffix("/joints.npy") for f in files if f.endswith("/joints.npy")]
        return {name: partial(_of_store, path, name) for name in names}
    if "kpts.npy" in files:
        return {path.stem: partial(_of_array, path, layout)}
    raise PevlError(f"{path}: neither a store of `pevl pose` nor an array named 'kpts' is in it.")


def _of_array(path: Path, layout: str | None) -> StoredPoses:
    """One person: kpts (T, J, 2), or (T, J, 3) with scores."""
    joints = _member(path, "kpts")
    if joints.ndim != 3 or joints.shape[-1] not in (2, 3):
        raise PevlError(f"{path}: kpts has shape {joints.shape}, not (T, J, 2) or (T, J, 3).")
    if joints.shape[-1] == 2:
        joints = np.concatenate([joints, np.ones_like(joints[..., :1])], -1)
    layout = layout or layout_of(joints.shape[1], path)
    _check_joints(joints.shape[1], layout, str(path))
    return StoredPoses.of_tracks(path.stem, joints[None], layout, 0, 0, None)


STORE_FACTS = "about.json"


@lru_cache(maxsize=8)
def _opened(path: Path, _: int) -> zipfile.ZipFile:
    return zipfile.ZipFile(path)


def _member(path: Path, name: str) -> np.ndarray:
    try:
        with _opened(path, path.stat().st_mtime_ns).open(f"{name}.npy") as file:
            return np.asarray(np.lib.format.read_array(file, allow_pickle=False))
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise PevlError(f"{path}: entry '{name}' is damaged ({error}); make it again.") from error


def _of_store(path: Path, name: str) -> StoredPoses:
    joints, size = _member(path, f"{name}/joints"), _member(path, f"{name}/size")
    boxes = _member(path, f"{name}/boxes")
    width, height, layout = int(size[0]), int(size[1]), store_facts(path)["layout"]
    stored = StoredPoses.of_tracks(name, joints[None], layout, width, height, None)
    return replace(stored, boxes=boxes)


def store_facts(path: Path) -> dict[str, Any]:
    """What a store was made by: weights, settings, layout."""
    try:
        facts: dict[str, Any] = json.loads(_opened(path, path.stat().st_mtime_ns).read(STORE_FACTS))
    except (OSError, EOFError, zipfile.BadZipFile, zlib.error, *READING) as error:
        raise PevlError(f"{path}: not a store of poses ({error}).") from error
    return facts
