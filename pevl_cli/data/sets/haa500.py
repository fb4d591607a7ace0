"""HAA500: 500 actions with 20 clips each.

Official layout: one text file per class, whose lines are `youtube_url,start,end,camera_moving,
figures`, and clips named `<class>_<NNN>.mp4`; lines 1-16 are for training, 17 for validation,
18-20 for the test. Source: github.com/a6o/HAA500.
"""

from __future__ import annotations

import math
from urllib.parse import parse_qs, urlparse

from pevl_cli.data.manifest import Item, Manifest
from pevl_cli.data.sets.disk import Disk
from pevl_cli.errors import PevlError
from pevl_cli.labels import bundled_labels

CLIPS = {"train": 8_000, "val": 500, "test": 1_500}
CLIPS_PER_CLASS = 20

NO_SPAN: tuple[float | None, float | None] = (None, None)


def read_haa500(disk: Disk) -> Manifest:
    """The clips of all lists; instead of a missing clip, the part of its YouTube video if on disk.

    PevlError for a list in another format.
    """
    labels = bundled_labels("haa500")
    items = []
    for label in labels.names:
        file = disk.file(f"{label}.txt")
        lines = [] if file is None else disk.lines(file)
        for i in range(max(CLIPS_PER_CLASS, len(lines))):
            name = f"{label}_{i:03d}"
            split = "train" if i < 16 else "val" if i == 16 else "test"
            video, span, group = disk.video(name), NO_SPAN, ""
            if i < len(lines):
                cells = lines[i].split(",")
                try:
                    group, start_s, end_s = _video_id(cells[0]), float(cells[1]), float(cells[2])
                    if not 0 <= start_s < end_s < math.inf:
                        raise ValueError
                except (IndexError, ValueError) as error:
                    raise PevlError(
                        f"{file} line {i + 1}: youtube_url,start,end,... is needed."
                    ) from error
                if video is None and (whole := disk.video(group)) is not None:
                    video, span = whole, (start_s, end_s)
            expected = disk.root / "video" / label / f"{name}.mp4"
            items.append(
                Item(video or expected, label, split, group, *span, name, video is not None)
            )
    return Manifest(disk.root, tuple(items), labels, name="haa500", official_counts=CLIPS)


def _video_id(url: str) -> str:
    """The ID of `youtube.com/watch?v=ID`, `youtu.be/ID` or `ID`."""
    parts = urlparse(url.strip())
    return parse_qs(parts.query).get("v", [parts.path.rpartition("/")[2]])[0]
