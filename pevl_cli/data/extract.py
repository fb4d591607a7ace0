"""The poses of a whole data set, found in advance and kept in one store.

A store is an .npz file: for each clip `<name>/joints` (T, J, 3), `<name>/boxes` (T, 4) and
`<name>/size` (width, height), and `about.json`, which says by which weights and settings they were
found. Finished clips lie in a folder beside it until all are done, so that a run that was killed
goes on where it was.
"""

from __future__ import annotations

import hashlib
import io
import json
import multiprocessing
import os
import zipfile
import zlib
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch

from pevl_cli import __version__
from pevl_cli.cache import write_aside
from pevl_cli.data.manifest import Item
from pevl_cli.errors import PevlError
from pevl_cli.labels import LabelSet
from pevl_cli.media.video import part_of, read_timeline, sample_clip
from pevl_cli.pose.detector import PoseDetector
from pevl_cli.pose.files import read_poses
from pevl_cli.pose.pickles import write_pickle
from pevl_cli.pose.store import STORE_FACTS
from pevl_cli.pose.stored import FORM_ERRORS


def export_pyskl(store: Path, target: Path, items: Sequence[Item], labels: LabelSet | None) -> None:
    """A store's clips as a PYSKL pickle; labels are numbers in the order of ``labels``, else -1."""
    index = {name: i for i, name in enumerate(labels.names)} if labels is not None else {}
    poses = read_poses(store)
    annotations, splits = [], defaultdict(list)
    for item in items:
        stored = poses.get(item.name)
        if stored is None:
            continue
        actor = stored.actor()
        size = stored.canvas[::-1]
        annotations.append(
            {
                "frame_dir": item.name,
                "label": index.get(item.label, -1),
                "img_shape": size,
                "original_shape": size,
                "total_frames": len(stored.people),
                "keypoint": actor.joints[None, ..., :2].astype(np.float16),
                "keypoint_score": actor.joints[None, ..., 2].astype(np.float16),
            }
        )
        if item.split:
            splits[item.split].append(item.name)
    write_pickle(target, annotations, splits)


SAMPLED_FRAMES = 48
ARRAYS = ("joints", "boxes", "size")
# What reading a damaged file raises.
DAMAGED = (OSError, EOFError, zipfile.BadZipFile, zlib.error, *FORM_ERRORS)


@dataclass
class Summary:
    """What came of it."""

    clips: int = 0  # in the store
    kept: int = 0  # of these, found by an earlier run
    nobody: int = 0  # of these, without anybody
    failed: dict[str, str] = field(default_factory=dict)  # name -> reason


@dataclass(frozen=True)
class Finder:
    """What one process does: a clip's file -> its actor as arrays, packed."""

    weights: str | None
    device: str
    all_frames: bool
    threads: int

    def __call__(self, item: Item) -> tuple[bytes, str]:
        """The packed arrays, or the reason why there are none."""
        detector = _detector(self.weights, self.device, self.threads)
        try:
            if self.all_frames:
                timeline = read_timeline(item.path)
                indices = part_of(timeline, item.start_s, item.end_s)
                actor = detector.actor_in_all(timeline, indices)
                places, size = np.arange(len(indices)), (timeline.width, timeline.height)
            else:
                clip = sample_clip(item.path, SAMPLED_FRAMES, item.start_s, item.end_s)
                actor = detector.actor(clip)
                places, size = clip.frame_of, (clip.width, clip.height)
        except PevlError as error:
            return b"", str(error)
        packed = io.BytesIO()
        _pack(packed, actor.joints[places], actor.boxes[places], np.array(size))
        return packed.getvalue(), ""


def _pack(file: IO[bytes], joints: np.ndarray, boxes: np.ndarray, size: np.ndarray) -> None:
    np.savez(file, joints=joints, boxes=boxes, size=size)


_detectors: dict[tuple[str | None, str], PoseDetector] = {}


def _detector(weights: str | None, device: str, threads: int) -> PoseDetector:
    """One a process, loaded when it is first needed."""
    key = weights, device
    if key not in _detectors:
        torch.set_num_threads(threads)
        _detectors[key] = PoseDetector(weights, device=device)
    return _detectors[key]


def extract(
    items: Sequence[Item],
    store: Path,
    weights: str | None,
    device: str,
    processes: int = 1,
    all_frames: bool = False,
    ray: bool = False,
    listener: Callable[[int, int], None] = lambda done, total: None,
) -> Summary:
    """Find the actor of every item and write ``store``. Clips that are in it already, by the same
    weights and settings and from a file of the same size, are kept.

    ``listener`` is told how many are done, of how many. PevlError when the store cannot be written
    or nothing at all was found.
    """
    # What stands in two lists is looked at once.
    items = list({(i.name, i.path, i.start_s, i.end_s): i for i in items}.values())
    if len({item.name for item in items}) < len(items):
        raise PevlError(f"{store}: two clips have one name; a store needs a name for each.")
    summary = Summary()
    for item in items:
        if not item.name.isprintable() or not _encodes(item.name):
            summary.failed[ascii(item.name)] = "its name cannot be written; rename the file."
    items = [item for item in items if ascii(item.name) not in summary.failed]
    detector = PoseDetector(weights, device=device)
    made_by = {
        "weights": detector.digest(),
        "settings": asdict(replace(detector.settings, batch=0)),
        "layout": "coco17",
        "frames": "all" if all_frames else str(SAMPLED_FRAMES),
    }
    parts = store.with_name(f"{store.name}.parts")
    try:
        parts.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise PevlError(f"{parts}: cannot be written ({error.strerror}).") from error
    stamps = {item.name: _stamp(item) for item in items}
    _unpack(store, parts, made_by, stamps)
    todo = []
    for item in items:
        if _read_part(_part(parts, item.name, made_by, stamps)) is None:
            todo.append(item)
        else:
            summary.kept += 1
    done = summary.kept
    listener(done, len(items))
    for name, data, reason in _find(todo, weights, device, processes, all_frames, ray):
        if reason:
            summary.failed[name] = reason
        else:
            with write_aside(_part(parts, name, made_by, stamps)) as temporary:
                temporary.write_bytes(data)
        done += 1
        listener(done, len(items))
    names = [item.name for item in items if item.name not in summary.failed]
    if not names:
        first = next(iter(summary.failed.values()), "there is no clip")
        raise PevlError(f"{store}: no clip could be read; the first: {first}")
    about = {
        "pevl": __version__,
        **made_by,
        "clips": {name: stamps[name] for name in names},
        "failed": summary.failed,
    }
    with (
        write_aside(store) as temporary,
        zipfile.ZipFile(temporary, "w", zipfile.ZIP_DEFLATED) as z,
    ):
        z.writestr(STORE_FACTS, json.dumps(about))
        for name in names:
            arrays = _read_part(_part(parts, name, made_by, stamps))
            if arrays is None:
                raise PevlError(f"{parts}: an entry was damaged meanwhile; run it again.")
            summary.nobody += not (arrays["joints"][..., 2] > 0).any()
            for key in ARRAYS:
                with z.open(f"{name}/{key}.npy", "w") as file:
                    np.lib.format.write_array(file, arrays[key], allow_pickle=False)
    summary.clips = len(names)
    for item in items:  # not what another run of other clips keeps there
        _part(parts, item.name, made_by, stamps).unlink(missing_ok=True)
    with suppress(OSError):
        parts.rmdir()
    return summary


def _encodes(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def _stamp(item: Item) -> list[object]:
    """By which a clip is known to be the same: not by its time, which copying changes."""
    size = None
    with suppress(OSError):
        size = item.path.stat().st_size
    return [size, item.start_s, item.end_s]


def _part(parts: Path, name: str, made_by: dict[str, Any], stamps: dict[str, list[object]]) -> Path:
    """Where a finished clip lies until all are: another video, or other weights, another place."""
    key = json.dumps([name, made_by, stamps[name]])
    return parts / f"{hashlib.blake2b(key.encode(), digest_size=16).hexdigest()}.npz"


def _read_part(path: Path) -> dict[str, np.ndarray] | None:
    """A finished clip's arrays; None if it is not there or damaged."""
    try:
        with np.load(path, allow_pickle=False) as stored:
            return {key: stored[key] for key in ARRAYS}
    except DAMAGED:
        return None


def _unpack(
    store: Path, parts: Path, made_by: dict[str, Any], stamps: dict[str, list[object]]
) -> None:
    """Take the good entries of an earlier store up again."""
    try:
        with zipfile.ZipFile(store) as z:
            about = json.loads(z.read(STORE_FACTS))
            others = about["clips"].keys() - stamps.keys()
            if others:
                raise PevlError(
                    f"{store}: holds {len(others)} clips that are not asked for, such as "
                    f"'{min(others)}'; name another --store, or remove that file first."
                )
            if any(about.get(key) != value for key, value in made_by.items()):
                return
            for name, stamp in about["clips"].items():
                if stamp != stamps[name]:
                    continue
                with suppress(*DAMAGED):
                    arrays = []
                    for key in ARRAYS:
                        with z.open(f"{name}/{key}.npy") as file:
                            arrays.append(np.lib.format.read_array(file, allow_pickle=False))
                    with (
                        write_aside(_part(parts, name, made_by, stamps)) as temporary,
                        temporary.open("wb") as out,
                    ):
                        _pack(out, *arrays)
    except DAMAGED:
        return  # none, or damaged: found again


def _find(
    items: Sequence[Item],
    weights: str | None,
    device: str,
    processes: int,
    all_frames: bool,
    ray: bool,
) -> Iterator[tuple[str, bytes, str]]:
    """Name, packed arrays and reason of each item, as they are done."""
    threads = max((os.cpu_count() or 1) // processes, 1)
    if ray:
        yield from _on_ray(items, Finder(weights, device, all_frames, threads), processes)
        return
    if processes == 1 or len(items) < 2:
        finder = Finder(weights, device, all_frames, torch.get_num_threads())
        for item in items:
            yield item.name, *finder(item)
        return
    gpus = torch.cuda.device_count() if device == "cuda" else 0
    pool = ProcessPoolExecutor(processes, mp_context=multiprocessing.get_context("spawn"))
    try:
        waiting = {}
        for i, item in enumerate(items):
            own = f"cuda:{i % gpus}" if gpus > 1 else device
            finder = Finder(weights, own, all_frames, threads)
            waiting[pool.submit(finder, item)] = item.name
        for future in as_completed(waiting):
            yield waiting.pop(future), *future.result()
    except BrokenProcessPool as error:
        raise PevlError(
            f"one of {processes} processes was killed, likely for want of memory; what is done is "
            "kept: run it again with fewer --processes."
        ) from error
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


def _on_ray(
    items: Sequence[Item], finder: Finder, workers: int
) -> Iterator[tuple[str, bytes, str]]:
    """The same by Ray Data's workers, on this machine or on the cluster it is part of."""
    try:
        import ray
        import ray.data
    except ImportError as error:
        raise PevlError("--ray needs Ray Data: pip install 'pevl[ray]'.") from error
    ray.init(ignore_reinit_error=True, log_to_driver=False, logging_level="error")
    ray.data.DataContext.get_current().enable_progress_bars = False
    rows = [{"number": i} for i in range(len(items))]
    # As many blocks as keep all workers busy to the end.
    data = ray.data.from_items(rows, override_num_blocks=max(min(len(items), workers * 8), 1))
    gpus = 1 if finder.device.startswith("cuda") else 0
    found = data.map(partial(_ray_row, finder, list(items)), concurrency=workers, num_gpus=gpus)
    for row in found.iter_rows():
        yield items[row["number"]].name, row["data"], row["reason"]


def _ray_row(finder: Finder, items: list[Item], row: dict[str, Any]) -> dict[str, Any]:
    data, reason = finder(items[row["number"]])
    return {"number": row["number"], "data": data, "reason": reason}


def shard(items: Sequence[Item], text: str) -> list[Item]:
    """The i-th of n parts of the items, as in "1/4"; every n-th, so that all are alike."""
    first, _, count = text.partition("/")
    if not (first.isdigit() and count.isdigit() and 1 <= int(first) <= int(count)):
        raise PevlError(f"--shard {text}: i/n is needed, such as 1/4 for the first of four.")
    return list(items)[int(first) - 1 :: int(count)]
