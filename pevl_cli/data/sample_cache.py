"""The disk cache of decoded clips, with a size limit, and of unreadable clips.

Own code in place of a library: existing disk caches pickle their values, which is unsafe to load,
and keep an index in SQLite, which fails on the network disks of GPU servers.
"""

from __future__ import annotations

import hashlib
import os
import zipfile
import zlib
from contextlib import suppress
from pathlib import Path

import numpy as np

from pevl_cli.cache import atomic_write, cache_folder
from pevl_cli.data.samples import Sample
from pevl_cli.errors import PevlError

HEADER_BYTES = 4096  # of a cache file, at most, in addition to its arrays


class SampleCache:
    """Samples by a key; the key must contain everything that determines a sample.

    A .txt file beside or instead of the .npz file gives the reason why a clip cannot be read. An
    empty .txt file: the clip is readable, but the cache was full.
    """

    def __init__(self, limit_bytes: float) -> None:
        self.limit_bytes = limit_bytes
        self._free_bytes = 0.0  # bytes that this process may still write

    def begin_writing(self, processes: int = 1) -> None:
        """Trim the cache; each of ``processes`` may write an equal share of the free bytes."""
        self._free_bytes = (self.limit_bytes - trim_cache(self.limit_bytes)) / processes

    def entry(self, key: object) -> Path:
        """The cache file of a sample, by the hash of ``repr(key)``."""
        name = hashlib.blake2b(repr(key).encode(), digest_size=16).hexdigest()
        return cache_folder("samples") / name[:2] / f"{name}.npz"

    def load(self, entry: Path, path: Path) -> Sample | None:
        """The cached sample of the clip ``path``; None if it is missing or damaged."""
        try:
            sample = _read(entry, path)
            os.utime(entry)  # mark as used; the least recently used files are removed first
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error):
            return None
        return sample

    def store(self, entry: Path, sample: Sample) -> None:
        """Write the sample; if the cache is full, only note that the clip is readable."""
        frame_bytes = 0 if sample.frames is None else sample.frames.nbytes
        size = frame_bytes + sample.joints.nbytes + HEADER_BYTES
        if size <= self._free_bytes:
            self._free_bytes -= size
            with suppress(PevlError):  # a full disk is no error: the clip is decoded again
                _write(entry, sample)
                return
        self.store_reason(entry, "")

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


def trim_cache(limit_bytes: float) -> int:
    """Remove the least recently used samples until ``limit_bytes``; return the remaining bytes."""
    entries = []
    for entry in cache_folder("samples").glob("*/*.npz"):
        with suppress(OSError):  # removed by another run
            stat = entry.stat()
            entries.append((stat.st_mtime, stat.st_size, entry))
    total = sum(size for _, size, _ in entries)
    for _, size, entry in sorted(entries):
        if total <= limit_bytes:
            break
        entry.unlink(missing_ok=True)
        total -= size
    return total


def _read(entry: Path, path: Path) -> Sample:
    with np.load(entry, allow_pickle=False) as arrays:
        frames, box, size = arrays["frames"], arrays["box"], arrays["size"]
        return Sample(
            path=path,
            frames=frames if frames.size else None,
            joints=arrays["joints"],
            size=(int(size[0]), int(size[1])),
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
