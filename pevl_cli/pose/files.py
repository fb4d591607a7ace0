"""Read files and folders of poses, of other tools and of `pevl pose --store`.

A clip is read at its first use; only a pickle is read as a whole.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from pevl_cli.cache import file_digest
from pevl_cli.errors import PevlError, UsageError
from pevl_cli.pose.json_files import clip_name, read_json
from pevl_cli.pose.pickles import read_pickle
from pevl_cli.pose.skeletons import LAYOUTS, find_layout
from pevl_cli.pose.store import npz_entries
from pevl_cli.pose.stored import FORMAT_ERRORS, StoredPoses, check_joint_count

SUFFIXES = {".pkl", ".pickle", ".npz", ".json"}
PICKLES = {".pkl", ".pickle"}


class PoseStore:
    """The poses of many clips by name; each clip is read when `get` is called."""

    def __init__(
        self, source: Path, entries: dict[str, Callable[[], StoredPoses]], layout: str | None = None
    ) -> None:
        self.source = source
        self.chosen_layout = layout  # None: by the number of joints
        self._entries, self._layout = entries, layout
        self._digest: str | None = None
        last: dict[str, str | None] = {}  # last part of a name -> name; None if ambiguous
        for name in entries:
            key = name.rpartition("/")[2]
            last[key] = None if key in last else name
        self._by_last = last

    def __len__(self) -> int:
        return len(self._entries)

    @property
    def names(self) -> list[str]:
        """The names of all clips."""
        return list(self._entries)

    def find(self, name: str) -> str | None:
        """The stored name of a clip, which may differ in its outer folders; None if not stored."""
        rest = name
        while rest not in self._entries and "/" in rest:
            rest = rest.partition("/")[2]
        if rest in self._entries:
            return rest
        other = self._by_last.get(rest)
        return other if other is not None and other.endswith(f"/{name}") else None

    def get(self, name: str) -> StoredPoses | None:
        """A clip's poses; None if not stored. PevlError if damaged."""
        entry = self.find(name)
        if entry is None:
            return None
        try:
            stored = self._entries[entry]()
        except FORMAT_ERRORS as error:
            raise PevlError(f"{self.source}: '{name}' cannot be read ({error}).") from error
        if not len(stored.people):
            raise PevlError(f"{self.source}: '{name}' has no frames.")
        return stored

    def layout(self) -> str:
        """The layout of `read_poses`, otherwise the layout of the first clip with a person.

        PevlError when no clip can be read.
        """
        if self._layout is not None:
            return self._layout
        layout = None
        for name in self._entries:
            with suppress(PevlError):
                stored = self.get(name)
                if stored is not None:
                    layout = layout or stored.layout
                    if any(len(p) for p in stored.people):
                        return stored.layout
        if layout is None:
            raise PevlError(f"{self.source}: none of its {len(self)} clips can be read.")
        return layout

    def digest(self) -> str:
        """Hash of a file's content; for a folder, of the names, sizes and times of its files."""
        if self._digest is None:
            if self.source.is_file():
                content = file_digest(self.source)
            else:
                files = (p for p in self.source.rglob("*") if p.suffix in SUFFIXES)
                listed = sorted((str(p), p.stat().st_size, p.stat().st_mtime_ns) for p in files)
                content = hashlib.blake2b(repr(listed).encode(), digest_size=16).hexdigest()
            self._digest = f"{content}{self._layout or ''}"
        return self._digest


def read_poses(source: str | Path, layout: str | None = None) -> PoseStore:
    """Read poses from a PYSKL pickle, an .npz file, a JSON file, or a folder of these.

    ``layout``: a key of LAYOUTS, for files without a layout; None: by the number of joints.
    UsageError for an unknown layout; PevlError for a source that cannot be read.
    """
    source = Path(source)
    if layout is not None and layout not in LAYOUTS:
        raise UsageError(f"layout '{layout}' is unknown; use {', '.join(LAYOUTS)}.")
    if not source.exists():
        raise PevlError(f"{source}: no such file or folder of poses.")
    entries: dict[str, Callable[[], StoredPoses]] = {}
    if source.is_dir():
        for store in sorted(source.glob("*.npz")):
            entries |= npz_entries(store, layout)
        for file in sorted(f for f in source.iterdir() if f.suffix in PICKLES):
            entries |= _pickle_entries(file, layout)
        for file in sorted(source.rglob("*.json")):
            folder = file.relative_to(source).parent
            entries[(folder / clip_name(file)).as_posix()] = partial(read_json, file, layout)
        if not entries:
            kinds = ", ".join(sorted(SUFFIXES))
            raise PevlError(f"{source}: no file with poses in this folder ({kinds}).")
        return PoseStore(source, entries, layout)
    if source.suffix == ".npz":
        return PoseStore(source, npz_entries(source, layout), layout)
    if source.suffix == ".json":
        entries[clip_name(source)] = partial(read_json, source, layout)
        return PoseStore(source, entries, layout)
    if source.suffix in PICKLES:
        return PoseStore(source, _pickle_entries(source, layout), layout)
    raise PevlError(
        f"{source}: not a file of poses; give a file ({', '.join(sorted(SUFFIXES))}) or a folder."
    )


def _pickle_entries(path: Path, layout: str | None) -> dict[str, Callable[[], StoredPoses]]:
    annotations, _ = read_pickle(path)
    return {str(a["frame_dir"]): partial(_read_annotation, a, path, layout) for a in annotations}


def _read_annotation(annotation: dict[str, Any], path: Path, layout: str | None) -> StoredPoses:
    name = str(annotation["frame_dir"])
    points = np.asarray(annotation["keypoint"], np.float32)
    scores = annotation.get("keypoint_score")
    if points.shape[-1] == 3 and scores is None:
        points, scores = points[..., :2], points[..., 2]
    if points.shape[-1] != 2:
        raise PevlError(f"{path}: keypoint of '{name}' is not two-dimensional.")
    scores = np.ones(points.shape[:-1]) if scores is None else np.asarray(scores, np.float32)
    if scores.shape != points.shape[:-1]:
        raise PevlError(
            f"{path}: '{name}' has keypoint_score of shape {scores.shape} and keypoint of "
            f"{points.shape}."
        )
    tracks = np.concatenate([points, scores[..., None]], -1)
    size = annotation.get("img_shape")
    height, width = (0, 0) if size is None else (int(v) for v in tuple(size)[:2])
    label = annotation.get("label")
    layout = layout or find_layout(tracks.shape[2], path)
    check_joint_count(tracks.shape[2], layout, f"{path}: '{name}'")
    return StoredPoses.from_tracks(
        name, tracks, layout, width, height, None if label is None else int(label)
    )
