"""`pevl pose --store` and `--export`: store the poses of a data set or of several videos."""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from pevl_cli.cli import console
from pevl_cli.cli.batch import exit_if_failed
from pevl_cli.cli.paths import check_files_exist, check_output, check_pose_weights
from pevl_cli.cli.progress import ClipProgress
from pevl_cli.errors import PevlError, UsageError

if TYPE_CHECKING:
    from pevl_cli.data.manifest import Item, Manifest

FAILURES_SHOWN = 10


@dataclass(frozen=True)
class StoreRequest:
    """The options of `pevl pose` for storing poses. ``names``: videos, or one data set."""

    names: list[str]
    root: Path | None
    store: Path | None  # None: the name of ``export`` with the ending .npz
    export: Path | None
    shard: str | None
    workers: int | None
    ray: bool
    pose_weights: Path | None
    device: str
    all_frames: bool


def store_poses(request: StoreRequest) -> None:
    """Detect the poses, write the store and the pickle, and print a summary on stderr."""
    store = _store_path(request)
    check_pose_weights(request.pose_weights)
    manifest, items = _clips(request.names, request.root)
    on_disk = [item for item in items if item.on_disk]
    if not on_disk:
        raise PevlError(f"{request.names[0]}: none of its {len(items)} clips has a video on disk.")
    missing = len(items) - len(on_disk)
    if missing:
        console.warn(f"{missing:,} of {len(items):,} clips have no video on disk")

    from pevl_cli.data import extract
    from pevl_cli.hardware import choose_device

    if request.shard is not None:
        on_disk = extract.shard(on_disk, request.shard)
    console.note_bundled_weights(request.pose_weights)
    weights = None if request.pose_weights is None else str(request.pose_weights)
    with ClipProgress("detecting joints") as listener:
        summary = extract.extract(
            on_disk,
            store,
            weights=weights,
            device=choose_device(request.device),
            workers=request.workers,
            all_frames=request.all_frames,
            ray=request.ray,
            listener=listener,
        )
    for name, reason in list(summary.failed.items())[:FAILURES_SHOWN]:
        console.print_error(PevlError(f"{name}: {reason}"))
    if summary.without_person:
        console.warn(f"no person was detected in {summary.without_person} of {summary.clips} clips")
    if request.export is not None:
        extract.export_pyskl(store, request.export, on_disk, manifest.labels if manifest else None)
    print(
        f"{store}: poses of {summary.clips} clips, {summary.kept} of them from an earlier "
        f"run; use them with --poses {store}",
        file=sys.stderr,
    )
    exit_if_failed(len(summary.failed), len(on_disk))


def check_export(path: Path | None) -> Path | None:
    """The path of --export itself. UsageError when no pickle can be written there."""
    if path is not None and path.suffix not in {".pkl", ".pickle"}:
        raise UsageError(
            f"--export {path}: the name of the pickle must end in .pkl; hint: --export FILE.pkl, "
            "without --output"
        )
    return check_output(path)


def _store_path(request: StoreRequest) -> Path:
    """The path of the store. UsageError when its name does not end in .npz."""
    export, store = request.export, request.store
    if store is None:
        assert export is not None
        store = export.with_suffix(".npz")
        check_output(store)
    if store.suffix != ".npz":
        raise UsageError(f"--store {store}: the name must end in .npz.")
    return store


def _clips(names: list[str], root: Path | None) -> tuple[Manifest | None, list[Item]]:
    """The manifest and clips of a data set; for videos: None and clips without labels."""
    from pevl_cli.data.manifest import Item, read_manifest
    from pevl_cli.data.sets.named import known_name, read_named
    from pevl_cli.media.video import find_videos

    if root is not None:
        named = known_name(names[0])
        if named is None or len(names) > 1:
            raise UsageError("--root needs the name of one data set (see `pevl data --help`).")
        manifest = read_named(named, root)
        return manifest, list(manifest.items)
    first = Path(names[0])
    if len(names) == 1 and (first.suffix == ".csv" or first.is_dir()):
        try:
            manifest = read_manifest(first)
        except PevlError:
            if not first.is_dir() or (first / "manifest.csv").exists():
                raise
        else:
            return manifest, list(manifest.items)
    if len(names) == 1 and known_name(names[0]) is not None and not first.exists():
        raise UsageError(f"{names[0]} needs --root DIR, the folder of its files.")
    paths = find_videos(names)
    check_files_exist(paths)
    # Names relative to the common folder, so that the store can be used on another machine.
    folder = Path(os.path.commonpath([path.absolute().parent for path in paths]))
    names = [path.absolute().relative_to(folder).with_suffix("").as_posix() for path in paths]
    return None, [Item(path, "", name=name) for path, name in zip(paths, names, strict=True)]
