"""The files of a data set's folder by name: videos, and lists of clips."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pevl_cli.errors import PevlError
from pevl_cli.media.video import VIDEO_SUFFIXES


class Disk:
    """Names of all files below a folder, read once. PevlError if there is no such folder."""

    def __init__(self, root: str | Path) -> None:
        self.root = Path(root)
        if not self.root.is_dir():
            raise PevlError(f"{self.root}: no such folder; hint: --root is the data set's folder.")
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
        """The video of this name, in any folder, with any ending, in any case; None if missing.

        Of several (RGB, optical flow) the one below a folder named ``folder`` is taken.
        """
        paths = self._videos.get(stem.lower(), [])
        return next((path for path in paths if folder in path.parts), paths[0] if paths else None)

    def videos(self) -> Iterator[Path]:
        """All videos."""
        return (path for paths in self._videos.values() for path in paths)

    def file(self, *names: str) -> Path | None:
        """The first of these files that exists, by name in any case; None if none does."""
        return next((self._files[n.lower()] for n in names if n.lower() in self._files), None)

    def files(self, suffix: str) -> list[Path]:
        """All other files with an ending, such as ".json"."""
        return [path for path in self._files.values() if path.suffix.lower() == suffix]

    def require(self, *names: str) -> Path:
        """As `file`, but PevlError if none exists."""
        path = self.file(*names)
        if path is None:
            others = f" (or {', '.join(names[1:])})" if names[1:] else ""
            raise PevlError(
                f"{self.root}: the official list {names[0]}{others} is not in this folder; hint: "
                "download it from the data set's page and put it there."
            )
        return path

    def lines(self, path: Path) -> list[str]:
        """The lines of a file that are not empty. PevlError when it is not UTF-8 text."""
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
