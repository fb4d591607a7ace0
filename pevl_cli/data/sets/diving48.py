"""Diving48 (V2 labels): 48 dives, each clip a file.

Official layout: `rgb/<vid_name>.mp4`, `Diving48_V2_train.json`, `Diving48_V2_test.json` and
`Diving48_vocab.json`; names may begin with "-". Source: svcl.ucsd.edu/projects/resound.
"""

from __future__ import annotations

from pevl_cli.data.manifest import Item, Manifest
from pevl_cli.data.sets.disk import Disk
from pevl_cli.errors import PevlError
from pevl_cli.labels import bundled_labels

CLIPS = {"train": 15_027, "test": 1_970}


def read_diving48(disk: Disk) -> Manifest:
    """The clips of both lists. PevlError for lists that are missing or in another format."""
    labels = bundled_labels("diving48")
    vocabulary = disk.file("Diving48_vocab.json")
    if vocabulary is not None:
        try:
            official = ["+".join(parts) for parts in disk.json(vocabulary)]
        except TypeError as error:
            raise PevlError(f"{vocabulary}: not Diving48's list of labels.") from error
        for i, (name, other) in enumerate(zip(labels.names, official, strict=False)):
            if name != other:
                raise PevlError(
                    f"{vocabulary}: label {i} is '{other}', in pevl's label set it is '{name}'."
                )
    items = []
    for split in CLIPS:
        file = disk.require(f"Diving48_V2_{split}.json")
        try:
            for clip in disk.json(file):
                name, number = str(clip["vid_name"]), int(clip["label"])
                if number < 0:
                    raise ValueError(f"label {number}")
                label, video = labels.names[number], disk.video(name, "rgb")
                expected = disk.root / "rgb" / f"{name}.mp4"
                group = name.rpartition("_")[0]
                items.append(
                    Item(
                        video or expected, label, split, group, name=name, on_disk=video is not None
                    )
                )
        except (ValueError, KeyError, TypeError, IndexError) as error:
            raise PevlError(f"{file}: not Diving48's list of clips ({error}).") from error
    return Manifest(disk.root, tuple(items), labels, name="diving48", official_counts=CLIPS)
