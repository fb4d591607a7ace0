"""Training: the paper's recipe for models on CLIP, a short one for `mini` from scratch.

Lightning Fabric is the engine: devices, precision, processes, trackers. It was chosen over
Accelerate because its gathering keeps gradients (the contrast needs all processes' clips), it
starts the processes of one machine itself, and it keeps no state outside its own object.

Knows nothing about consoles: progress goes to a callback, results come back as facts.
"""

from __future__ import annotations

import hashlib
import logging
import os
import platform
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning_fabric import Fabric
from lightning_fabric.plugins import MixedPrecision
from lightning_fabric.plugins.environments import LightningEnvironment
from lightning_fabric.strategies import DDPStrategy
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.optim.lr_scheduler import CosineAnnealingLR, LinearLR, LRScheduler, SequentialLR
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils.data import DataLoader

from pevl_cli import __version__, run
from pevl_cli.clips import (
    GIGABYTE,
    Clips,
    LeftOut,
    Order,
    Variations,
    quiet_worker,
    write_left_out,
)
from pevl_cli.datasets.manifest import Item, Manifest
from pevl_cli.errors import PevlError
from pevl_cli.evaluate import (
    encode_labels,
    looks_both_ways,
    matches,
    prototypes,
    summed_videos,
)
from pevl_cli.hardware import choose_device, has_bf16
from pevl_cli.labels import LabelSet
from pevl_cli.metrics import Accuracy, Fitted, accuracy, fit_scores
from pevl_cli.model import checkpoint
from pevl_cli.model.clip import PoseStem, load_clip, state_digest
from pevl_cli.model.pevl import Batch, Features, PeVL
from pevl_cli.model.sgmc import Matches
from pevl_cli.pose import BUNDLED_WEIGHTS, PoseDetector
from pevl_cli.recorded import RecordedPoses, read_recorded
from pevl_cli.samples import Sample, collate
from pevl_cli.settings import (
    Augmentation,
    TrainSettings,
    for_poses_alone,
    load_settings,
    read_data,
)
from pevl_cli.skeletons import LAYOUTS, to_layout
from pevl_cli.yolo import pose_network_layers

# More clips than this are not all decoded before training begins; see `data.check`.
DECODED_AT_MOST = 2000
# Clips of each label from which is learnt what it looks like; all together about as many as are
# validated, so that it takes no longer.
PROTOTYPE_CLIPS = 8
DEFAULT_CLIP = {"vit-b-16": "ViT-B-16-quickgelu:openai", "vit-l-14": "ViT-L-14-quickgelu:openai"}


@dataclass(frozen=True)
class Event:
    """Where training stands, after a step or an epoch."""

    stage: str  # "checking", "training", "validating"
    done: int
    total: int
    epoch: int = 0
    loss: float | None = None
    learning_rate: float | None = None
    train_top1: float | None = None
    wait: float | None = None  # share of the time that was spent waiting for clips
    val: Accuracy | None = None


@dataclass
class Result:
    folder: Path
    train_clips: int = 0
    val_clips: int = 0
    epochs: int = 0
    best_epoch: int = 0
    best: Accuracy | None = None
    last: Accuracy | None = None
    seconds: float = 0.0
    wait: float = 0.0  # share of the training time that was spent waiting for clips
    interrupted: bool = False
    stopped_early: bool = False
    left_out: list[LeftOut] = field(default_factory=list)
    incomplete: str = ""  # how much of the data set was there, if not all


Listener = Callable[[Event], None]


def train(
    settings: TrainSettings,
    listener: Listener = lambda event: None,
    resume: bool = False,
    manifest: Manifest | None = None,
    poses: RecordedPoses | None = None,
) -> Result:
    """Train a model and write `best/`, `last/` and the facts of the run into its folder.

    ``resume`` continues the run in that folder; ``manifest`` and ``poses`` are what the settings
    name, if that was read before. KeyboardInterrupt ends training early and still
    leaves both checkpoints. PevlError says why it cannot be done.
    """
    manifest = manifest or read_data(settings.data, settings.run.seed)
    poses = poses or recorded_poses(settings, manifest)
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
    poses: RecordedPoses | None,
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
        run.put_aside(folder)
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


def recorded_poses(settings: TrainSettings, manifest: Manifest) -> RecordedPoses | None:
    """The poses found before: those that are named, else those that come with the data set."""
    named = settings.data.poses
    source = named or (None if settings.run.pose_weights is not None else manifest.poses)
    if source is None or not settings.model.pose:
        return None
    return read_recorded(source, settings.data.layout)


def fitted(
    settings: TrainSettings, manifest: Manifest, poses: RecordedPoses | None
) -> TrainSettings:
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
            config = for_poses_alone(config)
    if poses is not None and len(poses):
        layout = poses.layout()
        try:
            nobody = np.zeros((1, len(LAYOUTS[layout].names), 3))
            to_layout(nobody, layout, config.layout, config.lacking_joints)
        except PevlError:
            if settings.init is not None:
                raise
            joints = len(LAYOUTS[layout].names)
            config = config.model_copy(update={"layout": layout, "joints": joints})
    return settings.model_copy(update={"model": config})


def without_poses(items: Sequence[Item], poses: RecordedPoses | None) -> int:
    """How many clips with a video have no poses among those that were found before."""
    if poses is None:
        return 0
    return sum(item.there and poses.find(item.name) is None for item in items)


def usable(items: Sequence[Item], poses: RecordedPoses | None) -> list[Item]:
    """Those of which there is a video, or poses."""
    return [i for i in items if i.there or (poses is not None and poses.find(i.name) is not None)]


def _nobody(_: Event) -> None:
    return None


def make_model(settings: TrainSettings, labels: LabelSet) -> tuple[PeVL, checkpoint.Base | None]:
    """The model to train: new, on CLIP's weights, or from the checkpoint ``init``."""
    config = settings.model
    if not config.text:
        config = config.model_copy(update={"classes": len(labels)})
    torch.manual_seed(settings.run.seed)
    if settings.init is not None:
        source = checkpoint.find(settings.init)
        old, facts = checkpoint.load(source, settings.clip)
        model = PeVL(config)
        state = old.state_dict()
        wanted = model.state_dict()
        new = {"class_vectors"}  # fixed classes have nothing to do with other ones
        # A stream that it was trained without starts from nothing, and so does another stem.
        added = set()
        if config.video and not old.config.video:
            added |= {"video_adapters", "video_time", "p2v", "v2p"}
        if config.pose and not old.config.pose:
            added |= {"pose_embedding", "pose_adapters", "p2v", "v2p"}
        if config.looks_at_body and not old.config.looks_at_body:
            added.add("visual.body")
        stem = {k for k in state if k.startswith("visual.conv1.")}
        if config.stem != old.config.stem or not stem:
            state = {k: v for k, v in state.items() if k not in stem}
            _fill_stem(model)
            added.add("visual.conv1")
        for name, value in wanted.items():
            fresh = name in new or (
                name not in state and name.startswith(tuple(f"{part}." for part in added))
            )
            if not fresh and (name not in state or state[name].shape != value.shape):
                raise PevlError(
                    f"{source}: cannot be started from with these settings, as weight '{name}' "
                    "is absent or of another size in it; leave the model's sizes as they are."
                )
        model.load_state_dict({k: v for k, v in state.items() if k in wanted.keys() - new}, False)
        return model, facts.base
    if not config.frozen_base:
        model = PeVL(config)
        _fill_stem(model)
        return model, None
    clip = settings.clip or DEFAULT_CLIP[config.name]
    state, config, digest = load_clip(clip, config)
    model = PeVL(config)
    model.load_state_dict(state, strict=False)  # its names were checked by load_clip
    return model, checkpoint.Base(source=clip, digest=digest)


def _fill_stem(model: PeVL) -> None:
    """What a new model's stem knows of bodies is that of the package's pose network."""
    if isinstance(model.visual.conv1, PoseStem):
        known = pose_network_layers(BUNDLED_WEIGHTS)
        model.visual.conv1.layers.load_state_dict(known.state_dict())


def _frozen_stem(model: PeVL) -> str | None:
    """Hash of what a pose stem does not learn, which a state does not keep."""
    stem = model.visual.conv1
    return state_digest(stem.layers.state_dict()) if isinstance(stem, PoseStem) else None


def settings_for(
    config: str | Path | None,
    given: Mapping[str, Any] | None = None,
    assignments: Sequence[str] = (),
) -> TrainSettings:
    """`load_settings`, with the model of the checkpoint that training starts from, if any."""
    settings = load_settings(config, given, assignments)
    if settings.init is None:
        return settings
    base = checkpoint.read_facts(checkpoint.find(settings.init)).model
    return load_settings(config, given, assignments, base)


def _clips(
    settings: TrainSettings,
    manifest: Manifest,
    poses: RecordedPoses | None,
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
        train_clips.few(data.shots, settings.run.seed)
    if len(set(train_clips.labels)) < 2:
        raise PevlError(
            f"{manifest.source}: fewer than two classes have readable training clips; "
            f"{len(left_out)} could not be read"
            + (f", the first: {left_out[0].reason}" if left_out else ".")
        )
    return train_clips, val_clips, left_out


def _fabric(settings: TrainSettings) -> Fabric:
    where = settings.run
    logging.getLogger("lightning_fabric").setLevel(logging.ERROR)  # its greeting
    warnings.filterwarnings("ignore", module="lightning_fabric")
    device = choose_device(where.device)
    accelerator, _, index = device.partition(":")
    precision = _precision(settings)
    if precision == "fp16" and accelerator == "cpu":
        raise PevlError("run.precision fp16 needs a GPU; on the CPU use bf16 or fp32.")
    # Under torchrun it is torchrun that says how many there are.
    torchrun = "LOCAL_WORLD_SIZE" in os.environ
    processes = int(os.environ.get("LOCAL_WORLD_SIZE", where.processes))
    world = int(os.environ.get("WORLD_SIZE", processes)) if torchrun else processes
    if settings.optim.batch_size % world:
        raise PevlError(
            f"optim.batch_size {settings.optim.batch_size} cannot be shared among {world} "
            "processes evenly."
        )
    there = torch.cuda.device_count()
    if processes > there and (accelerator == "cuda" or (where.device == "auto" and processes > 1)):
        raise PevlError(f"{processes} GPUs were asked for, and {there} are there.")
    strategy: Any = "auto"
    if world > 1:
        strategy = DDPStrategy(find_unused_parameters=True)
    plugins: list[Any] = []
    if precision != "fp32":
        plugins.append(_Autocast("bf16-mixed" if precision == "bf16" else "16-mixed", accelerator))
    if not torchrun:  # a cluster's own variables shall not decide, only what was asked for
        plugins.append(LightningEnvironment())
    return Fabric(
        accelerator=accelerator,
        devices=[int(index)] if index and processes == 1 else processes,
        num_nodes=max(world // processes, 1),
        strategy=strategy,
        plugins=plugins,
        loggers=_tracker(where.tracker, settings.folder),
    )


def _precision(settings: TrainSettings) -> str:
    if settings.run.precision != "auto":
        return settings.run.precision
    return "bf16" if has_bf16(choose_device(settings.run.device)) else "fp32"


def _tracker(name: str, folder: Path) -> Any:
    if name == "none":
        return None
    session = time.strftime("%Y%m%d-%H%M%S")  # a continued run does not write over the first part
    if name == "tensorboard":
        from lightning_fabric.loggers import TensorBoardLogger

        return TensorBoardLogger(folder, name="log", version=session)
    if name == "csv":
        from lightning_fabric.loggers import CSVLogger

        return CSVLogger(folder, name="log", version=session, flush_logs_every_n_steps=1)
    try:
        from lightning.pytorch import loggers

        if name == "wandb":
            return loggers.WandbLogger(save_dir=folder, project="pevl", name=folder.name)
        # MLflow no longer writes plain folders; a server of one's own is named by its variable.
        server = os.environ.get("MLFLOW_TRACKING_URI", f"sqlite:///{folder}/mlflow.db")
        return loggers.MLFlowLogger("pevl", folder.name, server)
    except ImportError as error:
        raise PevlError(f"run.tracker {name}: pip install lightning {name} first.") from error


class _Autocast(MixedPrecision):  # type: ignore[misc]
    """Half precision for products only: coordinates go into the model as they are."""

    def convert_input(self, data: Any) -> Any:
        return data


class _Step(nn.Module):
    """What a process computes of a step; a module, so that gradients are shared among processes."""

    def __init__(self, model: PeVL, fabric: Fabric) -> None:
        super().__init__()
        self.model = model
        self.fabric_of: Callable[[], Fabric] = lambda: fabric  # not a part of the module

    def forward(
        self,
        frames: Tensor,
        joints: Tensor,
        has_video: Tensor | None,
        prompts: list[str],
        chosen: Tensor,
        labels: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """Loss and S of the whole batch from its part here; labels of the whole, into prompts."""
        batch = Batch(frames, joints, has_video)
        texts = self.model.encode_text(prompts)
        if self.model.text is None:
            texts = texts[chosen]
        return self.model.loss(batch, texts, labels, self.gather)

    def gather(self, features: Features) -> Features:
        """Those of all processes, in their order; gradients flow back to each."""
        fabric = self.fabric_of()
        if fabric.world_size == 1:
            return features
        whole: dict[str, Tensor | None] = {}
        for part in fields(features):
            value: Tensor | None = getattr(features, part.name)
            if value is not None:
                together = fabric.all_gather(value, sync_grads=value.requires_grad)
                assert isinstance(together, Tensor)
                value = together.flatten(0, 1)
            whole[part.name] = value
        return Features(**whole)


class Trainer:
    """One model, its optimiser and its schedule."""

    def __init__(
        self,
        model: PeVL,
        labels: LabelSet,
        settings: TrainSettings,
        fabric: Fabric | None = None,
        listener: Listener = _nobody,
    ) -> None:
        self.labels, self.settings, self.listener = labels, settings, listener
        self.phrasings = labels.phrasings
        self.fabric = fabric or _fabric(settings)
        augmentation = settings.augment
        if labels.names_a_side:  # a mirrored left kick is a right one
            augmentation = augmentation.model_copy(update={"mirror": False})
        if not (model.config.video and model.config.pose):
            augmentation = augmentation.model_copy(update={"stream_loss": 0.0})
        self.augmentation: Augmentation = augmentation
        self.model = model
        model.checkpointing = settings.run.checkpointing
        self.precision = _precision(settings)
        self._halved = model.config.frozen_base and self.precision == "bf16"
        self._halve_frozen()
        if self.fabric.world_size > 1 and self.fabric.device.type == "cuda":
            nn.SyncBatchNorm.convert_sync_batchnorm(model)
        optim = settings.optim
        step: nn.Module = _Step(model, self.fabric)
        if settings.run.compile:
            step = torch.compile(step)  # type: ignore[assignment]
        self.optimiser = torch.optim.AdamW(_groups(model, optim.weight_decay), lr=optim.lr)
        self.step, self._wrapped_optimiser = self.fabric.setup(step, self.optimiser)
        self.averaged: AveragedModel | None = None
        if optim.ema_decay:
            self.averaged = AveragedModel(
                model, multi_avg_fn=get_ema_multi_avg_fn(optim.ema_decay), use_buffers=True
            )
        self.prototypes: Tensor | None = None  # of the weights as they are; None: not known
        self._found: tuple[Matches, list[int]] | None = None  # what the last test found
        self._state: dict[str, Any] | None = None

    def _halve_frozen(self) -> None:
        """Frozen matrices need no more than the precision they are used in."""
        if not self._halved:
            return
        for parameter in self.model.parameters():
            if not parameter.requires_grad and parameter.ndim > 1:
                parameter.data = parameter.data.to(torch.bfloat16)

    @property
    def tested_model(self) -> PeVL:
        if self.averaged is None:
            return self.model
        averaged = self.averaged.module
        assert isinstance(averaged, PeVL)
        return averaged

    def fit(
        self,
        train_clips: Clips,
        val_clips: Clips,
        folder: Path,
        base: checkpoint.Base | None,
        facts: dict[str, object],
    ) -> Result:
        """Train to the end of the schedule, or until it no longer gets better."""
        optim, seed = self.settings.optim, self.settings.run.seed
        steps = steps_per_epoch(self.settings, len(train_clips))
        if optim.patience and not len(val_clips):
            raise PevlError("optim.patience needs validation clips, and there are none.")
        schedule = _schedule(self.optimiser, steps * optim.epochs, int(steps * optim.warmup_epochs))
        result = Result(folder, len(train_clips), len(val_clips))
        best, right, seen, waited = -1.0, 0, 0, 0.0
        gained = 0  # the epoch that was last better than all before it
        same = self._what_has_to_be_the_same(train_clips, steps)
        spent = 0.0  # seconds of earlier sessions
        start = 0
        state, self._state = self._state, None
        if state is not None:
            for what, now in same.items():
                if (before := state["same"].get(what)) != now:
                    raise PevlError(
                        f"{folder}: cannot be continued, as {what} changed from {before} to {now} "
                        "since it began."
                    )
            # The optimiser after its schedule, whose making sets the learning rate.
            self.optimiser.load_state_dict(state["optimiser"])
            self.fabric.strategy.precision.load_state_dict(state["precision"])
            schedule.load_state_dict(state["schedule"])
            start, best, gained = state["steps"], state["best"], state["gained"]
            right, seen, spent, waited = (
                state["right"],
                state["seen"],
                state["spent"],
                state["wait"],
            )
            result.best, result.last = _accuracy(state["best_val"]), _accuracy(state["last_val"])
            result.epochs, result.best_epoch = start // steps, state["best_epoch"]
        order = Order(
            train_clips.labels,
            optim.batch_size,
            steps * optim.accumulate,
            optim.epochs,
            optim.balance,
            seed,
        )
        order.start = start * optim.accumulate
        order.rank, order.world = self.fabric.global_rank, self.fabric.world_size
        loader = self._loader(Variations(train_clips, self.augmentation, seed), order)
        batches = iter(loader)
        started = saved = time.monotonic()

        def save_state(steps_done: int) -> None:
            nonlocal saved
            if self.fabric.is_global_zero:
                run.save_state(
                    folder,
                    {
                        "settings": run.fixed_settings(self.settings),
                        "same": same,
                        "precision": self.fabric.strategy.precision.state_dict(),
                        "gained": gained,
                        "model": self._kept(self.model),
                        "averaged": None
                        if self.averaged is None
                        else (int(self.averaged.n_averaged), self._kept(self.tested_model)),
                        "prototypes": self.prototypes,
                        "optimiser": self.optimiser.state_dict(),
                        "schedule": schedule.state_dict(),
                        "steps": steps_done,
                        "best": best,
                        "best_epoch": result.best_epoch,
                        "best_val": None if result.best is None else asdict(result.best),
                        "last_val": None if result.last is None else asdict(result.last),
                        "right": right,
                        "seen": seen,
                        "wait": waited,
                        "spent": spent + time.monotonic() - started,
                    },
                )
            saved = time.monotonic()

        every = 1 if optim.patience else max(optim.epochs // 30, 1)
        if state is None:
            save_state(0)  # from the first moment there is something to continue
        try:
            for done in range(start + 1, steps * optim.epochs + 1):
                epoch, within = divmod(done - 1, steps)
                epoch += 1
                if within == 0:
                    # Asked here, so that a run that had stopped stops again when continued.
                    if optim.patience and epoch - 1 - gained >= optim.patience:
                        result.stopped_early = True
                        result.last = self._familiarised(result.last, train_clips)
                        save_state(done - 1)
                        break
                    right = seen = 0
                loss, hits, wait = self._step(batches, order, epoch, within)
                schedule.step()
                right, seen, waited = right + hits[0], seen + hits[1], waited + wait
                elapsed = max(spent + time.monotonic() - started, 1e-9)
                self._tell(done, steps, epoch, loss, schedule, right / seen, waited / elapsed)
                if within < steps - 1:
                    if time.monotonic() - saved > 60 * self.settings.run.save_minutes:
                        save_state(done)
                    continue
                result.epochs = epoch
                # Checked about 30 times: often enough to choose, seldom enough to cost little.
                if epoch % every == 0 or epoch == optim.epochs:
                    result.last = self.test(val_clips, epoch)
                    value = -0.5
                    if result.last is not None:
                        value = result.last.top1 + result.last.mean_class
                    if value > best:
                        gained = epoch
                    if value >= best or epoch == optim.epochs:
                        result.last = self._familiarised(result.last, train_clips)
                    if value >= best:
                        best, result.best, result.best_epoch = value, result.last, epoch
                        self._save(folder / "best", base, facts, result, spent, started)
                save_state(done)
        except KeyboardInterrupt:
            result.interrupted = True
        finally:
            for logger in self.fabric.loggers:
                logger.finalize("success")
        self._save(folder / "last", base, facts, result, spent, started)
        if best < -0.5:  # interrupted before the first check
            self._save(folder / "best", base, facts, result, spent, started)
        result.seconds = spent + time.monotonic() - started
        result.wait = waited / max(result.seconds, 1e-9)
        return result

    def _what_has_to_be_the_same(self, clips: Clips, steps: int) -> dict[str, str | int | None]:
        """All but the settings that decides the weights of a run."""
        digest = hashlib.blake2b(digest_size=8)
        for item, label in zip(clips.items, clips.labels, strict=True):
            digest.update(repr((item, label)).encode())
        digest.update(repr(self.labels).encode())
        return {
            "the training clips (as a hash)": digest.hexdigest(),
            "the number of steps an epoch": steps,
            "the number of processes": self.fabric.world_size,
            "the precision": self.precision,
            "the stem's pose network (as a hash)": _frozen_stem(self.model),
        }

    def _loader(self, clips: Variations, order: Order) -> DataLoader[Batch]:
        workers = self.settings.data.workers
        device = self.fabric.device.type
        if workers is None:
            # A CPU that computes the model has no core to spare; a GPU has to be kept busy.
            workers = 0 if device == "cpu" else min(8, os.cpu_count() or 1)
        return DataLoader(
            clips,
            batch_sampler=order,
            num_workers=workers,
            collate_fn=collate,
            worker_init_fn=quiet_worker,
            # A fork of a process whose OpenMP or OpenCV threads have run may hang for ever.
            multiprocessing_context="spawn" if workers else None,
            persistent_workers=workers > 0,
            prefetch_factor=4 if workers else None,
            generator=torch.Generator(),  # its draws shall not move the model's
        )

    def _step(
        self, batches: Iterator[Batch], order: Order, epoch: int, within: int
    ) -> tuple[float, tuple[int, int], float]:
        """One step of the optimiser: its loss, hits and clips, seconds waited for clips."""
        optim, fabric = self.settings.optim, self.fabric
        self.step.train()
        self.prototypes = None
        # Every step by itself: a continued run draws the same dropout as an uninterrupted one.
        key = (self.settings.run.seed, epoch, within, fabric.global_rank)
        torch.manual_seed(int(np.random.SeedSequence(key).generate_state(1)[0]))
        drawn = np.random.default_rng([self.settings.run.seed, epoch, within])
        device = fabric.device
        total, waited, right, seen = 0.0, 0.0, 0, 0
        for part in range(optim.accumulate):
            before = time.monotonic()
            batch = next(batches).to(device)
            waited += time.monotonic() - before
            shown = order.batch(epoch, within * optim.accumulate + part)
            classes = torch.tensor([order.labels[place.clip] for place in shown])
            # Those that are contrasted, each encoded once, in one of its phrasings.
            if self.model.config.contrast == "labels":
                distinct, labels = torch.arange(len(self.labels)), classes
            else:
                distinct, labels = torch.unique(classes, return_inverse=True)
            groups = [self.phrasings[int(c)] for c in distinct]
            prompts = [group[int(drawn.integers(len(group)))] for group in groups]
            last = part == optim.accumulate - 1
            with fabric.no_backward_sync(self.step, enabled=not last), _attention(device):
                loss, similarity = self.step(
                    *(batch.frames, batch.joints, batch.has_video),
                    *(prompts, distinct.to(device), labels.to(device)),
                )
                value = float(loss.detach())
                if not np.isfinite(value):
                    raise PevlError(
                        f"training went wrong in epoch {epoch}: the loss is {value}. "
                        "Lower --learning-rate."
                    )
                fabric.backward(loss / optim.accumulate)
            total += value / optim.accumulate
            right += int((similarity.argmax(1).cpu() == labels).sum())
            seen += len(labels)
        fabric.clip_gradients(
            self.step, self._wrapped_optimiser, max_norm=optim.clip_norm, error_if_nonfinite=False
        )
        self._wrapped_optimiser.step()
        self.optimiser.zero_grad(set_to_none=True)
        self.model.limit_temperatures()
        if self.averaged is not None:
            self.averaged.update_parameters(self.model)
        return total, (right, seen), waited

    def _tell(
        self,
        done: int,
        steps: int,
        epoch: int,
        loss: float,
        schedule: LRScheduler,
        top1: float,
        wait: float,
    ) -> None:
        rate = float(schedule.get_last_lr()[0])
        self.listener(
            Event(
                "training", done, steps * self.settings.optim.epochs, epoch, loss, rate, top1, wait
            )
        )
        if done % 10 == 0 or done % steps == 0:
            facts = {"loss": loss, "learning_rate": rate, "train_top1": top1, "loader_wait": wait}
            self.fabric.log_dict({f"train/{k}": v for k, v in facts.items()}, step=done)

    @torch.inference_mode()
    def test(self, clips: Clips, epoch: int) -> Accuracy | None:
        """Accuracy on clips, shared among the processes; None without clips."""
        if not len(clips):
            return None
        model, fabric = self.tested_model.eval(), self.fabric
        with self._as_trained():
            texts = encode_labels(model, self.labels)
        rank, world = fabric.global_rank, fabric.world_size
        # Each has as many, so the last ones of some processes stand twice.
        count = -(-len(clips) // world)
        own = [min(rank + i * world, len(clips) - 1) for i in range(count)]
        kinds = len(model.config.used_similarities)
        both_ways = looks_both_ways(model, self.labels)
        found = torch.full((count, kinds, len(self.labels)), torch.nan)
        video = torch.full((count, model.config.embed_dim), torch.nan)
        for first in range(0, count, 16):
            samples: dict[int, Sample] = {}
            for place in range(first, min(first + 16, count)):
                with suppress(PevlError, OSError):  # no longer readable: left out
                    samples[place] = clips[own[place]]
            if samples:
                with self._as_trained():
                    part = matches(model, list(samples.values()), texts, both_ways=both_ways)
                found[list(samples)] = part.similarities
                if part.video is not None:
                    video[list(samples)] = part.video
        if world > 1:
            found, video = (self._together(rows)[: len(clips)] for rows in (found, video))
        there = ~found.isnan().all(2).all(1)
        if not there.any():
            return None
        true = [label for label, read in zip(clips.labels, there.tolist(), strict=True) if read]
        got = accuracy(found[there], true, self.labels.names)
        if model.config.video:
            self._found = Matches(found[there], video[there]), true
        self.listener(Event("validating", len(clips), len(clips), epoch, val=got))
        fabric.log_dict({"val/top1": got.top1, "val/mean_class": got.mean_class}, step=epoch)
        return got

    def _together(self, rows: Tensor) -> Tensor:
        """Those of all processes, which had one each in turn."""
        gathered = self.fabric.all_gather(rows.to(self.fabric.device))
        assert isinstance(gathered, Tensor)
        return gathered.transpose(0, 1).flatten(0, 1).cpu()

    def _familiarised(self, tested: Accuracy | None, shown: Clips) -> Accuracy | None:
        """What was tested, with scores that also go by what training clips look like."""
        if tested is None or self._found is None:
            return tested
        fabric, classes = self.fabric, len(self.labels)
        each = max(min(PROTOTYPE_CLIPS, tested.count // classes), 1)
        share = fabric.global_rank, fabric.world_size
        examples = shown.examples(each, self.settings.run.seed, *share)
        model = self.tested_model.eval()
        summed = summed_videos(model, examples, classes, context=self._as_trained)
        if fabric.world_size > 1:
            together = fabric.all_reduce(summed.to(fabric.device), reduce_op="sum")
            assert isinstance(together, Tensor)
            summed = together.cpu()
        self.prototypes = prototypes(summed)
        found, true = self._found
        self._found = None
        familiar = found.familiar(self.prototypes)
        return replace(tested, fitted=fit_scores(found.similarities, true, familiar))

    def _as_trained(self) -> AbstractContextManager[None]:
        """What was halved has to be computed so; all else is tested as it will be used."""
        return self.fabric.autocast() if self._halved else nullcontext()

    def how_to_need_less_memory(self) -> str:
        optim, world = self.settings.optim, self.fabric.world_size
        half = optim.batch_size // (2 * world) * world
        ways = []
        if half >= 2:
            more = optim.accumulate * optim.batch_size // half
            ways.append(f"--set optim.batch_size={half} --set optim.accumulate={more}")
        if not self.settings.run.checkpointing:
            ways.append("--set run.checkpointing=true (about a fifth of the activations)")
        if self.precision == "fp32":
            ways.append("--precision bf16 (about half of them)")
        if not ways:
            ways.append("--config mini, or a GPU with more memory")
        return f"the memory is too small for {optim.batch_size} clips at a time. Try " + (
            ", or ".join(ways) + "."
        )

    # -- what is kept ---------------------------------------------------------------------------

    def _kept(self, model: PeVL) -> dict[str, Tensor]:
        """A model's weights without those that never change: CLIP's, the pose stem's layers."""
        frozen = {name for name, p in model.named_parameters() if not p.requires_grad}
        return {k: v for k, v in model.state_dict().items() if k not in frozen}

    def resume(self, folder: Path) -> None:
        """Take up the newest state in a run's folder that can be read."""
        state = run.load_state(folder)
        said, now = state["settings"], run.fixed_settings(self.settings)
        for key in sorted(said.keys() | now.keys()):
            if said.get(key) != now.get(key):
                raise PevlError(
                    f"{folder}: was started with {key} = {said.get(key)}, not {now.get(key)}; "
                    "a run is continued with the settings it began with."
                )
        self.model.load_state_dict(state["model"], strict=False)
        if self.averaged is not None:
            count, weights = state["averaged"]
            self.averaged.n_averaged.fill_(count)
            self.tested_model.load_state_dict(weights, strict=False)
        self.prototypes = state.get("prototypes")
        self._state = state

    def _save(
        self,
        folder: Path,
        base: checkpoint.Base | None,
        facts: dict[str, object],
        result: Result,
        spent: float,
        started: float,
    ) -> None:
        if not self.fabric.is_global_zero:
            return
        training = {
            **facts,
            "epochs_done": result.epochs,
            "seconds": round(spent + time.monotonic() - started),
            "val_top1": None if result.last is None else round(result.last.top1, 4),
            "val_mean_class": None if result.last is None else round(result.last.mean_class, 4),
        }
        model = self.tested_model
        fitted = None
        if result.last is not None:
            scale = result.last.fitted
            if self.prototypes is None:  # interrupted since
                scale = replace(scale, familiarity=None)
            fitted = checkpoint.Calibration(**asdict(scale), split="val", clips=result.last.count)
        stored = checkpoint.facts_of(model.config, self.labels, base, training, fitted)
        state = model.state_dict()
        if self.prototypes is not None:
            state["prototypes"] = self.prototypes
        checkpoint.save(folder, state, stored)


def steps_per_epoch(settings: TrainSettings, clips: int) -> int:
    optim = settings.optim
    return max(
        clips // (optim.batch_size * optim.accumulate), -(-optim.min_steps // optim.epochs), 1
    )


def _accuracy(stored: dict[str, Any] | None) -> Accuracy | None:
    # One of an older pevl, which kept less of it, is measured again with the next epoch.
    if stored is None or {f.name for f in fields(Accuracy)} - stored.keys():
        return None
    return Accuracy(**stored | {"fitted": Fitted(**stored["fitted"])})


def _facts(
    settings: TrainSettings,
    manifest: Manifest,
    poses: RecordedPoses | None,
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


def _attention(device: torch.device) -> AbstractContextManager[None]:
    """On the CPU the fused kernel takes longer backwards than plain products of short rows."""
    return sdpa_kernel(SDPBackend.MATH) if device.type == "cpu" else nullcontext()


def _groups(model: nn.Module, weight_decay: float) -> list[dict[str, object]]:
    """Decay matrices only: a decayed bias, norm or temperature is pulled from where it belongs."""
    trained = [p for p in model.parameters() if p.requires_grad]
    return [
        {"params": [p for p in trained if p.ndim > 1], "weight_decay": weight_decay},
        {"params": [p for p in trained if p.ndim <= 1], "weight_decay": 0.0},
    ]


def _schedule(optimiser: torch.optim.Optimizer, steps: int, warmup: int) -> LRScheduler:
    warmup = min(warmup, max(steps - 1, 0))
    cosine = CosineAnnealingLR(optimiser, max(steps - warmup, 1))
    if not warmup:
        return cosine
    rise = LinearLR(optimiser, 1e-3, total_iters=warmup)
    return SequentialLR(optimiser, [rise, cosine], [warmup])
