"""Labelled clips and their splits: the data type of every data set; reads folders and CSV files."""

from __future__ import annotations

import csv
import io
import math
from collections import Counter, defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePath
from random import Random

from pevl_cli.cache import atomic_write
from pevl_cli.choices import HoldOut
from pevl_cli.errors import PevlError
from pevl_cli.labels import LabelSet
from pevl_cli.media.video import VIDEO_SUFFIXES

SPLITS = ("train", "val", "test")
COLUMNS = ("path", "label", "text", "group", "split", "start_s", "end_s")
# Accepted names of splits in folders and CSV files -> one of SPLITS.
SPLIT_NAMES = {
    "train": "train",
    "training": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "test": "test",
    "testing": "test",
}

FOLDER_MANIFEST = "manifest.csv"  # lists the clips of the folder that it is in


@dataclass(frozen=True)
class Item:
    """One labelled clip: a whole file, or the part of it from start_s to end_s."""

    path: Path
    label: str
    split: str = ""  # one of SPLITS; empty = none
    group: str = ""  # person, session or source video; belongs to one split; empty = none
    start_s: float | None = None  # None = the file's start
    end_s: float | None = None  # None = the file's end
    name: str = ""  # key of its stored poses: path inside the set, or official id
    on_disk: bool = True  # False: the video file is missing


@dataclass(frozen=True)
class Manifest:
    """A data set: its clips, labels and splits."""

    source: Path  # folder or file of the data set
    items: tuple[Item, ...]
    labels: LabelSet
    warnings: tuple[str, ...] = ()
    name: str = ""  # of a published data set; empty = none
    published_split: str = "test"  # split of the published results
    official_counts: Mapping[str, int] = field(
        default_factory=dict
    )  # split -> published number of clips
    poses: Path | None = None  # stored poses of the data set
    split_notes: tuple[str, ...] = ()  # how splits were chosen, if the set has none

    @property
    def title(self) -> str:
        """The name of a published data set, otherwise that of the folder, CSV or pickle."""
        if self.name:
            return self.name
        source = self.source.resolve()
        return source.parent.name if source.name == FOLDER_MANIFEST else source.stem

    @property
    def has_videos(self) -> bool:
        """Whether the video of any clip is on disk."""
        return any(item.on_disk for item in self.items)

    def in_split(self, split: str) -> list[Item]:
        """The clips of a split."""
        return [item for item in self.items if item.split == split]

    def incomplete(self, usable: Collection[Item], splits: Collection[str] = SPLITS) -> str:
        """The available part if only ``usable`` clips exist: "train 20,123 of 20,484 clips; ...".

        Empty if no clip is missing.
        """
        count = Counter(item.split for item in usable)
        parts = []
        for split in splits:
            total = self.official_counts.get(split, len(self.in_split(split)))
            if count[split] < total:
                parts.append(f"{split} {count[split]:,} of {total:,} clips")
        return "; ".join(parts)


def read_manifest(source: str | Path, seed: int = 0, by: HoldOut = "group") -> Manifest:
    """Read a folder of class folders, a CSV file, or a folder with a `manifest.csv` in it.

    If no clip has a split, about a fifth of each class is held out for validation: whole groups if
    groups are known, otherwise clips chosen by ``seed``; with ``by="random"`` always clips.
    PevlError gives the file and line of a mistake.
    """
    source = Path(source)
    if not source.exists():
        raise PevlError(
            f"{source}: no such folder or CSV file; hint: give a folder with one folder of clips "
            "per action, or a CSV with the columns path and label."
        )
    texts: dict[str, tuple[str, ...]] = {}
    if source.is_dir() and (source / FOLDER_MANIFEST).is_file():
        source = source / FOLDER_MANIFEST
    items = _read_folder(source) if source.is_dir() else _read_csv(source, texts)
    names = list(dict.fromkeys(item.label for item in items))
    if len(names) < 2:
        raise PevlError(f"{source}: only the label '{names[0]}' occurs; two or more are needed.")
    split_notes: tuple[str, ...] = ()
    if not any(item.split for item in items):
        items = hold_out(items, seed, by=by)
        held = sum(item.split == "val" for item in items)
        whole = by == "group" and any(item.group for item in items)
        how = "whole groups" if whole else "chosen at random"
        split_notes = (
            f"no split given: {held} of {len(items)} clips ({how}) are held out for validation",
        )
    elif not all(item.split for item in items):
        raise PevlError(f"{source}: some clips have a split and some have none; give all one.")
    if not any(item.split == "train" for item in items):
        raise PevlError(f"{source}: no clip is in the split 'train'.")
    warnings = _leaks(items)
    phrasings = [texts.get(n) or (_readable(n),) for n in names]
    others = tuple(p[1:] for p in phrasings)
    labels = LabelSet(
        tuple(names), tuple(p[0] for p in phrasings), others=others if any(others) else ()
    )
    return Manifest(source, tuple(items), labels, tuple(warnings), split_notes=split_notes)


def write_missing(path: Path, items: Sequence[Item]) -> None:
    """Write a CSV of missing clips: name, label, split, expected path."""
    text = io.StringIO(newline="")
    rows = csv.writer(text, lineterminator="\n")
    rows.writerow(("name", "label", "split", "expected"))
    for item in items:
        rows.writerow((item.name, item.label, item.split, item.path))
    with atomic_write(path) as temporary:
        temporary.write_text(text.getvalue(), encoding="utf-8")


def with_labels(manifest: Manifest, labels: LabelSet, source: str | Path) -> Manifest:
    """The manifest with other ``labels``: their order, texts and prompt, read from ``source``.

    PevlError unless the label names are the same.
    """
    in_manifest, in_file = set(manifest.labels.names), set(labels.names)
    if in_manifest != in_file:
        absent = ", ".join(f"'{n}'" for n in sorted(in_manifest - in_file)[:3])
        extra = ", ".join(f"'{n}'" for n in sorted(in_file - in_manifest)[:3])
        raise PevlError(
            f"{source}: its labels differ from the labels of {manifest.source}"
            + (f"; missing {absent}" if absent else "")
            + (f"; without clips {extra}" if extra else "")
            + "."
        )
    return replace(manifest, labels=labels)


def hold_out(
    items: Sequence[Item], seed: int, share: float = 0.2, by: HoldOut = "group"
) -> list[Item]:
    """Put about ``share`` (0 to 1) of each class into the split "val", the rest into "train".

    Moves whole groups, or with ``by="random"`` single clips. Every class keeps a training clip.
    """
    random = Random(seed)
    by_label: dict[str, dict[str, list[int]]] = defaultdict(lambda: defaultdict(list))
    for i, item in enumerate(items):
        group = item.group if by == "group" else ""
        by_label[item.label][group or f"\0{i}"].append(i)
    held: set[str] = set()  # groups; a group is in one split only, also if it has several classes
    for groups in by_label.values():
        total = sum(len(g) for g in groups.values())
        target = min(math.ceil(total * share), total - 1)
        count = sum(len(members) for name, members in groups.items() if name in held)
        names = [n for n in groups if n not in held]
        random.shuffle(names)
        for name in names:
            if count >= target:
                break
            if any(g.keys() <= held | {name} for g in by_label.values()):
                continue  # a class would have no training clip
            held.add(name)
            count += len(groups[name])
    val = {
        i
        for groups in by_label.values()
        for name, members in groups.items()
        if name in held
        for i in members
    }
    return [replace(item, split="val" if i in val else "train") for i, item in enumerate(items)]


def _leaks(items: Sequence[Item]) -> list[str]:
    """A warning if a group is in several splits; otherwise an empty list."""
    splits: dict[str, set[str]] = defaultdict(set)
    for item in items:
        if item.group:
            splits[item.group].add(item.split)
    shared = sorted(g for g, s in splits.items() if len(s) > 1)
    if not shared:
        return []
    return [
        f"{len(shared)} groups (such as '{shared[0]}') are in more than one split, so validation "
        "results are optimistic"
    ]


def _readable(name: str) -> str:
    return name.replace("_", " ").strip()


def _read_folder(root: Path) -> list[Item]:
    """`root/CLASS/clip.mp4`, or `root/SPLIT/CLASS/clip.mp4`."""
    parts = [p for p in sorted(root.iterdir()) if p.is_dir() and not p.name.startswith(".")]
    split_folders = [p for p in parts if p.name.lower() in SPLIT_NAMES]
    with_splits = bool(split_folders) and len(split_folders) == len(parts)
    if len(split_folders) > 1 and not with_splits:
        other = next(p.name for p in parts if p not in split_folders)
        raise PevlError(
            f"{root}: '{other}' is beside '{split_folders[0].name}'; hint: give one folder per "
            "action, or only the folders of the splits."
        )
    items = []
    for top in split_folders if with_splits else [root]:
        split = SPLIT_NAMES[top.name.lower()] if with_splits else ""
        for folder in sorted(p for p in top.iterdir() if p.is_dir() and p.name[0] != "."):
            clips = sorted(p for p in folder.rglob("*") if p.suffix.lower() in VIDEO_SUFFIXES)
            items += [Item(clip, folder.name, split, name=_name(clip, root)) for clip in clips]
    if not items:
        raise PevlError(
            f"{root}: no clips found; hint: put one folder per action in it, with that action's "
            f"clips: {root.name}/squat/001.mp4, {root.name}/lunge/001.mp4, ..."
        )
    return items


def _name(clip: Path, root: Path) -> str:
    return clip.relative_to(root).with_suffix("").as_posix()


def _without_suffix(path: str) -> str:
    pure = PurePath(path)
    return pure.with_suffix("").as_posix() if pure.name else path


def _read_csv(path: Path, texts: dict[str, tuple[str, ...]]) -> list[Item]:
    """The clips of a CSV file; adds the texts of their labels to ``texts``."""
    try:
        content = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise PevlError(f"{path}: cannot be read as a UTF-8 CSV file ({error}).") from error
    reader = csv.DictReader(io.StringIO(content, newline=""))
    try:
        rows = [(reader.line_num, row) for row in reader]
    except csv.Error as error:
        raise PevlError(f"{path} line {reader.line_num}: {error}.") from error
    columns = [c.strip() for c in reader.fieldnames or []]
    missing = {"path", "label"} - set(columns)
    if missing:
        raise PevlError(
            f"{path}: line 1 must name the columns path and label (found: "
            f"{', '.join(columns) or 'nothing'}); also known: {', '.join(COLUMNS[2:])}."
        )
    items = []
    for line, row in rows:
        where = f"{path} line {line}"
        if None in row:
            raise PevlError(
                f"{where}: more cells than columns; hint: put a text with commas in quotes."
            )
        cell = {k.strip(): (v or "").strip() for k, v in row.items() if k is not None}
        if not any(cell.values()):
            continue
        if not cell["path"] or not cell["label"]:
            raise PevlError(f"{where}: path and label must not be empty.")
        split = SPLIT_NAMES.get(cell.get("split", "").lower(), "")
        if cell.get("split") and not split:
            raise PevlError(f"{where}: split '{cell['split']}' is none of {', '.join(SPLITS)}.")
        text = tuple(t.strip() for t in cell.get("text", "").split("|") if t.strip())
        if text and texts.setdefault(cell["label"], text) != text:
            raise PevlError(
                f"{where}: label '{cell['label']}' has a different text than in an earlier line: "
                f"'{' | '.join(texts[cell['label']])}'."
            )
        start_s = _seconds(cell.get("start_s", ""), where, "start_s")
        end_s = _seconds(cell.get("end_s", ""), where, "end_s")
        if end_s is not None and end_s <= (start_s or 0):
            raise PevlError(f"{where}: end_s {end_s:g} must come after start_s {start_s or 0:g}.")
        end = "" if end_s is None else f"{end_s:g}"
        part = f"@{start_s or 0:g}-{end}" if start_s is not None or end else ""
        items.append(
            Item(
                name=_without_suffix(cell["path"]) + part,
                path=path.parent / cell["path"],
                label=cell["label"],
                split=split,
                group=cell.get("group", ""),
                start_s=start_s,
                end_s=end_s,
            )
        )
    if not items:
        raise PevlError(f"{path}: this file contains no clips.")
    return items


def _seconds(text: str, where: str, column: str) -> float | None:
    if not text:
        return None
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not (value >= 0 and math.isfinite(value)):
        raise PevlError(f"{where}: {column} '{text}' is not a number of seconds.")
    return value
