"""Pickles of poses by PYSKL and MMAction2 as a data set: clips without videos."""

from __future__ import annotations

from pathlib import Path

from pevl_cli.data.manifest import SPLIT_NAMES, Item, Manifest, hold_out
from pevl_cli.errors import PevlError
from pevl_cli.labels import LabelSet, read_labels
from pevl_cli.pose.pickles import read_pickle


def read_pyskl(
    path: Path,
    labels: str | None = None,
    fold: str | None = None,
    seed: int = 0,
    default_labels: LabelSet | None = None,
) -> Manifest:
    """The clips of a pickle with its splits; without splits, ``seed`` chooses validation clips.

    The labels of a pickle are numbers. Their names come from the first of: ``labels`` (a label file
    or a bundled set); a label file in the pickle's folder, such as gym99.txt for gym99_hrnet.pkl;
    ``default_labels``. ``fold`` chooses among several splits: "1" of train1 and test1, "xsub" of
    xsub_train and xsub_val.

    PevlError for a pickle that cannot be read, labels without names, and an unknown fold.
    """
    annotations, splits = read_pickle(path)
    source = labels or _label_file_beside(path)
    warnings = []
    if source is not None:
        named = read_labels(source)
    elif default_labels is not None:
        named, source = default_labels, "the checkpoint"
    else:
        raise PevlError(
            f"{path}: its labels are numbers; hint: name them with --labels FILE, one per line in "
            "the order of the numbers, or a bundled set such as gym99."
        )
    if labels is None:
        warnings.append(f"labels are numbers: their names come from {source}")
    split_of = _splits(path, splits, fold)
    items, unsplit = [], 0
    for annotation in annotations:
        name = str(annotation["frame_dir"])
        number = annotation.get("label")
        try:
            label = int(number)  # type: ignore[arg-type]
        except (TypeError, ValueError, OverflowError):
            label = -1
        if not 0 <= label < len(named):
            raise PevlError(
                f"{path}: '{name}' has label {number}, and {source} names {len(named)} labels, "
                f"0 to {len(named) - 1}."
            )
        split = split_of.get(name, "")
        unsplit += bool(split_of) and not split
        if split or not split_of:
            items.append(Item(path, named.names[label], split, name=name, on_disk=False))
    if not items:
        raise PevlError(f"{path}: has no clips.")
    if unsplit:
        warnings.append(f"{unsplit} of {len(annotations)} clips are in no split and are not used")
    split_notes: tuple[str, ...] = ()
    if not split_of:
        items = hold_out(items, seed)
        held = sum(item.split == "val" for item in items)
        split_notes = (f"no split given: {held} of {len(items)} clips are held out for validation",)
    return Manifest(
        *(path, tuple(items), named, tuple(warnings), path.stem),
        poses=path,
        split_notes=split_notes,
    )


def _label_file_beside(path: Path) -> str | None:
    """The label file beside the pickle with the longest common beginning of the name."""
    files = [f for f in path.parent.glob("*.txt") if path.stem.startswith(f.stem)]
    return str(max(files, key=lambda f: len(f.stem))) if files else None


def _splits(path: Path, splits: dict[str, list[str]], fold: str | None) -> dict[str, str]:
    """Clip name -> one of SPLITS. PevlError for several folds when none is chosen."""
    chosen: dict[str, str] = {}  # name of a split in the pickle -> one of SPLITS
    folds = set()
    for name in splits:
        plain = name.lower()
        for word in sorted(SPLIT_NAMES, key=len, reverse=True):
            if word in plain:
                rest = plain.replace(word, "", 1).strip("_-")
                folds.add(rest)
                if fold is None or rest == fold.lower():
                    chosen[name] = SPLIT_NAMES[word]
                break
    if len(folds) > 1 and fold is None:
        known = ", ".join(sorted(f or "(without a name)" for f in folds))
        raise PevlError(f"{path}: has several splits: {known}; choose one with --fold.")
    if splits and not chosen:
        known = ", ".join(splits)
        raise PevlError(f"{path}: none of its splits ({known}) is a fold '{fold or ''}'.")
    split_of: dict[str, str] = {}
    for name, split in chosen.items():
        for clip in splits[name]:
            if split_of.setdefault(clip, split) != split:
                raise PevlError(f"{path}: '{clip}' is in split {split_of[clip]} and in {split}.")
    return split_of
