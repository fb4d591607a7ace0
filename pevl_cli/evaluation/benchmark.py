"""Measure a checkpoint on a data set: accuracy, calibration, cost and speed."""

from __future__ import annotations

import os
import platform
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from itertools import islice
from typing import Any

import numpy as np
import torch

from pevl_cli import __version__
from pevl_cli.data.clips import Clips, LeftOut
from pevl_cli.data.loader import Loader, Unreadable, worker_count, worker_errors
from pevl_cli.data.manifest import SPLITS, Item, Manifest
from pevl_cli.data.samples import Sample
from pevl_cli.errors import PevlError, UsageError
from pevl_cli.evaluation.cost import compute_cost
from pevl_cli.evaluation.outcome import Outcome, clip_results
from pevl_cli.evaluation.speed import measure_speed
from pevl_cli.labels import LabelSet
from pevl_cli.metrics import accuracy, intervals, reliability
from pevl_cli.model import checkpoint
from pevl_cli.model.calibration import Calibration
from pevl_cli.model.sgmc import Similarities
from pevl_cli.pose.files import PoseStore
from pevl_cli.recognise import Recogniser
from pevl_cli.training.run_folder import data_hash

Listener = Callable[[int, int], None]  # finished clips, all clips


def benchmark(
    manifest: Manifest,
    recogniser: Recogniser,
    checkpoint_name: str,
    poses: PoseStore | None = None,
    split: str | None = None,
    views: int | None = None,
    listener: Listener = lambda done, total: None,
    batch: int = 16,
    workers: int | None = None,
    timed: bool = False,
) -> Outcome:
    """Measure a split; ``split`` None: the split of the published results.

    ``views``: crops of each clip, 1 or 3; None: the model's. ``batch``: clips per forward pass,
    fewer when memory is too small. ``workers``: loader processes that decode clips and detect
    joints; None: see `worker_count`. Neither changes the results. ``timed``: also measure the
    speed.

    PevlError when the labels do not fit, no clip can be read, or a loader process is killed;
    UsageError for an unknown split, and for a pose-only model without poses and detector.
    """
    config = recogniser.model.config
    if not config.video and recogniser.detector is None and poses is None:
        raise UsageError(
            f"{checkpoint_name}: this model uses poses only; it needs a detector or --poses."
        )
    views = views or config.views_at_test
    split, listed = choose_split(manifest, checkpoint_name, split)
    labels = choose_labels(manifest, recogniser.labels, checkpoint_name)
    recogniser.encode(labels)  # before the clips are read: the labels may be rejected
    items = [i for i in listed if i.on_disk or (poses is not None and poses.find(i.name))]
    clips = Clips(_relabelled(items, labels), labels.names, config, recogniser.detector, 0, poses)
    with worker_errors():
        results = list(_match_clips(recogniser, labels, clips, views, batch, workers, listener))
    pairs = list(zip(items, results, strict=True))
    left_out = [LeftOut(item, r.reason) for item, r in pairs if isinstance(r, Unreadable)]
    readable = [(item, r) for item, r in pairs if isinstance(r, Similarities)]
    if not readable:
        reason = f"; the first: {left_out[0].reason}" if left_out else " and none has poses"
        raise PevlError(
            f"{manifest.source}: none of the {len(listed)} clips of split '{split}' can be read"
            f"{reason}"
        )
    similarities = Similarities.concatenate([r for _, r in readable])
    if similarities.values.isinf().any():
        raise PevlError(
            f"{checkpoint_name}: the model gives infinite similarities; its weights are damaged."
        )
    measured = [item for item, _ in readable]
    speed = measure_speed(recogniser, labels, measured, poses, views) if timed else None
    provenance = _provenance(manifest, recogniser, checkpoint_name, poses)
    figures = _figures(manifest, recogniser, labels, measured, similarities)
    return Outcome(
        dataset=manifest.title,
        split=split,
        checkpoint=checkpoint_name,
        labels=list(labels.names),
        left_out=left_out,
        incomplete=manifest.incomplete(measured, SPLITS if split == "all" else (split,)),
        views=views,
        cost=compute_cost(config, labels),
        speed=speed,
        provenance=provenance,
        **figures,
    )


def _relabelled(items: Sequence[Item], labels: LabelSet) -> list[Item]:
    """The items with their labels replaced by the equivalent names in ``labels``."""
    known = {name: labels.find(name) or 0 for name in {item.label for item in items}}
    return [replace(item, label=labels.names[known[item.label]]) for item in items]


def _figures(
    manifest: Manifest,
    recogniser: Recogniser,
    labels: LabelSet,
    items: Sequence[Item],
    similarities: Similarities,
) -> dict[str, Any]:
    """The fields of an `Outcome` that are computed from the similarities of N items."""
    values = similarities.values
    true = [labels.names.index(item.label) for item in _relabelled(items, labels)]
    scores = recogniser.scores(similarities, labels)
    names = clip_names(manifest.items)
    clips = clip_results(values, scores, true, items, [names[id(i)] for i in items], labels)
    groups = [item.group for item in items]
    as_trained = Calibration(temperature=float(recogniser.model.temperature.detach()))
    return {
        "accuracy": accuracy(values, true, labels.names),
        "intervals": intervals(np.array([c.correct for c in clips]), true, groups),
        "groups": len({group for group in groups if group}),
        "calibration": recogniser.calibration,
        "reliability": reliability(scores, true),
        "error_as_trained": reliability(as_trained.scores(values), true).error,
        "clips": clips,
    }


def _provenance(
    manifest: Manifest, recogniser: Recogniser, checkpoint_name: str, poses: PoseStore | None
) -> dict[str, Any]:
    """The versions, hashes and settings that are needed to repeat the measurement."""
    detector = recogniser.detector
    training = checkpoint.read_facts(checkpoint.find(checkpoint_name)).training
    return {
        "pevl": __version__,
        "torch": torch.__version__,
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        "device": _device_name(recogniser.device),
        "precision": recogniser.precision,
        "pose_weights": None if detector is None else detector.digest(),
        "poses": None if poses is None else poses.digest(),
        "data_hash": data_hash(manifest),
        "config": recogniser.model.config.name,
        "training": {key: training.get(key) for key in ("data", "seed", "epochs_done")},
    }


def _device_name(device: str) -> str:
    return str(torch.cuda.get_device_name(device)) if device.startswith("cuda") else device


# -- matching of the clips ------------------------------------------------------------------------


def _match_clips(
    recogniser: Recogniser,
    labels: LabelSet,
    clips: Clips,
    views: int,
    batch: int,
    workers: int | None,
    listener: Listener,
) -> Iterator[Similarities | Unreadable]:
    """Yield each clip's similarities with the labels, or the reason why it cannot be read."""
    count = worker_count(workers, recogniser.device)
    samples = iter(Loader(clips.__getitem__, range(len(clips)), count, recogniser.detector))
    done = 0
    while group := list(islice(samples, batch)):
        readable = [s for s in group if isinstance(s, Sample)]
        rows = iter(_match(recogniser, readable, labels, views, batch) if readable else ())
        for sample in group:
            done += 1
            listener(done, len(clips))
            yield next(rows) if isinstance(sample, Sample) else sample


def _match(
    recogniser: Recogniser, samples: Sequence[Sample], labels: LabelSet, views: int, batch: int
) -> list[Similarities]:
    """The similarities of each sample; halves ``batch`` when memory is too small."""
    while True:
        try:
            return recogniser.match(samples, labels, views, batch).split()
        except RuntimeError as error:
            no_memory = isinstance(error, torch.OutOfMemoryError)
            if not no_memory and "allocate memory" not in str(error):
                raise
            if batch == 1:
                raise PevlError(
                    "the memory is too small for one clip; hint: try --precision bf16 or "
                    "--device cpu."
                ) from error
        batch = max(batch // 2, 1)


# -- clips, splits and labels -------------------------------------------------------------------


def clip_names(items: Sequence[Item]) -> dict[int, str]:
    """A unique name for each item: `id` of the item -> name. Equal names get a suffix or number.

    Example: three items named "a", of a.mp4, a.mov and a.mov, become "a.mp4", "a.mov" and
    "a.mov #2".
    """
    plain = [item.name or str(item.path) for item in items]
    count, used = Counter(plain), Counter[str]()
    names = {}
    for item, name in zip(items, plain, strict=True):
        name = name + item.path.suffix if count[name] > 1 else name
        used[name] += 1
        names[id(item)] = f"{name} #{used[name]}" if used[name] > 1 else name
    return names


def choose_split(
    manifest: Manifest, checkpoint_name: str, split: str | None
) -> tuple[str, list[Item]]:
    """The split to measure and its clips. ``split`` None: the split of the published results.

    "all" if the data set has no splits and the checkpoint was not trained on it. UsageError for a
    split without clips.
    """
    if split is None and manifest.split_notes and not trained_on(manifest, checkpoint_name):
        return "all", list(manifest.items)
    present = (name for name in (manifest.published_split, "val") if manifest.in_split(name))
    split = split or next(present, manifest.published_split)
    items = manifest.in_split(split)
    if not items:
        known = ", ".join(sorted({item.split for item in manifest.items}))
        raise UsageError(f"{manifest.source}: has no split '{split}'; it has {known}.")
    return split, items


def trained_on(manifest: Manifest, checkpoint_name: str) -> bool:
    """Whether a checkpoint was trained on the same clips in the same splits."""
    training = checkpoint.read_facts(checkpoint.find(checkpoint_name)).training
    hashes = str(training.get("data_hash")), data_hash(manifest)
    trained_clips, clips = (h.partition("-")[0] for h in hashes)  # without the labels' hash
    return trained_clips == clips


def seen_in_training(split: str, manifest: Manifest, checkpoint_name: str) -> bool:
    """Whether a checkpoint was trained on this split of a data set with this name."""
    training = checkpoint.read_facts(checkpoint.find(checkpoint_name)).training
    names = training.get("data")  # a list for several data sets
    if manifest.title not in (names if isinstance(names, list) else [names]):
        return False
    return split in {"train", "all"} or (split == "val" and bool(training.get("all_clips")))


def choose_labels(manifest: Manifest, known: LabelSet | None, checkpoint_name: str) -> LabelSet:
    """The labels to choose from: the checkpoint's labels ``known``; if None, the data set's labels.

    The data set's labels must be in ``known``, by name, text or other phrasing. Labels of a pickle
    are numbers and must also have the same order. PevlError gives the first label that does not
    fit.
    """
    if known is None:
        return manifest.labels
    if manifest.poses == manifest.source and {*manifest.labels.names} == {*known.names}:
        pairs = zip(manifest.labels.names, known.names, strict=True)
        for i, (dataset_label, checkpoint_label) in enumerate(pairs):
            if dataset_label != checkpoint_label:
                raise PevlError(
                    f"label {i} is '{dataset_label}' in {manifest.source.name} and "
                    f"'{checkpoint_label}' in {checkpoint_name}; both need the same label file."
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
