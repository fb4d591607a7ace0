"""FineGym's Gym99 and Gym288: gymnastics elements, as clips or as parts of longer videos.

Official layout: `gym99_train_element_v1.0.txt` and `gym99_val_element.txt` name instances such as
`0LtLS9wROrk_E_002407_002435_A_0003_0005`; `finegym_annotation_info_v1.0.json` has their times.
Published results use the val list; there is no test list. Source: sdolivia.github.io.
"""

from __future__ import annotations

import re
from typing import Any

from pevl_cli.data.manifest import Item, Manifest
from pevl_cli.data.sets.disk import Disk
from pevl_cli.errors import PevlError
from pevl_cli.labels import bundled_labels

INSTANCE = re.compile(r"(?P<video>.{11})_(?P<event>E_(\d{6})_\d{6})_(?P<part>A_(\d{4})_(\d{4}))")
TRAIN_CLIPS = {("gym99", "v1.0"): 20_484, ("gym99", "v1.1"): 26_320}
TRAIN_CLIPS |= {("gym288", "v1.0"): 22_671, ("gym288", "v1.1"): 29_334}
VAL_CLIPS = {"gym99": 8_521, "gym288": 9_646}


def read_finegym(disk: Disk, which: str, version: str) -> Manifest:
    """The instances of both lists: a clip file each, or a part of an event's video or whole video.

    ``which``: "gym99" or "gym288"; ``version``: "v1.0" or "v1.1". PevlError for lists or times that
    are missing or in another format.
    """
    labels = bundled_labels(which)
    lists = {
        "train": disk.require(f"{which}_train_element_{version}.txt", f"{which}_train.txt"),
        "val": disk.require(f"{which}_val_element.txt", f"{which}_val.txt"),
    }
    info = disk.file(f"finegym_annotation_info_{version}.json")
    times = disk.json(info) if info is not None else {}
    items, rounded = [], 0
    for split, file in lists.items():
        for line, text in enumerate(disk.lines(file), 1):
            name, _, label = text.rpartition(" ")
            name = name.removesuffix(".mp4")
            match = INSTANCE.fullmatch(name)
            if match is None or not label.isdigit() or int(label) >= len(labels):
                raise PevlError(
                    f"{file} line {line}: '{text}' is not an instance and a label from 0 "
                    f"to {len(labels) - 1}."
                )
            try:
                item, exact = _find(disk, match, times)
            except (KeyError, TypeError, IndexError, ValueError, AttributeError) as error:
                raise PevlError(f"{info}: has no usable times for {name} ({error!r}).") from error
            rounded += not exact
            items.append(
                Item(
                    item.path,
                    labels.names[int(label)],
                    split,
                    match["video"],
                    item.start_s,
                    item.end_s,
                    name,
                    item.on_disk,
                )
            )
    warnings = []
    if rounded:
        warnings.append(
            f"{rounded} clips are cut at whole seconds, because "
            f"finegym_annotation_info_{version}.json "
            "with the exact times is missing"
        )
    official = {"train": TRAIN_CLIPS[which, version], "val": VAL_CLIPS[which]}
    return Manifest(
        disk.root,
        tuple(items),
        labels,
        tuple(warnings),
        which,
        published_split="val",
        official_counts=official,
    )


def _find(disk: Disk, match: re.Match[str], times: dict[str, Any]) -> tuple[Item, bool]:
    """The file and times of an instance, and whether the times are exact."""
    clip = disk.video(match[0], "subactions")
    if clip is not None:
        return Item(clip, ""), True
    event = times.get(match["video"], {}).get(match["event"], {})
    part = (event.get("segments") or {}).get(match["part"])
    if part is None:  # the name gives whole seconds
        event_s, (start_s, end_s) = float(match[3]), (float(match[5]), float(match[6]) + 1)
    else:
        event_s = float(event["timestamps"][0][0])
        # A vault's three stages are one element.
        start_s, end_s = float(part["timestamps"][0][0]), float(part["timestamps"][-1][1])
    for name, offset_s in ((f"{match['video']}_{match['event']}", 0.0), (match["video"], event_s)):
        video = disk.video(name, "videos")
        if video is not None:
            span = start_s + offset_s, end_s + offset_s
            return Item(video, "", start_s=span[0], end_s=span[1]), part is not None
    return Item(disk.root / "subactions" / f"{match[0]}.mp4", "", on_disk=False), True
