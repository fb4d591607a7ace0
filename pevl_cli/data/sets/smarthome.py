"""Toyota Smarthome (trimmed): daily activities, by the protocols CS, CV1 and CV2.

Official layout: `mp4/<Class>_pPP_rRR_vVV_cCC.mp4` and skeletons `<same>_pose3d.json`. A name
gives class, subject and camera, which determine the split. Lists such as `train_CS.txt`, if they
exist, name clips that may be missing; their numbers are not used: they differ between sources.
Source: project.inria.fr/toyotasmarthome; Das and others, ICCV 2019.
"""

from __future__ import annotations

import os
import re
from dataclasses import replace
from pathlib import Path

from pevl_cli.data.manifest import Item, Manifest
from pevl_cli.data.sets.disk import Disk
from pevl_cli.errors import PevlError
from pevl_cli.labels import LabelSet, bundled_labels

CLIP = re.compile(r"(?P<label>.+)_p(?P<subject>\d+)_r\d+_v\d+_c(?P<camera>\d+)")
TRAIN_SUBJECTS = {3, 4, 6, 7, 9, 12, 13, 15, 17}
VAL_SUBJECTS = {19, 25}  # officially training subjects; published lists validate on them
TEST_SUBJECTS = {2, 10, 11, 14, 16, 18, 20}
CAMERAS = {  # protocol: camera -> split
    "CV1": {1: "train", 5: "val", 2: "test"},
    "CV2": {1: "train", 3: "train", 4: "train", 6: "train", 7: "train", 5: "val", 2: "test"},
}
CROSS_VIEW_LABELS = (
    *("Cutbread", "Drink.Frombottle", "Drink.Fromcan", "Drink.Fromcup", "Drink.Fromglass"),
    *("Eat.Attable", "Eat.Snack", "Enter", "Getup", "Leave", "Pour.Frombottle", "Pour.Fromcan"),
    *("Readbook", "Sitdown", "Takepills", "Uselaptop", "Usetablet", "Usetelephone", "Walk"),
)
CLIPS = {
    "CS": {"train": 8_761, "val": 1_831, "test": 5_372},
    "CV1": {},
    "CV2": {"train": 7_685, "val": 3_535, "test": 1_901},
}
LISTS = {"train": "train", "val": "validation", "test": "test"}


def read_smarthome(disk: Disk, protocol: str) -> Manifest:
    """The clips of a protocol, "CS", "CV1" or "CV2", from videos, skeletons and lists.

    PevlError when there are no clips, and for a list that contradicts the protocol.
    """
    labels = bundled_labels("smarthome")
    if protocol != "CS":
        labels = _only(labels, CROSS_VIEW_LABELS)
    skeletons = [file for file in disk.files(".json") if _clip(file) is not None]
    listed: dict[str, str] = {}
    for split, word in LISTS.items():
        file = disk.file(f"{word}_{protocol}.txt")
        for line in disk.lines(file) if file else ():
            listed[line.split()[0].removesuffix(".mp4")] = split
    on_disk = [path.stem for path in disk.videos() if CLIP.fullmatch(path.stem)]
    on_disk += [clip for file in skeletons if (clip := _clip(file)) is not None]
    items = []
    for name in dict.fromkeys((*listed, *sorted(on_disk))):
        match = CLIP.fullmatch(name)
        if match is None:
            raise PevlError(
                f"{disk.root}: '{name}' is not a clip's name such as Class_p02_r00_v02_c03."
            )
        split = protocol_split(protocol, int(match["subject"]), int(match["camera"]))
        if listed.get(name, split) != split:
            raise PevlError(
                f"{disk.root}: the list puts {name} into split {listed[name]}, protocol {protocol} "
                f"into {split or 'no split'}."
            )
        if not split or match["label"] not in labels.names:
            continue
        video = disk.video(name, "mp4")
        items.append(
            Item(
                video or disk.root / "mp4" / f"{name}.mp4",
                match["label"],
                split,
                f"p{match['subject']}",
                name=name,
                on_disk=video is not None,
            )
        )
    if not items:
        raise PevlError(
            f"{disk.root}: no clip of Toyota Smarthome is in this folder "
            "(names such as Walk_p02_r00_v02_c03.mp4)."
        )
    poses = Path(os.path.commonpath([f.parent for f in skeletons])) if skeletons else None
    return Manifest(
        disk.root,
        tuple(items),
        labels,
        name=f"smarthome-{protocol.lower()}",
        official_counts=CLIPS[protocol],
        poses=poses,
    )


def protocol_split(protocol: str, subject: int, camera: int) -> str:
    """The split of a clip by its subject and camera numbers; empty if the protocol excludes it."""
    if protocol != "CS":
        return CAMERAS[protocol].get(camera, "")
    splits = {"train": TRAIN_SUBJECTS, "val": VAL_SUBJECTS, "test": TEST_SUBJECTS}
    return next((split for split, subjects in splits.items() if subject in subjects), "")


def _clip(file: Path) -> str | None:
    """The name of the clip of a skeleton file; None for any other file."""
    stem = file.stem.removesuffix("_pose3d")
    return stem if CLIP.fullmatch(stem) else None


def _only(labels: LabelSet, names: tuple[str, ...]) -> LabelSet:
    chosen = [labels.names.index(name) for name in names]
    return replace(
        labels,
        names=names,
        texts=tuple(labels.texts[i] for i in chosen),
        others=tuple(labels.others[i] for i in chosen) if labels.others else (),
    )
