"""Read poses in `.npz` files: stores of `pevl pose --store`, and arrays named "kpts"."""

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
from pevl_cli.pose.skeletons import find_layout
from pevl_cli.pose.stored import FORMAT_ERRORS, StoredPoses, check_joint_count

STORE_FACTS = "about.json"


def npz_entries(path: Path, layout: str | None) -> dict[str, Callable[[], StoredPoses]]:
    """The clips of an `.npz` file: name -> function that reads the poses.

    PevlError for other content.
    """
    try:
        files = _open(path, path.stat().st_mtime_ns).namelist()
    except (OSError, zipfile.BadZipFile) as error:
        raise PevlError(f"{path}: cannot be read as an .npz file ({error}).") from error
    if STORE_FACTS in files:
        names = [f.removesuffix("/joints.npy") for f in files if f.endswith("/joints.npy")]
        return {name: partial(_read_clip, path, name) for name in names}
    if "kpts.npy" in files:
        return {path.stem: partial(_read_array, path, layout)}
    raise PevlError(
        f"{path}: it contains neither poses of `pevl pose --store` nor an array 'kpts'."
    )


def _read_array(path: Path, layout: str | None) -> StoredPoses:
    """One person: kpts (T, J, 2) in px, or (T, J, 3) with scores."""
    joints = _member(path, "kpts")
    if joints.ndim != 3 or joints.shape[-1] not in (2, 3):
        raise PevlError(f"{path}: kpts has shape {joints.shape}, not (T, J, 2) or (T, J, 3).")
    if joints.shape[-1] == 2:
        joints = np.concatenate([joints, np.ones_like(joints[..., :1])], -1)
    layout = layout or find_layout(joints.shape[1], path)
    check_joint_count(joints.shape[1], layout, str(path))
    return StoredPoses.from_tracks(path.stem, joints[None], layout, 0, 0, None)


@lru_cache(maxsize=8)
def _open(path: Path, _modified_ns: int) -> zipfile.ZipFile:
    return zipfile.ZipFile(path)


def _member(path: Path, name: str) -> np.ndarray:
    try:
        with _open(path, path.stat().st_mtime_ns).open(f"{name}.npy") as file:
            return np.asarray(np.lib.format.read_array(file, allow_pickle=False))
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise PevlError(
            f"{path}: entry '{name}' is damaged ({error}); extract the poses again."
        ) from error


def _read_clip(path: Path, name: str) -> StoredPoses:
    joints, size = _member(path, f"{name}/joints"), _member(path, f"{name}/size")
    boxes = _member(path, f"{name}/boxes")
    width, height, layout = int(size[0]), int(size[1]), read_store_facts(path)["layout"]
    stored = StoredPoses.from_tracks(name, joints[None], layout, width, height, None)
    return replace(stored, boxes=boxes)


def read_store_facts(path: Path) -> dict[str, Any]:
    """The content of about.json: hash of the weights, settings, layout. PevlError when damaged."""
    try:
        facts: dict[str, Any] = json.loads(_open(path, path.stat().st_mtime_ns).read(STORE_FACTS))
    except (OSError, EOFError, zipfile.BadZipFile, zlib.error, *FORMAT_ERRORS) as error:
        raise PevlError(f"{path}: not a file that `pevl pose --store` wrote ({error}).") from error
    return facts
