"""TODO."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Literal

from pydantic import Field

from pevl_cli.choices import HoldOut
from pevl_cli.data.augmentation import Section
from pevl_cli.data.manifest import Manifest, read_manifest, with_labels
from pevl_cli.data.sets.named import OTHER_NAMES, READERS, known_name, read_named
from pevl_cli.data.sets.pyskl import read_pyskl
from pevl_cli.errors import UsageError
from pevl_cli.labels import LabelSet, read_labels


class DataSettings(Section):
    """Which clips are trained on."""

    dataset: Path  # a folder, a CSV, a pickle of poses, or with root the name of a known set
    root: Path | None = None  # where the named set lies
    labels: str | None = None  # label file with texts, phrasings and the prompt of its labels
    poses: Path | None = None  # found before: a store of `pevl pose`, a pickle, a folder of JSON
    layout: str | None = None  # what the joints of `poses` are, where their number does not tell
    fold: str | None = None  # of a pickle with several splits
    all_clips: bool = False  # the val split is trained on too, and nothing is validated
    # Where the manifest names no split: whole groups are held out, or clips drawn at random.
    hold_out: HoldOut = "group"
    shots: int | None = Field(None, ge=1)  # so many training clips of each class, drawn by seed
    strict: bool = False  # an unreadable clip ends the run
    # Before training: "decode" each clip, or only "open" it; "auto" decodes up to 2,000 clips.
    check: Literal["auto", "decode", "open"] = "auto"
    workers: int | None = Field(None, ge=0)  # loader processes; None = by the machine
    cache_gb: float = Field(20.0, ge=0)  # decoded clips kept on disk at most


def read_data(data: DataSettings, seed: int, usual: LabelSet | None = None) -> Manifest:
    """The data set that is named, with the texts of its label file if there is one.

    ``usual`` labels are those of numbers that nobody names.
    """
    named = known_name(data.dataset)
    if data.root is not None:
        if named is None:
            known = ", ".join((*READERS, *OTHER_NAMES))
            raise UsageError(f"--root goes with the name of a data set: {known}.")
        manifest = read_named(named, data.root)
    elif named is not None and not data.dataset.exists():
        raise UsageError(f"--dataset {data.dataset} needs --root DIR, the folder it lies in.")
    elif data.dataset.suffix in {".pkl", ".pickle"}:
        manifest = read_pyskl(data.dataset, data.labels, data.fold, seed, usual)
    else:
        manifest = read_manifest(data.dataset, seed, data.hold_out)
    if data.labels is not None and manifest.poses != data.dataset:
        manifest = with_labels(manifest, read_labels(data.labels), data.labels)
    if data.all_clips:
        items = [replace(i, split="train" if i.split == "val" else i.split) for i in manifest.items]
        official = dict(manifest.official)
        if "val" in official:
            official["train"] += official.pop("val")
        manifest = replace(manifest, items=tuple(items), official=official)
    return manifest
