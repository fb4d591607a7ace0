"""What lies below a data set's folder: videos by their names, and lists by theirs."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from pevl_cli.errors import PevlError
from pevl_cli.video import VIDEO_SUFFIXES


class Disk:
    """One walk through a folder; after that nothing is looked up on disk again."""

    def __init__(self, root: str | Path) -> None:
        self.root = Path(root)
        if not self.root.is_dir():
            raise PevlError(f"{self.root}: there is no such folder; --root names the data set's.")
        self._videos: dict[str, Path] = {}
        self._files: dict[str, Path] = {}
        for folder, inner, files in os.walk(self.root, followlinks=True):
            inner[:] = sorted(name for name in inner if not name.startswith("."))
            for name in sorted(files):
                stem, suffix = os.path.splitext(name)
                if suffix.lower() in VIDEO_SUFFIXES:
                    self._videos.setdefault(stem.lower(), Path(folder, name))
                else:
                    self._files.setdefault(name.lower(), Path(folder, name))

    def video(self, stem: str) -> Path | None:
        """The video of this name, whatever its ending, folder and case."""
        return self._videos.get(stem.lower())

    def videos(self) -> Iterator[Path]:
        return iter(self._videos.values())

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
