"""What lies below a data set's folder: videos by their names, and lists by theirs."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pevl_cli.errors import PevlError
from pevl_cli.media.video import VIDEO_SUFFIXES


class Disk:
    """One walk through a folder; after that nothing is looked up on disk again."""

    def __init__(self, root: str | Path) -> None:
        self.root = Path(root)
        if not self.root.is_dir():
            raise PevlError(f"{self.root}: there is no such folder; --root names the data set's.")
        self._videos: dict[str, list[Path]] = {}
        self._files: dict[str, Path] = {}
        walked: set[tuple[int, int]] = set()
        for folder, inner, files in os.walk(self.root, followlinks=True):
            stat = os.stat(folder)
            if (stat.st_dev, stat.st_ino) in walked:  # a link that leads back
                inner.clear()
                continue
            walked.add((stat.st_dev, stat.st_ino))
            inner[:] = sorted(name for name in inner if not name.startswith("."))
            for name in sorted(files):
                stem, suffix = os.path.splitext(name)
                if suffix.lower() in VIDEO_SUFFIXES:
                    self._videos.setdefault(stem.lower(), []).append(Path(folder, name))
                else:
                    self._files.setdefault(name.lower(), Path(folder, name))

    def video(self, stem: str, folder: str = "") -> Path | None:
        """The video of this name, whatever its ending, place and case.

        Of several (pictures, optical flow) that below a folder called ``folder`` is the one.
        """
        found = self._videos.get(stem.lower(), [])
        return next((path for path in found if folder in path.parts), found[0] if found else None)

    def videos(self) -> Iterator[Path]:
        return (path for found in self._videos.values() for path in found)

    def file(self, *names: str) -> Path | None:
        """The first of these files that is there."""
        return next((self._files[n.lower()] for n in names if n.lower() in self._files), None)

    def files(self, suffix: str) -> list[Path]:
        return [path for path in self._files.values() if path.suffix.lower() == suffix]

    def need(self, *names: str) -> Path:
        """As `file`; PevlError says which one is needed."""
        found = self.file(*names)
        if found is None:
            others = f" (or {', '.join(names[1:])})" if names[1:] else ""
            raise PevlError(
                f"{self.root}: the official list {names[0]}{others} is not in this folder; "
                "download it from the data set's page and put it there."
            )
        return found

    def lines(self, path: Path) -> list[str]:
        """A list's lines that hold anything. PevlError when it cannot be read as text."""
        return [line.strip() for line in _text(path).splitlines() if line.strip()]

    def json(self, path: Path) -> Any:
        try:
            return json.loads(_text(path))
        except (ValueError, RecursionError) as error:
            raise PevlError(f"{path}: cannot be read as JSON ({error}).") from error


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise PevlError(f"{path}: cannot be read as UTF-8 text ({error}).") from error
