"""The one form every data set is read into, and own data as a folder or a CSV file."""

from __future__ import annotations

import csv
import io
import math
from collections import Counter, defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePath
from random import Random

from pevl_cli.cache import write_aside
from pevl_cli.choices import HoldOut
from pevl_cli.errors import PevlError
from pevl_cli.labels import LabelSet
from pevl_cli.media.video import VIDEO_SUFFIXES

SPLITS = ("train", "val", "test")
COLUMNS = ("path", "label", "text", "group", "split", "start_s", "end_s")
# Names by which people call the splits, as folder or in a CSV.
SPLIT_NAMES = {
    "train": "train",
    "training": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "test": "test",
    "testing": "test",
}


@dataclass(frozen=True)
class Item:
    """One labelled clip: a whole file, or the part of it from start_s to end_s."""

    path: Path
    label: str
    split: str = ""  # one of SPLITS; empty = not said
    group: str = ""  # person, session or source video: never to be cut by a split
    start_s: float | None = None
    end_s: float | None = None
    name: str = ""  # by which its poses are found: where it lies in the set, or its official id
    on_disk: bool = True  # False: listed, but no video of it is on disk


@dataclass(frozen=True)
class Manifest:
    source: Path
    items: tuple[Item, ...]
    labels: LabelSet
    warnings: tuple[str, ...] = ()
    name: str = ""  # of the data set
    tested: str = "test"  # the split whose figures are published
    official: Mapping[str, int] = field(default_factory=dict)  # clips that each split should have
    poses: Path | None = None  # that come with it
    drawn: tuple[str, ...] = ()  # how its splits were drawn here, if it names none

    @property
    def title(self) -> str:
        return self.name or (self.source.parent if self.source.is_file() else self.source).name

    @property
    def has_videos(self) -> bool:
        return any(item.on_disk for item in self.items)

    def of(self, split: str) -> list[Item]:
        return [item for item in self.items if item.split == split]

    def incomplete(self, usable: Collection[Item], splits: Collection[str] = SPLITS) -> str:
        """How much of the data set is there, as "train 20,123 of 20,484 clips"; empty if all is."""
        there = Counter(item.split for item in usable)
        parts = []
        for split in splits:
            whole = self.official.get(split, len(self.of(split)))
            if there[split] < whole:
                parts.append(f"{split} {there[split]:,} of {whole:,} clips")
        return "; ".join(parts)


def read_manifest(source: str | Path, seed: int = 0, by: HoldOut = "group") -> Manifest:
    """Read a folder of class folders, a CSV file, or a folder with a `manifest.csv` in it.

    Where no split is said, about a fifth of each class is held out for validation: whole groups
    where groups are known, else clips drawn with ``seed``; with ``by="random"`` clips in any case.
    PevlError says what is wrong and where.
    """
    source = Path(source)
    if not source.exists():
        raise PevlError(
            f"{source}: there is no such folder or CSV file. Give a folder with one folder of "
            "clips per action, or a CSV with the columns path and label."
        )
    texts: dict[str, tuple[str, ...]] = {}
    if source.is_dir() and (source / "manifest.csv").is_file():
        source = source / "manifest.csv"
    items = _read_folder(source) if source.is_dir() else _read_csv(source, texts)
    names = list(dict.fromkeys(item.label for item in items))
    if len(names) < 2:
        raise PevlError(f"{source}: only the label '{names[0]}' occurs; two or more are needed.")
    drawn: tuple[str, ...] = ()
    if not any(item.split for item in items):
        items = hold_out(items, seed, by=by)
        held = sum(item.split == "val" for item in items)
        whole = by == "group" and any(item.group for item in items)
        how = "whole groups" if whole else "drawn at random"
        drawn = (f"no split given: held out {held} of {len(items)} clips ({how}) to validate",)
    elif not all(item.split for item in items):
        raise PevlError(f"{source}: some clips have a split and some have none; say it for all.")
    if not any(item.split == "train" for item in items):
        raise PevlError(f"{source}: no clip is in the split 'train'.")
    warnings = _leaks(items)
    phrasings = [texts.get(n) or (_readable(n),) for n in names]
    others = tuple(p[1:] for p in phrasings)
    labels = LabelSet(
        tuple(names), tuple(p[0] for p in phrasings), others=others if any(others) else ()
    )
    return Manifest(source, tuple(items), labels, tuple(warnings), drawn=drawn)


def write_missing(path: Path, items: Sequence[Item]) -> None:
    """A CSV of listed clips that are not on disk."""
    text = io.StringIO(newline="")
    rows = csv.writer(text, lineterminator="\n")
    rows.writerow(("name", "label", "split", "expected"))
    for item in items:
        rows.writerow((item.name, item.label, item.split, item.path))
    with write_aside(path) as temporary:
        temporary.write_text(text.getvalue(), encoding="utf-8")


def with_labels(manifest: Manifest, labels: LabelSet, source: str | Path) -> Manifest:
    """The manifest with the order, texts and prompt of a label file, which must name its labels."""
    ours, theirs = set(manifest.labels.names), set(labels.names)
    if ours != theirs:
        absent = ", ".join(f"'{n}'" for n in sorted(ours - theirs)[:3])
        extra = ", ".join(f"'{n}'" for n in sorted(theirs - ours)[:3])
        raise PevlError(
            f"{source}: does not name the labels of {manifest.source}"
            + (f"; missing {absent}" if absent else "")
            + (f"; without clips {extra}" if extra else "")
            + "."
        )
    return replace(manifest, labels=labels)


def hold_out(
    items: Sequence[Item], seed: int, share: float = 0.2, by: HoldOut = "group"
) -> list[Item]:
    """Put about ``share`` of each class in "val", the rest in "train".

    Whole groups at a time, or with ``by="random"`` single clips.
    """
    random = Random(seed)
    by_label: dict[str, dict[str, list[int]]] = defaultdict(lambda: defaultdict(list))
    for i, item in enumerate(items):
        group = item.group if by == "group" else ""
        by_label[item.label][group or f"\0{i}"].append(i)
    held: set[str] = set()  # a group may hold several classes: it goes one way in all of them
    chosen: set[int] = set()
    for groups in by_label.values():
        total = sum(len(g) for g in groups.values())
        wanted = min(math.ceil(total * share), total - 1)
        got = sum(len(members) for name, members in groups.items() if name in held)
        names = [n for n in groups if n not in held]
        random.shuffle(names)
        for name in names:
            if got >= wanted:
                break
            if any(g.keys() <= held | {name} for g in by_label.values()):
                continue  # some class would keep nothing to train on
            held.add(name)
            got += len(groups[name])
    for groups in by_label.values():
        for name, members in groups.items():
            if name in held:
                chosen.update(members)
    return [replace(it, split="val" if i in chosen else "train") for i, it in enumerate(items)]


def _leaks(items: Sequence[Item]) -> list[str]:
    splits: dict[str, set[str]] = defaultdict(set)
    for item in items:
        if item.group:
            splits[item.group].add(item.split)
    shared = sorted(g for g, s in splits.items() if len(s) > 1)
    if not shared:
        return []
    return [
        f"{len(shared)} groups (such as '{shared[0]}') stand in more than one split: "
        "results will look better than they are"
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
            f"{root}: '{other}' stands beside '{split_folders[0].name}': give either one folder "
            "per action, or only the folders of the splits."
        )
    items = []
    for top in split_folders if with_splits else [root]:
        split = SPLIT_NAMES[top.name.lower()] if with_splits else ""
        for folder in sorted(p for p in top.iterdir() if p.is_dir() and p.name[0] != "."):
            clips = sorted(p for p in folder.rglob("*") if p.suffix.lower() in VIDEO_SUFFIXES)
            items += [Item(clip, folder.name, split, name=_name(clip, root)) for clip in clips]
    if not items:
        raise PevlError(
            f"{root}: no clips found. Put one folder per action in it, with that action's clips: "
            f"{root.name}/squat/001.mp4, {root.name}/lunge/001.mp4, ..."
        )
    return items


def _name(clip: Path, root: Path) -> str:
    return clip.relative_to(root).with_suffix("").as_posix()


def _without_suffix(path: str) -> str:
    pure = PurePath(path)
    return pure.with_suffix("").as_posix() if pure.name else path


def _read_csv(path: Path, texts: dict[str, tuple[str, ...]]) -> list[Item]:
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
            raise PevlError(f"{where}: more cells than columns; put a text with commas in quotes.")
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
                f"{where}: label '{cell['label']}' has another text than before: "
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
        raise PevlError(f"{path}: there are no clips in this file.")
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
