"""Training: the paper's recipe for models on CLIP, a short one for `mini` from scratch.

Lightning Fabric is the engine: devices, precision, processes, trackers. It was chosen over
Accelerate because its gathering keeps gradients (the contrast needs all processes' clips), it
starts the processes of one machine itself, and it keeps no state outside its own object.

Knows nothing about consoles: progress goes to a callback, results come back as facts.
"""

from __future__ import annotations

import os
import platform
from collections.abc import Sequence

import numpy as np
import torch
from lightning_fabric import Fabric

from pevl_cli import __version__
from pevl_cli.data.clips import GIGABYTE, Clips, LeftOut, write_left_out
from pevl_cli.data.dataset import read_data
from pevl_cli.data.manifest import Item, Manifest
from pevl_cli.errors import PevlError
from pevl_cli.hardware import choose_device
from pevl_cli.model import checkpoint
from pevl_cli.model.pevl import PeVL
from pevl_cli.pose.detector import PoseDetector
from pevl_cli.pose.files import PoseStore, read_poses
from pevl_cli.pose.skeletons import LAYOUTS, to_layout
from pevl_cli.training import run_folder as run
from pevl_cli.training.build import make_model
from pevl_cli.training.engine import _fabric
from pevl_cli.training.settings import TrainSettings, for_pose_only
from pevl_cli.training.trainer import Event, Listener, Result, Trainer, _nobody

# More clips than this are not all decoded before training begins; see `data.check`.
DECODED_AT_MOST = 2000


def train(
    settings: TrainSettings,
    listener: Listener = lambda event: None,
    resume: bool = False,
    manifest: Manifest | None = None,
    poses: PoseStore | None = None,
) -> Result:
    """Train a model and write `best/`, `last/` and the facts of the run into its folder.

    ``resume`` continues the run in that folder; ``manifest`` and ``poses`` are what the settings
    name, if that was read before. KeyboardInterrupt ends training early and still
    leaves both checkpoints. PevlError says why it cannot be done.
    """
    manifest = manifest or read_data(settings.data, settings.run.seed)
    poses = poses or stored_poses_of(settings, manifest)
    settings = fitted(settings, manifest, poses)
    detector = None
    config = settings.model
    if poses is None and (config.pose or config.crop != "full"):
        detector = PoseDetector(
            settings.run.pose_weights, device=choose_device(settings.run.device)
        )
        detector.digest()  # weights that cannot be had are told once, not for each clip
    folder = settings.folder
    try:  # told now, not after an hour
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise PevlError(f"{folder}: not a folder to write to ({error.strerror}).") from error
    if resume and not run.has_state(folder):
        raise PevlError(f"{folder}: there is no run to continue in it (no {run.STATE}).")
    model, base = make_model(settings, manifest.labels)
    fabric = _fabric(settings)
    fabric.launch()
    if fabric.global_rank:
        listener = _nobody
    try:
        return _train(settings, manifest, poses, detector, model, base, fabric, listener, resume)
    except BaseException:
        # The processes started for this run would wait for this one.
        for process in getattr(fabric.strategy.launcher, "procs", ()):
            process.terminate()
        raise


def _train(
    settings: TrainSettings,
    manifest: Manifest,
    poses: PoseStore | None,
    detector: PoseDetector | None,
    model: PeVL,
    base: checkpoint.Base | None,
    fabric: Fabric,
    listener: Listener,
    resume: bool,
) -> Result:
    """What each process does once it knows the others."""
    folder = settings.folder
    train_clips, val_clips, left_out = _clips(settings, manifest, poses, detector, fabric, listener)
    torch.manual_seed(settings.run.seed)
    bad = {clip.item for clip in left_out}
    readable = [i for i in usable(manifest.items, poses) if i not in bad]
    incomplete = manifest.incomplete(readable, ("train", "val"))
    facts = _facts(settings, manifest, poses, detector, train_clips, val_clips)
    facts["incomplete"] = incomplete
    trainer = Trainer(model, manifest.labels, settings, fabric, listener)
    if resume:
        trainer.resume(folder)
    elif fabric.is_global_zero:
        run.archive_state(folder)
    if fabric.is_global_zero:
        run.write_facts(folder, settings, facts)
    try:
        result = trainer.fit(train_clips, val_clips, folder, base, facts)
    except RuntimeError as error:
        full = isinstance(error, torch.OutOfMemoryError)
        if not full and "allocate memory" not in str(error):  # so the CPU's allocator says it
            raise
        raise PevlError(trainer.how_to_need_less_memory()) from error
    result.left_out, result.incomplete = left_out, incomplete
    return result


def stored_poses_of(settings: TrainSettings, manifest: Manifest) -> PoseStore | None:
    """The poses found before: those that are named, else those that come with the data set."""
    named = settings.data.poses
    source = named or (None if settings.run.pose_weights is not None else manifest.poses)
    if source is None or not settings.model.pose:
        return None
    return read_poses(source, settings.data.layout)


def fitted(settings: TrainSettings, manifest: Manifest, poses: PoseStore | None) -> TrainSettings:
    """Settings with a model that takes what there is: no video where none is on disk, and joints
    of the recorded poses' layout where the usual one cannot be had from it.
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
            nobody = np.zeros((1, len(LAYOUTS[layout].names), 3))
            to_layout(nobody, layout, config.layout, config.allow_missing_joints)
        except PevlError:
            if settings.init is not None:
                raise
            joints = len(LAYOUTS[layout].names)
            config = config.model_copy(update={"layout": layout, "joints": joints})
    return settings.model_copy(update={"model": config})


def without_poses(items: Sequence[Item], poses: PoseStore | None) -> int:
    """How many clips with a video have no poses among those that were found before."""
    if poses is None:
        return 0
    return sum(item.on_disk and poses.find(item.name) is None for item in items)


def usable(items: Sequence[Item], poses: PoseStore | None) -> list[Item]:
    """Those of which there is a video, or poses."""
    return [i for i in items if i.on_disk or (poses is not None and poses.find(i.name) is not None)]


def _clips(
    settings: TrainSettings,
    manifest: Manifest,
    poses: PoseStore | None,
    detector: PoseDetector | None,
    fabric: Fabric,
    listener: Listener,
) -> tuple[Clips, Clips, list[LeftOut]]:
    """Training and validation clips, those that cannot be read left out."""
    data, names = settings.data, manifest.labels.names
    splits = [
        Clips(
            usable(manifest.of(split), poses),
            names,
            settings.model,
            detector,
            data.cache_gb * GIGABYTE,
            poses,
        )
        for split in ("train", "val")
    ]
    total = sum(len(clips) for clips in splits)
    decode = data.check == "decode" or (data.check == "auto" and total <= DECODED_AT_MOST)
    left_out: list[LeftOut] = []
    # One process of a machine looks, the others find its entries in the cache.
    with fabric.rank_zero_first(local=True):
        done = 0
        for clips in splits:
            count = len(clips)
            before = done
            left_out += clips.check(
                lambda i, _: listener(Event("checking", before + i, total)),  # noqa: B023
                decode=decode,
            )
            done += count
    train_clips, val_clips = splits
    if fabric.is_global_zero:
        write_left_out(settings.folder / "left_out.csv", left_out)
    if left_out and data.strict:
        raise PevlError(
            f"{manifest.source}: {len(left_out)} of {total} clips cannot be read, the first: "
            f"{left_out[0].reason} All are in left_out.csv; without --strict they are left out."
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
    manifest: Manifest,
    poses: PoseStore | None,
    detector: PoseDetector | None,
    train_clips: Clips,
    val_clips: Clips,
) -> dict[str, object]:
    """What a checkpoint tells of its making."""
    return {
        "pevl": __version__,
        "torch": torch.__version__,
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, {settings.run.device}",
        "data": manifest.title,
        "data_hash": run.data_hash(manifest),
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
    }
