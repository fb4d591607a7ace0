"""PYSKL and MMAction2 pickles of poses as a data set: clips without videos."""

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
    usual: LabelSet | None = None,
) -> Manifest:
    """A pickle's clips, with the splits that it names.

    Its labels are numbers: ``labels`` names them in that order (a label file, a bundled set), else
    a label file beside the pickle whose name the pickle's begins with, else ``usual``. ``fold``
    chooses among several splits: "1" of train1 and test1, "xsub" of xsub_train and xsub_val.
    """
    annotations, splits = read_pickle(path)
    source = labels or _beside(path)
    warnings = []
    if source is not None:
        named = read_labels(source)
    elif usual is not None:
        named, source = usual, "the checkpoint"
    else:
        raise PevlError(
            f"{path}: its labels are numbers; name them with --labels FILE, one a line in the "
            "order of the numbers, or a bundled set such as gym99."
        )
    if labels is None:
        warnings.append(f"labels are numbers: they are named by {source}")
    split_of = _splits(path, splits, fold)
    items, unsplit = [], 0
    for annotation in annotations:
        name = str(annotation["frame_dir"])
        given = annotation.get("label")
        try:
            label = int(given)  # type: ignore[arg-type]
        except (TypeError, ValueError, OverflowError):
            label = -1
        if not 0 <= label < len(named):
            raise PevlError(
                f"{path}: '{name}' has label {given}, and {source} names {len(named)} labels, "
                f"0 to {len(named) - 1}."
            )
        split = split_of.get(name, "")
        unsplit += bool(split_of) and not split
        if split or not split_of:
            items.append(Item(path, named.names[label], split, name=name, on_disk=False))
    if not items:
        raise PevlError(f"{path}: there is no clip in it.")
    if unsplit:
        warnings.append(f"{unsplit} of {len(annotations)} clips are in no split and are not used")
    drawn: tuple[str, ...] = ()
    if not split_of:
        items = hold_out(items, seed)
        held = sum(item.split == "val" for item in items)
        drawn = (f"no split given: held out {held} of {len(items)} clips to validate",)
    return Manifest(
        *(path, tuple(items), named, tuple(warnings), path.stem),
        poses=path,
        drawn=drawn,
    )


def _beside(path: Path) -> str | None:
    """The label file in the same folder that has the longest part of the pickle's name."""
    found = [f for f in path.parent.glob("*.txt") if path.stem.startswith(f.stem)]
    return str(max(found, key=lambda f: len(f.stem))) if found else None


def _splits(path: Path, splits: dict[str, list[str]], fold: str | None) -> dict[str, str]:
    """Clip name -> split."""
    chosen: dict[str, str] = {}  # split's name in the pickle -> ours
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
    out: dict[str, str] = {}
    for name, ours in chosen.items():
        for clip in splits[name]:
            if out.setdefault(clip, ours) != ours:
                raise PevlError(f"{path}: '{clip}' is in split {out[clip]} and in {ours}.")
    return out
