"""Files and folders of poses by other tools and by `pevl pose --store`: which kind, which clips.

A clip is read when it is asked for; a pickle has to be read whole.
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
    """The poses of many clips, by the clips' names, each read when asked for."""

    def __init__(
        self, source: Path, entries: dict[str, Callable[[], StoredPoses]], layout: str | None = None
    ) -> None:
        self.source = source
        self.chosen_layout = layout  # as the caller named it
        self._entries, self._layout = entries, layout
        self._digest: str | None = None
        last: dict[str, str | None] = {}  # last part of a name -> the name, None if not unique
        for name in entries:
            key = name.rpartition("/")[2]
            last[key] = None if key in last else name
        self._by_last = last

    def __len__(self) -> int:
        return len(self._entries)

    @property
    def names(self) -> list[str]:
        return list(self._entries)

    def find(self, name: str) -> str | None:
        """The name under which a clip is stored: its own, or one that differs by outer folders."""
        rest = name
        while rest not in self._entries and "/" in rest:
            rest = rest.partition("/")[2]
        if rest in self._entries:
            return rest
        other = self._by_last.get(rest)
        return other if other is not None and other.endswith(f"/{name}") else None

    def get(self, name: str) -> StoredPoses | None:
        """A clip's poses, None if there are none; PevlError if they are damaged."""
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
        """The layout that was named, else that of the first clip with a person in it."""
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
        """Hash of a file's content, or of a folder's list of names, sizes and times."""
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
    """Poses of a PYSKL pickle, an array or a store (.npz), a JSON file, or a folder of these.

    ``layout`` names the joints where the file does not; None: the layout of so many joints.
    UsageError for an unknown layout, PevlError for what cannot be read.
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
            place = file.relative_to(source).parent
            entries[(place / clip_name(file)).as_posix()] = partial(read_json, file, layout)
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
        f"{source}: not a file of poses; name a file ({', '.join(sorted(SUFFIXES))}) or a folder."
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
            f"{path}: '{name}' has keypoint_score {scores.shape} beside keypoint {points.shape}."
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
