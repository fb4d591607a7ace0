"""The cache folder and its size, hashes of files, and atomic writing."""

from __future__ import annotations

import hashlib
import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import lru_cache
from pathlib import Path

from platformdirs import user_cache_path

from pevl_cli.errors import PevlError

CACHE_VARIABLE = "PEVL_CACHE"


def cache_folder(kind: str) -> Path:
    """The folder for one kind of cached file, such as "poses".

    The environment variable ``PEVL_CACHE`` sets another root folder of the cache.
    """
    root = os.environ.get(CACHE_VARIABLE)
    return (Path(root) if root else user_cache_path("pevl", appauthor=False)) / kind


@lru_cache(maxsize=65536)
def _digest(path: Path, size: int, modified_ns: int) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).hexdigest()


def file_digest(path: str | Path) -> str:
    """Hash of a file's content: BLAKE2b, 32 hexadecimal digits.

    An unchanged file is read once per process. OSError when the file cannot be read.
    """
    path = Path(path)
    stat = path.stat()
    return _digest(path, stat.st_size, stat.st_mtime_ns)


@contextmanager
def atomic_write(target: Path) -> Iterator[Path]:
    """A temporary path beside ``target``, renamed to ``target`` when the block ends without error.

    So no process ever reads a half-written file. A device or a pipe, such as /dev/stdout, cannot be
    replaced: the path is ``target`` itself. PevlError when the target cannot be written.
    """
    if target.exists() and not (target.is_file() or target.is_dir()):
        try:
            yield target
        except OSError as error:
            raise PevlError(f"{target}: cannot be written ({error.strerror or error}).") from error
        return
    # Unique for this thread: two threads may write the same file at once.
    writer = f"{os.getpid()}-{threading.get_ident()}"
    temporary = target.with_name(f".{target.name}.{writer}.tmp")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        temporary.replace(target)
    except OSError as error:
        raise PevlError(f"{target}: cannot be written ({error.strerror or error}).") from error
    finally:
        with suppress(OSError):  # the folder may not exist
            temporary.unlink(missing_ok=True)


def mark_used(file: Path) -> None:
    """Mark a cached file as used now, for `trim_folder`; a read-only cache cannot be marked."""
    with suppress(OSError):
        os.utime(file)


def trim_folder(folder: Path, pattern: str, limit_bytes: float, unused_s: float = 0.0) -> int:
    """Remove the least recently used files of a cache folder until ``limit_bytes``.

    ``pattern``: of these files' names, as in `Path.glob`. A file that was used within the last
    ``unused_s`` seconds stays, and so does one that cannot be removed. Returns the bytes of the
    files that stay. Several processes may trim a folder at once.
    """
    files = []
    for file in folder.glob(pattern):
        with suppress(OSError):  # removed by another process
            stat = file.stat()
            files.append((stat.st_mtime, stat.st_size, file))
    total = sum(size for _, size, _ in files)
    for used_s, size, file in sorted(files):
        if total <= limit_bytes or used_s > time.time() - unused_s:
            break
        with suppress(OSError):
            file.unlink(missing_ok=True)
            total -= size
    return total
