"""Read the data set of the settings into a `Manifest`."""

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

    dataset: Path  # folder, CSV, pickle of poses; with root: name of a published set
    root: Path | None = None  # folder of the published set
    labels: str | None = None  # label file with texts, phrasings and prompt
    poses: Path | None = None  # stored poses: .npz, pickle, or folder of JSON files
    layout: str | None = None  # skeleton of `poses`; None = by the number of joints
    fold: str | None = None  # which split of a pickle with several splits
    all_clips: bool = False  # also train on the val split; no validation
    # Validation clips if the data set has no splits: whole groups, or random clips.
    hold_out: HoldOut = "group"
    shots: int | None = Field(None, ge=1)  # maximum number of training clips per class; None = all
    strict: bool = False  # an unreadable clip is an error
    # Check before training: "decode" or "open" each clip; "auto" decodes up to 2,000 clips.
    check: Literal["auto", "decode", "open"] = "auto"
    workers: int | None = Field(None, ge=0)  # loader processes; None: see `worker_count`
    # Views of each training clip that a frozen stem sees, once each; 0: a new view at each use.
    variations: int = Field(8, ge=0)
    cache_gb: float = Field(20.0, ge=0)  # limit of decoded clips on disk, GiB


def read_data(data: DataSettings, seed: int, default_labels: LabelSet | None = None) -> Manifest:
    """Read the data set, with the texts of the label file if there is one.

    ``seed`` chooses the validation clips if the set has no splits. ``default_labels``: names of the
    labels of a pickle, which are numbers, if there is no label file. PevlError when the set cannot
    be read; UsageError for a published set without a root, or a root without a published set.
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
