"""Train a model from settings: read the data, build the model, check the clips, train.

Reports progress to a callback and returns a `Result`; prints nothing.
"""

from __future__ import annotations

import os
import platform
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from lightning_fabric import Fabric

from pevl_cli import __version__
from pevl_cli.data.clips import GIBIBYTE, Clips, LeftOut, readable_items, write_left_out
from pevl_cli.data.dataset import read_data
from pevl_cli.data.loader import worker_count, worker_errors
from pevl_cli.data.manifest import Item, Manifest
from pevl_cli.errors import PevlError
from pevl_cli.pose.detector import PoseDetector
from pevl_cli.pose.files import PoseStore, read_poses
from pevl_cli.pose.skeletons import LAYOUTS, to_layout
from pevl_cli.training import run_folder
from pevl_cli.training.build import make_model
from pevl_cli.training.engine import local_processes, make_fabric, merge_dicts
from pevl_cli.training.plan import memory_hints
from pevl_cli.training.progress import Event, Listener, Result, ignore_event
from pevl_cli.training.settings import TrainSettings, for_pose_only
from pevl_cli.training.state import TrainState
from pevl_cli.training.trainer import Trainer

# With `data.check` auto: clips are decoded before training if there are at most this many.
MAX_DECODED_CLIPS = 2000


@dataclass(frozen=True)
class SampleSource:
    """The sources of samples.

    ``detector`` is None for stored poses, and for a model without pose.
    """

    manifest: Manifest
    poses: PoseStore | None
    detector: PoseDetector | None


def train(
    settings: TrainSettings,
    listener: Listener = ignore_event,
    resume: bool = False,
    manifest: Manifest | None = None,
    poses: PoseStore | None = None,
) -> Result:
    """Train a model and write `best/`, `last/`, settings and metadata into the run's folder.

    ``resume``: continue the run in that folder. ``manifest`` and ``poses``: the data set and stored
    poses of the settings, if already read. KeyboardInterrupt ends training early; both checkpoints
    are still written. PevlError when data, settings or folder do not allow training. Seeds torch's
    global random generator.
    """
    manifest = manifest or read_data(settings.data, settings.run.seed)
    poses = poses or read_stored_poses(settings, manifest)
    settings = adapt_settings(settings, manifest, poses)
    source = SampleSource(manifest, poses, make_detector(settings, poses))
    folder = settings.folder
    if resume and not run_folder.has_state(folder):
        raise PevlError(f"{folder}: contains no run to continue (no {run_folder.STATE}).")
    try:  # before anything slow
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise PevlError(f"{folder}: this folder cannot be created ({error.strerror}).") from error
    try:
        fabric = make_fabric(settings)  # before CLIP's weights are downloaded
        model, base = make_model(settings, manifest.labels)
    except PevlError:
        with suppress(OSError):  # only an empty folder is removed
            folder.rmdir()
        raise
    fabric.launch()
    if source.detector is not None:
        # Each process, with its loader processes, detects on its own GPU.
        source.detector.device = str(fabric.device)
    if fabric.global_rank:
        listener = ignore_event
    try:
        train_clips, val_clips, left_out = _check_clips(settings, source, fabric, listener)
        torch.manual_seed(settings.run.seed)
        facts = _facts(settings, source, train_clips, val_clips, left_out)
        trainer = Trainer(model, manifest.labels, settings, fabric, listener, base, facts)
        result = _fit(trainer, train_clips, val_clips, resume)
    except BaseException:
        # Else the other processes of this run would wait forever.
        for process in getattr(fabric.strategy.launcher, "procs", ()):
            process.terminate()
        raise
    result.left_out, result.incomplete = left_out, str(facts["incomplete"])
    return result


def make_detector(settings: TrainSettings, poses: PoseStore | None) -> PoseDetector | None:
    """The detector of the settings, on no particular device; None if no poses are detected."""
    config, run = settings.model, settings.run
    if poses is not None or not (config.pose or config.crop != "full"):
        return None
    detector = PoseDetector(run.pose_weights)
    detector.digest()  # raise one error for missing weights, not one per clip
    return detector


def _fit(trainer: Trainer, train_clips: Clips, val_clips: Clips, resume: bool) -> Result:
    """Load the state or begin a new run, write its metadata, and train."""
    settings, fabric = trainer.settings, trainer.fabric
    state = None
    if resume:
        with fabric.rank_zero_first(local=True):  # the first process may rename a damaged state
            state = TrainState.load(settings.folder)
        state.check_settings(run_folder.fixed_settings(settings))
        state.check_conditions(trainer.conditions(train_clips))
    if fabric.is_global_zero:
        if state is None:
            run_folder.archive_state(settings.folder)
        run_folder.write_facts(settings.folder, settings, trainer.facts)
    try:
        with worker_errors():
            return trainer.fit(train_clips, val_clips, state)
    except RuntimeError as error:
        full = isinstance(error, torch.OutOfMemoryError)
        if not full and "allocate memory" not in str(error):  # message of the CPU allocator
            raise
        hints = memory_hints(settings, fabric.world_size, trainer.precision)
        raise PevlError(hints) from error


def read_stored_poses(settings: TrainSettings, manifest: Manifest) -> PoseStore | None:
    """The stored poses of the settings, otherwise those of the data set, otherwise None.

    PevlError when they cannot be read.
    """
    named = settings.data.poses
    source = named or (None if settings.run.pose_weights is not None else manifest.poses)
    if source is None or not settings.model.pose:
        return None
    return read_poses(source, settings.data.layout)


def adapt_settings(
    settings: TrainSettings, manifest: Manifest, poses: PoseStore | None
) -> TrainSettings:
    """The settings with a model that fits the data.

    Without video if no video is on disk; with the layout of the stored poses if they cannot be
    converted to the model's layout. PevlError when neither videos nor poses are on disk, or the
    layout of the checkpoint ``init`` does not fit the poses.
    """
    config = settings.model
    if not manifest.has_videos:
        if poses is None:
            raise PevlError(
                f"{manifest.source}: none of its {len(manifest.items):,} clips has a video on disk"
                + (", and --no-pose leaves no poses." if manifest.poses else ", nor poses.")
            )
        if settings.init is None and config.video:
            config = for_pose_only(config)
    if poses is not None and len(poses):
        layout = poses.layout()
        try:
            unseen = np.zeros((1, len(LAYOUTS[layout].names), 3))
            to_layout(unseen, layout, config.layout, config.allow_missing_joints)
        except PevlError:
            if settings.init is not None:
                raise
            joints = len(LAYOUTS[layout].names)
            config = config.model_copy(update={"layout": layout, "joints": joints})
    return settings.model_copy(update={"model": config})


def count_without_poses(items: Sequence[Item], poses: PoseStore | None) -> int:
    """Number of clips with a video but without stored poses; 0 if ``poses`` is None."""
    if poses is None:
        return 0
    return sum(item.on_disk and poses.find(item.name) is None for item in items)


def _check_clips(
    settings: TrainSettings, source: SampleSource, fabric: Fabric, listener: Listener
) -> tuple[Clips, Clips, list[LeftOut]]:
    """The readable training and validation clips, and the unreadable clips.

    Each process checks its part of the clips; all get the same result.
    """
    data, manifest = settings.data, source.manifest
    splits = [
        Clips(
            readable_items(manifest.in_split(split), source.poses),
            manifest.labels.names,
            settings.model,
            source.detector,
            data.cache_gb * GIBIBYTE,
            source.poses,
        )
        for split in ("train", "val")
    ]
    total = sum(len(clips) for clips in splits)
    decode = data.check == "decode" or (data.check == "auto" and total <= MAX_DECODED_CLIPS)
    left_out: list[LeftOut] = []
    workers = worker_count(data.workers, fabric.device.type, local_processes(settings))
    done = 0
    for clips in splits:
        count, before = len(clips), done
        left_out += clips.check(
            lambda i, _: listener(Event("checking", before + i, total)),  # noqa: B023
            workers,
            decode,
            *(fabric.global_rank, fabric.world_size, partial(merge_dicts, fabric)),
        )
        done += count
    train_clips, val_clips = splits
    if fabric.is_global_zero:
        write_left_out(settings.folder / "left_out.csv", left_out)
    if left_out and data.strict:
        raise PevlError(
            f"{manifest.source}: {len(left_out)} of {total} clips cannot be read, the first: "
            f"{left_out[0].reason} left_out.csv lists all; without --strict they are left out."
        )
    if data.shots is not None:
        train_clips.keep_shots(data.shots, settings.run.seed)
    if len(set(train_clips.labels)) < 2:
        raise PevlError(
            f"{manifest.source}: fewer than two classes have readable training clips; "
            f"{len(left_out)} could not be read"
            + (f", the first: {left_out[0].reason}" if left_out else ".")
        )
    return train_clips, val_clips, left_out


def _facts(
    settings: TrainSettings,
    source: SampleSource,
    train_clips: Clips,
    val_clips: Clips,
    left_out: Sequence[LeftOut],
) -> dict[str, object]:
    """The metadata of the training for the checkpoint and run.json."""
    manifest, poses, detector = source.manifest, source.poses, source.detector
    unreadable = {clip.item for clip in left_out}
    readable = [i for i in readable_items(manifest.items, poses) if i not in unreadable]
    return {
        "pevl": __version__,
        "torch": torch.__version__,
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, {settings.run.device}",
        "data": manifest.title,
        "data_hash": run_folder.data_hash(manifest),
        "train_clips": len(train_clips),
        "val_clips": len(val_clips),
        "init": settings.init,
        "optim": settings.optim.model_dump(),
        "augment": settings.augment.model_dump(),
        "seed": settings.run.seed,
        "shots": settings.data.shots,
        "all_clips": settings.data.all_clips,
        "hold_out": settings.data.hold_out,
        "pose_weights": detector.digest() if detector is not None else None,
        "poses": poses.digest() if poses is not None else None,
        "incomplete": manifest.incomplete(readable, ("train", "val")),
    }
