"""The data set that the settings name, read into a `Manifest`."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Literal

from pydantic import Field

from pevl_cli.choices import HoldOut
from pevl_cli.data.augmentation import Section
from pevl_cli.data.manifest import Manifest, read_manifest, with_labels
from pevl_cli.data.sets.named import ALIASES, READERS, known_name, read_named
from pevl_cli.data.sets.pyskl import read_pyskl
from pevl_cli.errors import UsageError
from pevl_cli.labels import LabelSet, read_labels


class DataSettings(Section):
    """The data set, its splits, and how its clips are read."""

    dataset: Path  # a folder, a CSV, a pickle of poses, or with root the name of a published set
    root: Path | None = None  # folder of the named set
    labels: str | None = None  # label file: texts, phrasings and prompt of the set's labels
    poses: Path | None = None  # stored poses: of `pevl pose --store`, a pickle, a folder of JSON
    layout: str | None = None  # skeleton of `poses`, where the number of joints does not decide it
    fold: str | None = None  # of a pickle with several splits
    all_clips: bool = False  # train on the val split, too, and validate nothing
    # Which clips to validate on where the data set names no split: whole groups, or random ones.
    hold_out: HoldOut = "group"
    shots: int | None = Field(None, ge=1)  # training clips of each class, drawn by seed; None = all
    strict: bool = False  # an unreadable clip ends the run
    # Before training: "decode" each clip, or only "open" it; "auto" decodes up to 2,000 clips.
    check: Literal["auto", "decode", "open"] = "auto"
    workers: int | None = Field(None, ge=0)  # loader processes; None = by the machine
    cache_gb: float = Field(20.0, ge=0)  # of decoded clips on disk, at most


def read_data(data: DataSettings, seed: int, default_labels: LabelSet | None = None) -> Manifest:
    """Read the data set, with the texts of the label file if one is named.

    ``seed`` draws the held-out clips where the set names no split. ``default_labels`` name the
    labels of a pickle, which are numbers, where no label file does. PevlError when the set cannot
    be read; UsageError for a name without a root, or the reverse.
    """
    named = known_name(data.dataset)
    if data.root is not None:
        if named is None:
            known = ", ".join((*READERS, *ALIASES))
            raise UsageError(f"--root needs the name of a published data set: {known}.")
        manifest = read_named(named, data.root)
    elif named is not None and not data.dataset.exists():
        raise UsageError(f"--dataset {data.dataset} needs --root DIR, the folder of the data set.")
    elif data.dataset.suffix in {".pkl", ".pickle"}:
        manifest = read_pyskl(data.dataset, data.labels, data.fold, seed, default_labels)
    else:
        manifest = read_manifest(data.dataset, seed, data.hold_out)
    if data.labels is not None and manifest.poses != data.dataset:
        manifest = with_labels(manifest, read_labels(data.labels), data.labels)
    if data.all_clips:
        items = [replace(i, split="train" if i.split == "val" else i.split) for i in manifest.items]
        official = dict(manifest.official_counts)
        if "val" in official:
            official["train"] += official.pop("val")
        manifest = replace(manifest, items=tuple(items), official_counts=official)
    return manifest
