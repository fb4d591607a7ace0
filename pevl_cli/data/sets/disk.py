"""Find the files of a data set's folder by name: videos and lists of clips."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pevl_cli.errors import PevlError
from pevl_cli.media.video import VIDEO_SUFFIXES


class Disk:
    """The names of all files below a folder, read once. PevlError if the folder does not exist."""

    def __init__(self, root: str | Path) -> None:
        self.root = Path(root)
        if not self.root.is_dir():
            raise PevlError(f"{self.root}: no such folder; hint: --root is the data set's folder.")
        self._videos: dict[str, list[Path]] = {}
        self._files: dict[str, Path] = {}
        walked: set[tuple[int, int]] = set()
        for folder, inner, files in os.walk(self.root, followlinks=True):
            stat = os.stat(folder)
            if (stat.st_dev, stat.st_ino) in walked:  # a link to a folder that was already read
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
        """The video with this name in any folder, with any suffix; None if missing.

        Upper and lower case are equal. Of several videos (RGB, optical flow), the one below a
        folder named ``folder`` is returned.
        """
        paths = self._videos.get(stem.lower(), [])
        return next((path for path in paths if folder in path.parts), paths[0] if paths else None)

    def videos(self) -> Iterator[Path]:
        """The paths of all videos."""
        return (path for paths in self._videos.values() for path in paths)

    def file(self, *names: str) -> Path | None:
        """The first of these files that exists; None if none exists.

        Upper and lower case are equal.
        """
        return next((self._files[n.lower()] for n in names if n.lower() in self._files), None)

    def files(self, suffix: str) -> list[Path]:
        """All files except videos with a suffix such as ".json"."""
        return [path for path in self._files.values() if path.suffix.lower() == suffix]

    def require(self, *names: str) -> Path:
        """As `file`; PevlError if none of the files exists."""
        path = self.file(*names)
        if path is None:
            others = f" (or {', '.join(names[1:])})" if names[1:] else ""
            raise PevlError(
                f"{self.root}: the official list {names[0]}{others} is not in this folder; hint: "
                "download it from the data set's website into this folder."
            )
        return path

    def lines(self, path: Path) -> list[str]:
        """The non-empty lines of a file. PevlError when it is not UTF-8 text."""
        return [line.strip() for line in _text(path).splitlines() if line.strip()]

    def json(self, path: Path) -> Any:
        """The content of a JSON file. PevlError when it cannot be read."""
        try:
            return json.loads(_text(path))
        except (ValueError, RecursionError) as error:
            raise PevlError(f"{path}: cannot be read as JSON ({error}).") from error


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise PevlError(f"{path}: cannot be read as UTF-8 text ({error}).") from error
