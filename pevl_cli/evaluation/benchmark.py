"""A checkpoint's figures on a data set, by that set's own split and metrics, and what they cost."""

from __future__ import annotations

import multiprocessing
import os
import platform
import signal
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any

import numpy as np
import torch

from pevl_cli import __version__, recognise
from pevl_cli.data.clips import Clips, LeftOut
from pevl_cli.data.manifest import SPLITS, Item, Manifest
from pevl_cli.data.samples import Sample, make_sample
from pevl_cli.errors import PevlError, UsageError
from pevl_cli.evaluation.cost import cost_of
from pevl_cli.evaluation.outcome import Outcome, Speed, _results
from pevl_cli.labels import LabelSet
from pevl_cli.media.video import sample_clip
from pevl_cli.metrics import (
    accuracy,
    intervals,
    reliability,
)
from pevl_cli.model import checkpoint
from pevl_cli.model.calibration import Calibration
from pevl_cli.model.sgmc import Similarities
from pevl_cli.pose.files import PoseStore, read_poses
from pevl_cli.recognise import Recogniser
from pevl_cli.training import run_folder as run

SHARE_CLIPS = 64  # that a process is given at a time
TIMED_CLIPS = 8

Listener = Callable[[int, int], None]


def benchmark(
    manifest: Manifest,
    recogniser: Recogniser,
    checkpoint_name: str,
    poses: PoseStore | None = None,
    split: str | None = None,
    views: int = 1,
    listener: Listener = lambda done, total: None,
    batch: int = 16,
    workers: int | None = None,
    processes: int = 1,
    timed: bool = False,
) -> Outcome:
    """All figures on a split; by default the one that is published.

    ``batch`` clips go through the model at a time, fewer where the memory is too small; ``workers``
    threads decode; ``processes`` share the clips and the GPUs. None of them changes a figure.
    ``timed`` also measures the speed. PevlError when labels do not fit or no clip can be read.
    """
    config = recogniser.model.config
    if not config.video and recogniser.detector is None and poses is None:
        raise UsageError(f"{checkpoint_name}: looks at poses only, and cannot do without them.")
    split, listed = choose_split(manifest, checkpoint_name, split)
    labels = fitting_labels(manifest, recogniser.labels, checkpoint_name)
    items = [i for i in listed if i.on_disk or (poses is not None and poses.find(i.name))]
    place = {name: labels.find(name) or 0 for name in {item.label for item in items}}
    same = [replace(item, label=labels.names[place[item.label]]) for item in items]
    recogniser.encode(labels)  # once, before the clips
    given = _Given(same, labels, poses, views, batch, workers or min(os.cpu_count() or 1, 8))
    found: list[Similarities | str]
    if processes > 1 and len(items) > 1:
        found = _shared(recogniser, given, processes, listener)
    else:
        found = list(_measured(recogniser, labels, given, listener))
    rows = [row for row in found if isinstance(row, Similarities)]
    left_out = [
        LeftOut(item, row) for item, row in zip(items, found, strict=True) if isinstance(row, str)
    ]
    if not rows:
        why = f"; the first: {left_out[0].reason}" if left_out else ", nor poses of it"
        raise PevlError(
            f"{manifest.source}: none of the {len(listed)} clips of split '{split}' can be read"
            f"{why}"
        )
    readable = [
        item for item, row in zip(items, found, strict=True) if isinstance(row, Similarities)
    ]
    measured = [i for i, row in zip(same, found, strict=True) if isinstance(row, Similarities)]
    joined = Similarities.concatenate(rows)
    matches = joined.values
    if matches.isinf().any():
        raise PevlError(f"{checkpoint_name}: gives answers that are no numbers; it is damaged.")
    true = [place[item.label] for item in readable]
    groups = [item.group for item in readable]
    names = clip_names(manifest.items)
    sure = recogniser.scores(joined, labels)
    shown = [names[id(i)] for i in readable]
    clips = _results(matches, sure, true, readable, shown, labels)
    facts = checkpoint.read_facts(checkpoint.find(checkpoint_name))
    as_trained = Calibration(temperature=float(recogniser.model.temperature.detach()))
    return Outcome(
        dataset=manifest.title,
        split=split,
        checkpoint=checkpoint_name,
        accuracy=accuracy(matches, true, labels.names),
        intervals=intervals(np.array([c.right for c in clips]), true, groups),
        groups=len({g for g in groups if g}),
        calibration=recogniser.calibration,
        reliability=reliability(sure, true),
        error_as_trained=reliability(as_trained.scores(matches), true).error,
        labels=list(labels.names),
        left_out=left_out,
        incomplete=manifest.incomplete(readable, SPLITS if split == "all" else (split,)),
        views=views,
        cost=cost_of(config, labels),
        speed=_speed(recogniser, labels, replace(given, items=measured)) if timed else None,
        made={
            "pevl": __version__,
            "torch": torch.__version__,
            "machine": f"{platform.machine()}, {os.cpu_count()} cores",
            "device": _device_name(recogniser.device),
            "precision": recogniser.precision,
            "pose_weights": None if recogniser.detector is None else recogniser.detector.digest(),
            "poses": None if poses is None else poses.digest(),
            "data_hash": run.data_hash(manifest),
            "config": config.name,
            "training": {k: facts.training.get(k) for k in ("data", "seed", "epochs_done")},
        },
        clips=clips,
    )


def clip_names(items: Sequence[Item]) -> dict[int, str]:
    """A name of its own for each clip, by the item's `id`: files of one name have their ending."""
    plain = [item.name or str(item.path) for item in items]
    count, given = Counter(plain), Counter[str]()
    names = {}
    for item, name in zip(items, plain, strict=True):
        name = name + item.path.suffix if count[name] > 1 else name
        given[name] += 1
        names[id(item)] = f"{name} #{given[name]}" if given[name] > 1 else name
    return names


def choose_split(
    manifest: Manifest, checkpoint_name: str, split: str | None
) -> tuple[str, list[Item]]:
    """The split to measure, or the usual one, with its clips. UsageError if there is none."""
    if split is None and manifest.drawn and not trained_on(manifest, checkpoint_name):
        return "all", list(manifest.items)  # nobody said that some are for training
    usual = (s for s in (manifest.tested, "val") if manifest.of(s))
    split = split or next(usual, manifest.tested)
    listed = manifest.of(split)
    if not listed:
        known = sorted({item.split for item in manifest.items})
        raise UsageError(f"{manifest.source}: has no split '{split}', but {', '.join(known)}.")
    return split, listed


# -- measuring ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Given:
    """What is measured, and how."""

    items: Sequence[Item]
    labels: LabelSet
    poses: PoseStore | None
    views: int
    batch: int
    workers: int


def _measured(
    recogniser: Recogniser, labels: LabelSet, given: _Given, listener: Listener
) -> Iterator[Similarities | str]:
    """For each clip its matches, or why it cannot be read."""
    clips = Clips(
        given.items,
        given.labels.names,
        recogniser.model.config,
        recogniser.detector,
        0,
        given.poses,
    )
    samples = _read(clips, given.workers, 2 * given.batch)
    done = 0
    while group := list(islice(samples, given.batch)):
        there = [s for s in group if isinstance(s, Sample)]
        rows = iter(_forward(recogniser, there, labels, given.views, given.batch) if there else ())
        for sample in group:
            done += 1
            listener(done, len(given.items))
            yield next(rows) if isinstance(sample, Sample) else sample


def _read(clips: Clips, workers: int, ahead: int) -> Iterator[Sample | str]:
    """The clips in their order, decoded by threads, a few ahead; or why one cannot be."""

    def one(i: int) -> Sample | str:
        try:
            return clips[i]
        except (PevlError, OSError) as error:
            return str(error)

    waiting: deque[Future[Sample | str]] = deque()
    with ThreadPoolExecutor(workers) as pool:
        try:
            for i in range(len(clips)):
                waiting.append(pool.submit(one, i))
                if len(waiting) > ahead:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()


def _forward(
    recogniser: Recogniser, samples: list[Sample], labels: LabelSet, views: int, batch: int
) -> list[Similarities]:
    """The matches of each; with fewer clips at a time where the memory is too small for all."""
    while True:
        try:
            return recogniser.match(samples, labels, views, batch).split()
        except RuntimeError as error:
            full = isinstance(error, torch.OutOfMemoryError) or "allocate memory" in str(error)
            if not full:
                raise
            if batch == 1:
                raise PevlError(
                    "the memory is too small for one clip. Try --precision bf16, or --device cpu."
                ) from error
        batch = max(batch // 2, 1)


# Of a process that shares the work; or why it cannot.
_own: tuple[Recogniser, LabelSet, PoseStore | None] | PevlError


def _begin(
    loaded_by: dict[str, Any],
    labels: LabelSet,
    poses: tuple[Any, str | None] | None,
    numbers: Any,
) -> None:
    """In a new process: load what it needs, on the GPU that is its turn."""
    global _own
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the first process tells it to end
    number, of = numbers.get()
    torch.set_num_threads(max((os.cpu_count() or 1) // of, 1))
    device = loaded_by["device"]
    if device == "cuda":
        device = f"cuda:{number % torch.cuda.device_count()}"
    try:
        recogniser = recognise.load(**{**loaded_by, "device": device})
        recorded = None if poses is None else read_poses(*poses)
        recogniser.encode(labels)
        _own = recogniser, labels, recorded
    except (PevlError, RuntimeError) as error:  # a GPU without memory is the latter
        _own = PevlError(f"process {number + 1} of {of}: {str(error).splitlines()[0]}")


def _share(given: _Given) -> list[Similarities | str]:
    if isinstance(_own, PevlError):
        raise _own
    recogniser, labels, poses = _own
    return list(
        _measured(recogniser, labels, replace(given, poses=poses), lambda done, total: None)
    )


def _shared(
    recogniser: Recogniser, given: _Given, processes: int, listener: Listener
) -> list[Similarities | str]:
    """As `_measured`, by several processes with a model each."""
    context = multiprocessing.get_context("spawn")
    numbers = context.Manager().Queue()
    for i in range(processes):
        numbers.put((i, processes))
    poses = given.poses
    source = None if poses is None else (poses.source, poses.named_layout)
    size = min(SHARE_CLIPS, -(-len(given.items) // processes))
    shares = [
        _Given(given.items[i : i + size], given.labels, None, given.views, given.batch, 1)
        for i in range(0, len(given.items), size)
    ]
    found: list[Similarities | str] = []
    pool = ProcessPoolExecutor(
        processes,
        mp_context=context,
        initializer=_begin,
        initargs=(recogniser.loaded_by, given.labels, source, numbers),
    )
    try:
        for part in pool.map(_share, shares):
            # Copied: what is shared with a process holds a file open.
            found += [
                row if isinstance(row, str) else Similarities.concatenate([row]) for row in part
            ]
            listener(len(found), len(given.items))
    except BrokenProcessPool as error:
        raise PevlError(
            "a process ended before its time, perhaps for want of memory; try fewer --processes."
        ) from error
    finally:
        pool.shutdown(cancel_futures=True)
    return found


def _speed(recogniser: Recogniser, labels: LabelSet, given: _Given) -> Speed:
    """Time the stages on the first clips, each alone; their poses are found anew."""
    config, detector = recogniser.model.config, recogniser.detector
    cuda = recogniser.device.startswith("cuda")
    clips = Clips(given.items, given.labels.names, config, detector, 0, given.poses)
    stages: dict[str, list[float]] = {"decode": [], "pose": [], "model": []}
    if cuda:
        torch.cuda.reset_peak_memory_stats(recogniser.device)
    for i, item in enumerate(given.items[: TIMED_CLIPS + 1]):
        stored = None if given.poses is None else given.poses.get(item.name)
        if item.on_disk and item.path.exists() and (config.video or stored is None):
            times = [time.perf_counter()]
            clip = sample_clip(item.path, config.pose_frames, item.start_s, item.end_s)
            times.append(time.perf_counter())
            actor = None
            if stored is not None:
                actor = stored.actor_in(clip)
            elif detector is not None:
                actor = detector.actor(clip, use_cache=False)
            times.append(time.perf_counter())
            sample = make_sample(clip, actor, config)
            times.append(time.perf_counter())
            stages["decode"].append(times[1] - times[0] + times[3] - times[2])
            if detector is not None and stored is None:
                stages["pose"].append(times[2] - times[1])
        else:
            sample = clips[i]
        began = time.perf_counter()
        recogniser.match([sample], labels, given.views)  # its result is on the CPU
        stages["model"].append(time.perf_counter() - began)
    # The first of each loads weights and kernels.
    mean = {k: float(np.mean(v[1:] or v)) for k, v in stages.items() if v}
    return Speed(
        clips=max(len(stages["model"]) - 1, 1),
        decode_s=mean.get("decode"),
        pose_s=mean.get("pose"),
        model_s=mean["model"],
        memory_bytes=_peak_memory(recogniser.device),
    )


def _peak_memory(device: str) -> int | None:
    if device.startswith("cuda"):
        return int(torch.cuda.max_memory_allocated(device))
    try:
        import resource
    except ImportError:  # Windows does not tell
        return None
    unit = 1 if platform.system() == "Darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def _device_name(device: str) -> str:
    if device.startswith("cuda"):
        return str(torch.cuda.get_device_name(device))
    return device


# -- what fits ----------------------------------------------------------------------------------


def trained_on(manifest: Manifest, checkpoint_name: str) -> bool:
    """Whether it is the very data set, with the same splits, that a checkpoint was trained on."""
    training = checkpoint.read_facts(checkpoint.find(checkpoint_name)).training
    then, now = str(training.get("data_hash")), run.data_hash(manifest)
    return then.partition("-")[0] == now.partition("-")[0]  # whatever the labels' texts are


def seen_in_training(split: str, manifest: Manifest, checkpoint_name: str) -> bool:
    """Whether a checkpoint was trained on this split of a data set of this name."""
    training = checkpoint.read_facts(checkpoint.find(checkpoint_name)).training
    names = training.get("data")  # several where sets were put together
    if manifest.title not in (names if isinstance(names, list) else [names]):
        return False
    return split in {"train", "all"} or (split == "val" and bool(training.get("all_clips")))


def fitting_labels(manifest: Manifest, known: LabelSet | None, checkpoint_name: str) -> LabelSet:
    """The labels to choose among: the checkpoint's, if the data set's are among them.

    They are the same by name, text or another phrasing. PevlError shows the first that is not, or
    that has another number: where labels are numbers (a pickle's), the same names in another order
    are another label file, by which numbers mean other actions.
    """
    if known is None:
        return manifest.labels
    if manifest.poses == manifest.source and {*manifest.labels.names} == {*known.names}:
        for i, (theirs, ours) in enumerate(zip(manifest.labels.names, known.names, strict=True)):
            if theirs != ours:
                raise PevlError(
                    f"label {i} is '{theirs}' in {manifest.source.name} and '{ours}' in "
                    f"{checkpoint_name}: the same label file is needed for both."
                )
    used = {item.label for item in manifest.items}
    for i, name in enumerate(manifest.labels.names):
        if name in used and known.find(name) is None:
            last = min(i, len(known) - 1)
            raise PevlError(
                f"label {i} of {manifest.name or manifest.source}, '{name}', is none of the "
                f"{len(known)} labels of {checkpoint_name} (whose label {last} is "
                f"'{known.names[last]}')."
            )
    return known
