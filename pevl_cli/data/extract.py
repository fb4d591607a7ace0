"""Detect the poses of a whole data set and write them into one store."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from pevl_cli.data.loader import Loader, Unreadable, error_reason, worker_count, worker_errors
from pevl_cli.data.manifest import Item
from pevl_cli.data.partial_store import PartialStore, pack
from pevl_cli.errors import PevlError
from pevl_cli.labels import LabelSet
from pevl_cli.media.video import frames_in_span, read_timeline, sample_clip
from pevl_cli.pose.detector import PoseDetector
from pevl_cli.pose.files import read_poses
from pevl_cli.pose.pickles import write_pickle

SAMPLED_FRAMES = 48


@dataclass
class Summary:
    """Numbers of clips of a call of `extract`."""

    clips: int = 0  # in the store
    kept: int = 0  # of these, from an earlier run
    without_person: int = 0  # of these, no person was detected
    failed: dict[str, str] = field(default_factory=dict)  # name -> reason


@dataclass(frozen=True)
class PoseReader:
    """Detects the actor of a clip; the result is packed by `pack`.

    Joints (T, 17, 3), boxes (T, 4) and frame size (2,), in px. T is 48, or with ``all_frames`` the
    number of frames.
    """

    detector: PoseDetector
    all_frames: bool

    def __call__(self, item: Item) -> bytes:
        """The packed poses of a clip. PevlError or OSError when it cannot be read."""
        if self.all_frames:
            timeline = read_timeline(item.path)
            indices = frames_in_span(timeline, item.start_s, item.end_s)
            actor = self.detector.actor_in_all(timeline, indices)
            frames, size = np.arange(len(indices)), (timeline.width, timeline.height)
        else:
            clip = sample_clip(item.path, SAMPLED_FRAMES, item.start_s, item.end_s)
            actor = self.detector.actor(clip)
            frames, size = clip.frame_of, (clip.width, clip.height)
        return pack(actor.joints[frames], actor.boxes[frames], np.array(size))


def extract(
    items: Sequence[Item],
    store: Path,
    weights: str | None,
    device: str,
    workers: int | None = None,
    all_frames: bool = False,
    ray: bool = False,
    listener: Callable[[int, int], None] = lambda done, total: None,
) -> Summary:
    """Detect the actor of every item and write ``store``, an .npz file.

    Clips already in the store are kept if weights, settings and file size are the same; so are the
    clips of an interrupted run. ``workers`` as in `worker_count`; with ``ray`` the number of Ray's
    workers. ``listener`` is called with the number of finished clips and the total.

    PevlError when the store cannot be written, or no clip can be read.
    """
    # A clip may occur in several lists of a data set.
    items = list({(i.name, i.path, i.start_s, i.end_s): i for i in items}.values())
    if len({item.name for item in items}) < len(items):
        raise PevlError(
            f"{store}: two clips have the same name; each clip in a store needs its own name."
        )
    summary = Summary()
    for item in items:
        if not _writable_name(item.name):
            summary.failed[ascii(item.name)] = "its name cannot be written; rename the file."
    items = [item for item in items if _writable_name(item.name)]
    detector = PoseDetector(weights, device=device)
    detector_facts = {
        "weights": detector.digest(),
        "settings": asdict(replace(detector.settings, batch=0)),
        "layout": "coco17",
        "frames": "all" if all_frames else str(SAMPLED_FRAMES),
    }
    partial_store = PartialStore(store, items, detector_facts)
    remaining = [item for item in items if not partial_store.has(item.name)]
    done = summary.kept = len(items) - len(remaining)
    listener(done, len(items))
    reader = PoseReader(detector, all_frames)
    with worker_errors():
        read = _read_by_ray if ray else _read_locally
        for item, result in read(remaining, reader, partial_store, workers):
            if isinstance(result, Unreadable):
                summary.failed[item.name] = result.reason
            done += 1
            listener(done, len(items))
    names = [item.name for item in items if item.name not in summary.failed]
    if not names:
        first = next(iter(summary.failed.values()), "no clip was given")
        raise PevlError(f"{store}: no clip could be read; the first: {first}")
    summary.without_person = partial_store.write(names, summary.failed)
    summary.clips = len(names)
    return summary


def _writable_name(name: str) -> bool:
    """Whether a zip file can contain this name."""
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return name.isprintable()


def _read_locally(
    items: Sequence[Item], reader: PoseReader, store: PartialStore, workers: int | None
) -> Iterator[tuple[Item, Unreadable | None]]:
    """Yield each item after its poses are in ``store``, with the reason if it could not be read.

    Loader processes write into the store themselves, so finished clips stay if this process is
    killed.
    """
    detector = reader.detector
    count = min(worker_count(workers, detector.device or "cpu"), len(items))
    read = partial(_read_into, store, reader)
    # A single loader process would not be faster than this process.
    yield from zip(items, Loader(read, items, count if count > 1 else 0, detector), strict=True)


def _read_into(store: PartialStore, reader: PoseReader, item: Item) -> None:
    store.add(item.name, reader(item))


def _read_by_ray(
    items: Sequence[Item], reader: PoseReader, store: PartialStore, workers: int | None
) -> Iterator[tuple[Item, Unreadable | None]]:
    """As `_read_locally`, with Ray Data's workers on this machine or on its cluster."""
    try:
        import ray
        import ray.data
    except ImportError as error:
        raise PevlError("--ray needs Ray Data; hint: pip install 'pevl[ray]'.") from error
    ray.init(ignore_reinit_error=True, log_to_driver=False, logging_level="error")
    ray.data.DataContext.get_current().enable_progress_bars = False
    rows = [{"number": i} for i in range(len(items))]
    # Enough blocks to keep all workers busy to the end.
    workers = workers or 1
    data = ray.data.from_items(rows, override_num_blocks=max(min(len(items), workers * 8), 1))
    gpus = 1 if (reader.detector.device or "").startswith("cuda") else 0
    read_row = partial(_read_row, reader, list(items))
    for row in data.map(read_row, concurrency=workers, num_gpus=gpus).iter_rows():
        item = items[row["number"]]
        if not row["reason"]:
            store.add(item.name, row["data"])
        yield item, Unreadable(row["reason"]) if row["reason"] else None


def _read_row(reader: PoseReader, items: list[Item], row: dict[str, Any]) -> dict[str, Any]:
    try:
        return {"number": row["number"], "data": reader(items[row["number"]]), "reason": ""}
    except (PevlError, OSError) as error:
        return {"number": row["number"], "data": b"", "reason": error_reason(error)}


def shard(items: Sequence[Item], text: str) -> list[Item]:
    """Part i of n of the items, for the text "i/n": every n-th item, from the i-th on.

    PevlError for any other text.
    """
    first, _, count = text.partition("/")
    if not (first.isdigit() and count.isdigit() and 1 <= int(first) <= int(count)):
        raise PevlError(f"--shard {text}: i/n is needed, such as 1/4 for the first of four.")
    return list(items)[int(first) - 1 :: int(count)]


def export_pyskl(store: Path, target: Path, items: Sequence[Item], labels: LabelSet | None) -> None:
    """Write the clips of ``items`` that are in a store as a PYSKL pickle.

    A label becomes its number in ``labels``; -1 without labels. PevlError when the pickle cannot be
    written.
    """
    numbers = {name: i for i, name in enumerate(labels.names)} if labels is not None else {}
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
                "label": numbers.get(item.label, -1),
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
