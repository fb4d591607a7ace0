"""TODO."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning_fabric import Fabric
from torch import Tensor, nn
from torch.optim.lr_scheduler import CosineAnnealingLR, LinearLR, LRScheduler, SequentialLR
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from pevl_cli.data.augmentation import Augmentation
from pevl_cli.data.batches import AugmentedClips, BatchPlan, load_batches
from pevl_cli.data.clips import Clips, LeftOut
from pevl_cli.data.loader import worker_count
from pevl_cli.data.samples import Sample
from pevl_cli.errors import PevlError
from pevl_cli.labels import LabelSet
from pevl_cli.matching import (
    encode_labels,
    flips_at_test,
    match_samples,
    normalise_prototypes,
    sum_video_features,
)
from pevl_cli.metrics import Accuracy, accuracy
from pevl_cli.model import checkpoint
from pevl_cli.model.calibration import Calibration, fit_calibration
from pevl_cli.model.clip import state_digest
from pevl_cli.model.features import Batch, Features
from pevl_cli.model.mini.stem import PoseStem
from pevl_cli.model.pevl import PeVL
from pevl_cli.model.sgmc import Similarities
from pevl_cli.training import run_folder as run
from pevl_cli.training.engine import _attention, _fabric, _precision
from pevl_cli.training.settings import TrainSettings

# Clips of each label from which is learnt what it looks like; all together about as many as are
# validated, so that it takes no longer.
PROTOTYPE_CLIPS = 8


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


def _nobody(_: Event) -> None:
    return None


def _frozen_stem(model: PeVL) -> str | None:
    """Hash of what a pose stem does not learn, which a state does not keep."""
    stem = model.visual.conv1
    return state_digest(stem.layers.state_dict()) if isinstance(stem, PoseStem) else None


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
            augmentation = augmentation.model_copy(update={"stream_dropout": 0.0})
        self.augmentation: Augmentation = augmentation
        self.model = model
        model.checkpointing = settings.run.checkpointing
        self.precision = _precision(settings)
        self._halved = not model.config.train_base and self.precision == "bf16"
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
        self.calibration: Calibration | None = None  # fitted to the last validation
        self.prototypes: Tensor | None = None  # of the weights as they are; None: not known
        self._found: tuple[Similarities, list[int]] | None = None  # what the last test found
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
        order = BatchPlan(
            train_clips.labels,
            optim.batch_size,
            steps * optim.accumulate,
            optim.epochs,
            optim.balance,
            seed,
        )
        order.start = start * optim.accumulate
        order.rank, order.world = self.fabric.global_rank, self.fabric.world_size
        loader = self._loader(AugmentedClips(train_clips, self.augmentation, seed), order)
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
                        "calibration": None
                        if self.calibration is None
                        else self.calibration.model_dump(),
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
                        self._calibrate(result.last, train_clips)
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
                        self._calibrate(result.last, train_clips)
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

    def _loader(self, clips: AugmentedClips, order: BatchPlan) -> Iterator[Batch]:
        workers = worker_count(self.settings.data.workers, self.fabric.device.type)
        return load_batches(clips, order, workers)

    def _step(
        self, batches: Iterator[Batch], order: BatchPlan, epoch: int, within: int
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
        flip = flips_at_test(model, self.labels)
        found = torch.full((count, kinds, len(self.labels)), torch.nan)
        video = torch.full((count, model.config.embed_dim), torch.nan)
        for first in range(0, count, 16):
            samples: dict[int, Sample] = {}
            for place in range(first, min(first + 16, count)):
                with suppress(PevlError, OSError):  # no longer readable: left out
                    samples[place] = clips[own[place]]
            if samples:
                with self._as_trained():
                    part = match_samples(model, list(samples.values()), texts, flip_at_test=flip)
                found[list(samples)] = part.values
                if part.video_features is not None:
                    video[list(samples)] = part.video_features
        if world > 1:
            found, video = (self._together(rows)[: len(clips)] for rows in (found, video))
        there = ~found.isnan().all(2).all(1)
        if not there.any():
            return None
        true = [label for label, read in zip(clips.labels, there.tolist(), strict=True) if read]
        got = accuracy(found[there], true, self.labels.names)
        self.calibration = fit_calibration(found[there], true, "val")
        if model.config.video:
            self._found = Similarities(found[there], video[there]), true
        self.listener(Event("validating", len(clips), len(clips), epoch, val=got))
        fabric.log_dict({"val/top1": got.top1, "val/mean_class": got.mean_class}, step=epoch)
        return got

    def _together(self, rows: Tensor) -> Tensor:
        """Those of all processes, which had one each in turn."""
        gathered = self.fabric.all_gather(rows.to(self.fabric.device))
        assert isinstance(gathered, Tensor)
        return gathered.transpose(0, 1).flatten(0, 1).cpu()

    def _calibrate(self, tested: Accuracy | None, shown: Clips) -> None:
        """Fit the scores anew, with the training clips' prototypes."""
        if tested is None or self._found is None:
            return
        fabric, classes = self.fabric, len(self.labels)
        each = max(min(PROTOTYPE_CLIPS, tested.count // classes), 1)
        share = fabric.global_rank, fabric.world_size
        examples = shown.examples(each, self.settings.run.seed, *share)
        model = self.tested_model.eval()
        summed = sum_video_features(model, examples, classes, context=self._as_trained)
        if fabric.world_size > 1:
            together = fabric.all_reduce(summed.to(fabric.device), reduce_op="sum")
            assert isinstance(together, Tensor)
            summed = together.cpu()
        self.prototypes = normalise_prototypes(summed)
        found, true = self._found
        self._found = None
        near = found.prototype_similarity(self.prototypes)
        self.calibration = fit_calibration(found.values, true, "val", near)

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
        stored = state["calibration"]
        self.calibration = None if stored is None else Calibration(**stored)
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
        calibration = self.calibration
        if calibration is not None and self.prototypes is None:  # trained on since
            calibration = calibration.model_copy(update={"prototype": None})
        stored = checkpoint.facts_of(model.config, self.labels, base, training, calibration)
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
    return Accuracy(**stored)


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
