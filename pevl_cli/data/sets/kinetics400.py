"""Kinetics-400: 400 actions, clips of ten seconds.

Official layout: `train.csv`, `val.csv` (also `validate.csv`) and `test.csv` with the columns
label, youtube_id, time_start, time_end and split; clips `<youtube_id>_<start>_<end>.mp4`, both with
six digits, in class folders. Published results use val. Source: cvdfoundation on GitHub.
"""

from __future__ import annotations

import csv

from pevl_cli.data.manifest import Item, Manifest
from pevl_cli.data.sets.disk import Disk
from pevl_cli.errors import PevlError
from pevl_cli.labels import bundled_labels

LISTS = {
    "train": ("train.csv", "kinetics_train.csv", "kinetics400_train.csv"),
    "val": ("val.csv", "validate.csv", "kinetics_val.csv", "kinetics400_val.csv"),
}

NO_SPAN: tuple[float | None, float | None] = (None, None)


def read_kinetics400(disk: Disk) -> Manifest:
    """The clips of both lists; instead of a missing clip, the part of its video if on disk.

    PevlError for lists that are missing or in another format.
    """
    labels = bundled_labels("kinetics400")
    known = {_normalise(name): name for name in labels.names}
    items = []
    for split, names in LISTS.items():
        file = disk.require(*names)
        rows = csv.DictReader(disk.lines(file))
        absent = {"label", "youtube_id", "time_start", "time_end"} - set(rows.fieldnames or ())
        if absent:
            raise PevlError(f"{file}: line 1 has no column {', '.join(sorted(absent))}.")
        try:
            for row in rows:
                label = known.get(_normalise(row["label"]))
                if label is None:
                    raise ValueError(f"'{row['label']}' is none of the 400 labels")
                start_s, end_s = float(row["time_start"]), float(row["time_end"])
                video_id = row["youtube_id"]
                name = f"{video_id}_{int(start_s):06d}_{int(end_s):06d}"
                clip, span = disk.video(name), NO_SPAN
                if clip is None and (whole := disk.video(video_id)) is not None:
                    clip, span = whole, (start_s, end_s)
                path = clip or disk.root / split / label / f"{name}.mp4"
                items.append(Item(path, label, split, video_id, *span, name, clip is not None))
        except (AttributeError, ValueError, TypeError, csv.Error) as error:
            raise PevlError(f"{file} line {rows.line_num}: {error}.") from error
    return Manifest(disk.root, tuple(items), labels, name="kinetics400", published_split="val")


def _normalise(name: str) -> str:
    """A label in lower case, without the underscores and quotes that some lists have."""
    return name.strip().strip('"').replace("_", " ").lower()
