"""An unfinished store of poses: finished clips are in a folder beside it until all are done.

A store is an .npz file: for each clip `<name>/joints` (T, J, 3), `<name>/boxes` (T, 4) and
`<name>/size` (width, height), all in px, and `about.json` with the detector's weights (hash) and
settings.
"""

from __future__ import annotations

import hashlib
import io
import json
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from pevl_cli import __version__
from pevl_cli.cache import atomic_write
from pevl_cli.data.manifest import Item
from pevl_cli.errors import PevlError
from pevl_cli.pose.store import STORE_FACTS
from pevl_cli.pose.stored import FORMAT_ERRORS

ARRAYS = ("joints", "boxes", "size")
# Exceptions that a damaged file raises.
DAMAGED = (OSError, EOFError, zipfile.BadZipFile, zlib.error, *FORMAT_ERRORS)


def pack(joints: np.ndarray, boxes: np.ndarray, size: np.ndarray) -> bytes:
    """Joints (T, J, 3), boxes (T, 4) and frame size (2,), in px, as the bytes of an .npz file."""
    file = io.BytesIO()
    np.savez(file, joints=joints, boxes=boxes, size=size)
    return file.getvalue()


class PartialStore:
    """The finished clips of ``items`` for the store ``path``.

    ``detector_facts``: weights and settings of the detector. A clip is finished only if these and
    the size of its file are the same (the file's time changes when it is copied). PevlError when
    the folder cannot be written, or ``path`` contains clips that are not in ``items``.
    """

    def __init__(
        self, path: Path, items: Sequence[Item], detector_facts: Mapping[str, Any]
    ) -> None:
        self.path, self.detector_facts = path, dict(detector_facts)
        self.folder = path.with_name(f"{path.name}.parts")
        self._stamps = {item.name: _file_stamp(item) for item in items}
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise PevlError(f"{self.folder}: cannot be written ({error.strerror}).") from error
        self._reuse_store()

    def has(self, name: str) -> bool:
        """Whether a clip is finished."""
        return self._read(name) is not None

    def add(self, name: str, packed: bytes) -> None:
        """Write a finished clip atomically; ``packed`` is the result of `pack`."""
        with atomic_write(self._part(name)) as temporary:
            temporary.write_bytes(packed)

    def write(self, names: Sequence[str], failed: Mapping[str, str]) -> int:
        """Write the store of these finished clips and remove them from the folder.

        ``failed``: name of each other clip -> reason. Returns the number of clips without a
        detected person. PevlError when the store cannot be written.
        """
        about = {
            "pevl": __version__,
            **self.detector_facts,
            "clips": {name: self._stamps[name] for name in names},
            "failed": dict(failed),
        }
        without_person = 0
        with (
            atomic_write(self.path) as temporary,
            zipfile.ZipFile(temporary, "w", zipfile.ZIP_DEFLATED) as store,
        ):
            store.writestr(STORE_FACTS, json.dumps(about))
            for name in names:
                arrays = self._read(name)
                if arrays is None:
                    raise PevlError(
                        f"{self.folder}: a file was damaged during the run; run the command again."
                    )
                without_person += not (arrays["joints"][..., 2] > 0).any()
                for key in ARRAYS:
                    with store.open(f"{name}/{key}.npy", "w") as file:
                        np.lib.format.write_array(file, arrays[key], allow_pickle=False)
        for name in self._stamps:  # not all files: another run may use the folder
            self._part(name).unlink(missing_ok=True)
        with suppress(OSError):
            self.folder.rmdir()
        return without_person

    def _part(self, name: str) -> Path:
        key = json.dumps([name, self.detector_facts, self._stamps[name]])
        digest = hashlib.blake2b(key.encode(), digest_size=16).hexdigest()
        return self.folder / f"{digest}.npz"

    def _read(self, name: str) -> dict[str, np.ndarray] | None:
        """A finished clip's arrays; None if it is missing or damaged."""
        try:
            with np.load(self._part(name), allow_pickle=False) as arrays:
                return {key: arrays[key] for key in ARRAYS}
        except DAMAGED:
            return None

    def _reuse_store(self) -> None:
        """Copy the valid clips of an earlier store that has the same detector facts."""
        try:
            with zipfile.ZipFile(self.path) as store:
                about = json.loads(store.read(STORE_FACTS))
                others = about["clips"].keys() - self._stamps.keys()
                if others:
                    raise PevlError(
                        f"{self.path}: contains {len(others)} other clips, such as "
                        f"'{min(others)}'; hint: choose "
                        "another file with --store, or remove this file."
                    )
                if any(about.get(key) != value for key, value in self.detector_facts.items()):
                    return
                for name, stamp in about["clips"].items():
                    if stamp == self._stamps[name]:
                        with suppress(*DAMAGED):
                            self.add(name, pack(*(_array(store, name, key) for key in ARRAYS)))
        except DAMAGED:
            return


def _array(store: zipfile.ZipFile, name: str, key: str) -> np.ndarray:
    with store.open(f"{name}/{key}.npy") as file:
        return np.asarray(np.lib.format.read_array(file, allow_pickle=False))


def _file_stamp(item: Item) -> list[object]:
    size_bytes = None
    with suppress(OSError):
        size_bytes = item.path.stat().st_size
    return [size_bytes, item.start_s, item.end_s]
