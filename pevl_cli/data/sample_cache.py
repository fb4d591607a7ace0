"""The disk cache of decoded clips, with a size limit, and of unreadable clips.

Own code in place of a library: existing disk caches pickle their values, which is unsafe to load,
and keep an index in SQLite, which fails on the network disks of GPU servers.
"""

from __future__ import annotations

import hashlib
import zipfile
import zlib
from contextlib import suppress
from pathlib import Path

import numpy as np
from filelock import FileLock

from pevl_cli.cache import atomic_write, cache_folder, mark_used, trim_folder
from pevl_cli.data.samples import Sample
from pevl_cli.errors import PevlError

HEADER_BYTES = 4096  # of a cache file, at most, in addition to its arrays
SAMPLES = "*/*.npz"
FULL = 0.9  # a cache with more of its limit is full: it makes room for a new run ...
KEPT = 0.5  # ... down to this part of the limit, but only by samples that are not in use:
IN_USE_S = 7 * 24 * 3600  # used by some run within a week
LOCK_S = 60  # seconds to wait for another process, which may be trimming the cache


class SampleCache:
    """Samples by a key; the key must contain everything that determines a sample.

    A .txt file beside or instead of the .npz file gives the reason why a clip cannot be read. An
    empty .txt file: the clip is readable, but the cache was full.
    """

    def __init__(self, limit_bytes: float) -> None:
        self.limit_bytes = limit_bytes
        self._writable = True  # False after the folder could not be locked

    def make_room(self) -> None:
        """Trim the cache to its limit, before a run writes.

        From a full cache, samples that no run has used for a week are removed, too.
        """
        # Without a lock nothing is trimmed, and `store` writes nothing either.
        with suppress(OSError, NotImplementedError), _lock():
            _write_total(_trim(self.limit_bytes))

    def entry(self, key: object) -> Path:
        """The cache file of a sample, by the hash of ``repr(key)``."""
        name = hashlib.blake2b(repr(key).encode(), digest_size=16).hexdigest()
        return cache_folder("samples") / name[:2] / f"{name}.npz"

    def load(self, entry: Path, path: Path) -> Sample | None:
        """The cached sample of the clip ``path``; None if it is missing or damaged."""
        try:
            sample = _read(entry, path)
        except OSError:
            return None
        except (ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error):
            with suppress(OSError):
                entry.unlink()  # damaged; so that it is written again
            return None
        mark_used(entry)
        return sample

    def store(self, entry: Path, sample: Sample) -> bool:
        """Write the sample if there is room for it; return whether it is in the cache.

        All processes of all runs share the room.
        """
        if entry.exists():
            return True
        frame_bytes = 0 if sample.frames is None else sample.frames.nbytes
        if not self._reserve(frame_bytes + sample.joints.nbytes + HEADER_BYTES):
            return False
        try:
            _write(entry, sample)
        except PevlError:  # a full disk is no error: the clip is decoded again
            return False
        return True

    def _reserve(self, size: int) -> bool:
        """Whether ``size`` more bytes fit into the limit; if so, they count as written."""
        if not self._writable or size > self.limit_bytes:
            return False
        try:
            with _lock():
                total = _read_total()
                if total + size > self.limit_bytes:
                    return False
                _write_total(total + size)
        except (OSError, NotImplementedError):  # a read-only folder, or a disk without locks
            self._writable = False
        return self._writable

    def reason(self, entry: Path) -> str | None:
        """The reason why a clip cannot be read; "" if it is readable, None if not checked yet."""
        if entry.exists():
            return ""
        verdict = entry.with_suffix(".txt")
        return verdict.read_text(encoding="utf-8") if verdict.exists() else None

    def store_reason(self, entry: Path, reason: str) -> None:
        """Note why a clip cannot be read; "": it is readable."""
        verdict = entry.with_suffix(".txt")
        with suppress(PevlError), atomic_write(verdict) as temporary:
            temporary.write_text(reason, encoding="utf-8")


def _lock() -> FileLock:
    """A lock of the file with the cache's size. OSError when it cannot be had."""
    folder = cache_folder("samples")
    folder.mkdir(parents=True, exist_ok=True)
    return FileLock(folder / "size.lock", timeout=LOCK_S)


def _read_total() -> int:
    """The bytes of all samples, also of those that are being written; the lock must be held."""
    try:
        return int((cache_folder("samples") / "size").read_text())
    except (OSError, ValueError):  # no run has counted them yet
        return trim_folder(cache_folder("samples"), SAMPLES, float("inf"))


def _write_total(total: int) -> None:
    (cache_folder("samples") / "size").write_text(str(total))


def _trim(limit_bytes: float) -> int:
    """Remove the least recently used samples, as in `make_room`; return the remaining bytes."""
    folder = cache_folder("samples")
    total = trim_folder(folder, SAMPLES, limit_bytes)
    if total > FULL * limit_bytes:
        total = trim_folder(folder, SAMPLES, KEPT * limit_bytes, unused_s=IN_USE_S)
    return total


def _read(entry: Path, path: Path) -> Sample:
    with np.load(entry, allow_pickle=False) as arrays:
        frames, box, size = arrays["frames"], arrays["box"], arrays["size"]
        return Sample(
            path=path,
            frames=frames if frames.size else None,
            joints=arrays["joints"],
            size=(int(size[0]), int(size[1])),
            upright=bool(arrays["upright"]),
            side_px=float(arrays["side_px"]),
            start_s=float(arrays["start_s"]),
            end_s=float(arrays["end_s"]),
            seen=int(arrays["seen"]),
            people=int(arrays["people"]),
            box=box.tolist() if len(box) else None,
            warnings=tuple(arrays["warnings"].tolist()),
        )


def _write(entry: Path, sample: Sample) -> None:
    arrays = {k: v for k, v in vars(sample).items() if k != "path"}
    arrays["box"] = np.array(sample.box or [])
    arrays["frames"] = np.zeros(0, np.uint8) if sample.frames is None else sample.frames
    arrays["warnings"] = np.array(sample.warnings, dtype=np.str_)
    with atomic_write(entry) as temporary, temporary.open("wb") as file:
        np.savez(file, **arrays)
