"""Files that can be made again: where they lie, how they are named and written."""

from __future__ import annotations

import hashlib
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import lru_cache
from pathlib import Path

from platformdirs import user_cache_path

from pevl_cli.errors import PevlError

CACHE_VARIABLE = "PEVL_CACHE"


def cache_folder(kind: str) -> Path:
    """The folder for one kind of cached file; ``PEVL_CACHE`` moves the whole cache."""
    root = os.environ.get(CACHE_VARIABLE)
    return (Path(root) if root else user_cache_path("pevl", appauthor=False)) / kind


@lru_cache(maxsize=65536)
def _digest(path: Path, size: int, modified_ns: int) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).hexdigest()


def file_digest(path: str | Path) -> str:
    """Hash of a file's content; a file that has not changed is read once a process."""
    path = Path(path)
    stat = path.stat()
    return _digest(path, stat.st_size, stat.st_mtime_ns)


@contextmanager
def write_aside(target: Path) -> Iterator[Path]:
    """A temporary path beside ``target`` that takes its place when the block ends well.

    Nobody ever sees a half-written file. PevlError when the folder cannot be written.
    """
    # Of this thread's own: two may make the same entry at once.
    own = f"{os.getpid()}-{threading.get_ident()}"
    temporary = target.with_name(f".{target.name}.{own}.tmp")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        temporary.replace(target)
    except OSError as error:
        raise PevlError(f"{target}: cannot be written ({error.strerror or error}).") from error
    finally:
        with suppress(OSError):  # a folder that could not be made holds nothing to remove
            temporary.unlink(missing_ok=True)
