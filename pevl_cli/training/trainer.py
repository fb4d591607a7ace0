"""The training loop: epochs of steps, validation, early stopping, checkpoints."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np
import torch
from lightning_fabric import Fabric
from torch import Tensor, nn
from torch.optim.lr_scheduler import LRScheduler
from torch.optim.swa_utils import AveragedModel

from pevl_cli.data.batches import AugmentedClips, BatchPlan, load_batches
from pevl_cli.data.clips import Clips
from pevl_cli.data.loader import worker_count
from pevl_cli.data.observations import Observations
from pevl_cli.errors import PevlError
from pevl_cli.labels import LabelSet
from pevl_cli.metrics import Accuracy
from pevl_cli.model import checkpoint
from pevl_cli.model.calibration import Calibration
from pevl_cli.model.features import Batch
from pevl_cli.model.pevl import PeVL
from pevl_cli.model.precision import convert_matrices
from pevl_cli.training import run_folder
from pevl_cli.training.engine import (
    attention_kernel,
    local_processes,
    make_fabric,
    training_precision,
)
from pevl_cli.training.optimiser import (
    growing_average,
    make_optimiser,
    make_schedule,
    steps_per_epoch,
)
from pevl_cli.training.progress import Event, Listener, Result, ignore_event
from pevl_cli.training.settings import TrainSettings
from pevl_cli.training.state import (
    Conditions,
    Progress,
    TrainState,
    learned_weights,
    run_conditions,
)
from pevl_cli.training.step import BatchLoss, StepResult, choose_targets, seed_step
from pevl_cli.training.validation import Validation, Validator
from pevl_cli.training.views import prepare_views, remove_views

MAX_STUCK_STEPS = 50
VALIDATIONS = 30  # approximate number of validations of a run without early stopping


class Trainer:
    """Trains one model: optimiser, schedule and progress. `fit` can be called once.

    ``base`` and ``facts`` are stored with the checkpoints. Each step seeds torch's global random
    generator.
    """

    schedule: LRScheduler
    epoch_steps: int
    _conditions: Conditions

    def __init__(
        self,
        model: PeVL,
        labels: LabelSet,
        settings: TrainSettings,
        fabric: Fabric | None = None,
        listener: Listener = ignore_event,
        base: checkpoint.Base | None = None,
        facts: dict[str, object] | None = None,
    ) -> None:
        self.labels, self.settings, self.listener = labels, settings, listener
        self.base, self.facts = base, facts or {}
        self.phrasings = labels.phrasings
        self.fabric = fabric or make_fabric(settings)
        augmentation = settings.augment
        if labels.mentions_left_or_right:  # a mirrored left kick is a right kick
            augmentation = augmentation.model_copy(update={"mirror": False})
        if not (model.config.video and model.config.pose):
            augmentation = augmentation.model_copy(update={"stream_dropout": 0.0})
        self.augmentation = augmentation
        self.model = model
        model.checkpointing = settings.run.checkpointing
        self.precision = training_precision(settings)
        self._base_in_bf16 = not model.config.train_base and self.precision == "bf16"
        if self._base_in_bf16:
            convert_matrices(model, torch.bfloat16, frozen_only=True)
        if self.fabric.world_size > 1 and self.fabric.device.type == "cuda":
            nn.SyncBatchNorm.convert_sync_batchnorm(model)
        loss: nn.Module = BatchLoss(model, self.fabric)
        if settings.run.compile:
            loss = torch.compile(loss)  # type: ignore[assignment]
        self.optimiser = make_optimiser(model, settings.optim)
        self.batch_loss, self._fabric_optimiser = self.fabric.setup(loss, self.optimiser)
        self.averaged: AveragedModel | None = None
        if settings.optim.ema_decay:
            average = growing_average(settings.optim.ema_decay)
            self.averaged = AveragedModel(model, multi_avg_fn=average, use_buffers=True)
        processes = local_processes(settings)
        self.workers = worker_count(settings.data.workers, self.fabric.device.type, processes)
        self.validator = Validator(labels, self.fabric, self.test_precision, self.workers)
        self.progress = Progress()
        self.calibration: Calibration | None = None  # fitted to the last validation
        self.prototypes: Tensor | None = None  # (C, e) of the current weights; None: not computed
        self._validation: Validation | None = (
            None  # the last validation, until prototypes are added
        )
        self._resumed_s = self._started_s = self._saved_s = 0.0
        self._stuck = 0  # steps in a row without a finite gradient

    @property
    def tested_model(self) -> PeVL:
        """The averaged model if there is one, otherwise the model."""
        if self.averaged is None:
            return self.model
        averaged = self.averaged.module
        assert isinstance(averaged, PeVL)
        return averaged

    def test_precision(self) -> AbstractContextManager[None]:
        """The precision of validation: bf16 if the base is stored in bf16, otherwise float32."""
        return self.fabric.autocast() if self._base_in_bf16 else nullcontext()

    def conditions(self, clips: Clips) -> Conditions:
        """The conditions that must be the same when a run on these clips is continued."""
        steps, world = steps_per_epoch(self.settings, len(clips)), self.fabric.world_size
        return run_conditions(clips, self.labels, steps, world, self.precision, self.model)

    # -- the loop -------------------------------------------------------------------------------

    def fit(self, train_clips: Clips, val_clips: Clips, state: TrainState | None = None) -> Result:
        """Train to the end of the schedule, or until `optim.patience` epochs without improvement.

        ``state``: continue from it. Writes the state and the checkpoints best/ and last/ into the
        run's folder; KeyboardInterrupt ends training early, and both are still written. PevlError
        when the state does not fit, and when the loss is not finite.
        """
        optim, progress = self.settings.optim, self.progress
        if optim.patience and not len(val_clips):
            raise PevlError("optim.patience needs validation clips, but there are none.")
        self._conditions = self.conditions(train_clips)
        self.epoch_steps = steps_per_epoch(self.settings, len(train_clips))
        total = self.epoch_steps * optim.epochs
        warmup = int(self.epoch_steps * optim.warmup_epochs)
        self.schedule = make_schedule(self.optimiser, total, warmup)
        if state is not None:
            self._restore(state)
            progress = self.progress
        self._resumed_s, self._started_s = progress.seconds, time.monotonic()
        plan = self._batch_plan(train_clips)
        uses = total * optim.batch_size * optim.accumulate
        with self.test_precision():
            observed = prepare_views(
                *(self.model, train_clips, self.augmentation, self.settings, self.fabric),
                *(uses, self.workers, self.listener),
            )
        batches = self._batches(train_clips, plan, observed)
        if state is None:
            self._save_state()  # so that an interrupted first epoch can be continued
        interrupted = stopped_early = False
        try:
            while progress.steps < total and not stopped_early:
                # Checked before an epoch, so that a stopped run also stops when it is continued.
                stopped_early = self._patience_is_over()
                if stopped_early:
                    self._add_prototypes(train_clips)
                else:
                    self._train_epoch(batches, plan)
                    self._end_epoch(train_clips, val_clips)
                self._save_state()
        except KeyboardInterrupt:
            interrupted = True
        finally:
            self.validator.close()
            remove_views(self.settings)
            for logger in self.fabric.loggers:
                logger.finalize("success")
        self._save_checkpoint("last")
        if progress.best_value == Progress.best_value:  # interrupted before the first validation
            self._save_checkpoint("best")
        return self._result(len(train_clips), len(val_clips), interrupted, stopped_early)

    def _patience_is_over(self) -> bool:
        patience, progress = self.settings.optim.patience, self.progress
        if not patience or progress.steps % self.epoch_steps:
            return False
        return progress.epochs - progress.gained_epoch >= patience

    def _train_epoch(self, batches: Iterator[Batch], plan: BatchPlan) -> None:
        """Train the remaining steps of an epoch; save the state every `run.save_minutes`."""
        progress = self.progress
        finished, first = divmod(progress.steps, self.epoch_steps)
        if not first:
            progress.right = progress.seen = 0
        for index in range(first, self.epoch_steps):
            step = self.step(batches, plan, finished + 1, index)
            self.schedule.step()
            progress.steps += 1
            progress.right += step.right
            progress.seen += step.clips
            progress.wait_s += step.wait_s
            self._report(finished + 1, step.loss)
            age_s = time.monotonic() - self._saved_s
            if index < self.epoch_steps - 1 and age_s > 60 * self.settings.run.save_minutes:
                self._save_state()

    def step(self, batches: Iterator[Batch], plan: BatchPlan, epoch: int, index: int) -> StepResult:
        """One optimiser step over `optim.accumulate` batches: step ``index`` of ``epoch``.

        ``batches``: the batches of this process; ``plan``: the clips of all processes. PevlError
        when the loss is not finite.
        """
        optim, fabric, config = self.settings.optim, self.fabric, self.model.config
        self.batch_loss.train()
        self.prototypes = None
        seed_step(self.settings.run.seed, epoch, index, fabric.global_rank)
        rng = np.random.default_rng([self.settings.run.seed, epoch, index])
        total, wait_s, right, clips = 0.0, 0.0, 0, 0
        for part in range(optim.accumulate):
            start_s = time.monotonic()
            batch = next(batches).to(fabric.device)
            wait_s += time.monotonic() - start_s
            showings = plan.batch(epoch, index * optim.accumulate + part)
            classes = torch.tensor([plan.labels[showing.clip] for showing in showings])
            targets = choose_targets(classes, self.phrasings, config.contrast == "labels", rng)
            same_clip = torch.tensor([showing.clip for showing in showings])
            not_last = part < optim.accumulate - 1
            with (
                fabric.no_backward_sync(self.batch_loss, enabled=not_last),
                attention_kernel(fabric.device),
            ):
                loss, similarity = self.batch_loss(
                    *(batch.frames, batch.joints, batch.has_video, targets.prompts),
                    *(targets.classes.to(fabric.device), targets.labels.to(fabric.device)),
                    same_clip.to(fabric.device),
                    batch.observed,
                )
                value = float(loss.detach())
                if not np.isfinite(value):
                    raise PevlError(
                        f"training diverged in epoch {epoch}: the loss is {value}; lower the "
                        "learning rate (--learning-rate)."
                    )
                fabric.backward(loss / optim.accumulate)
            total += value / optim.accumulate
            right += int((similarity.argmax(1).cpu() == targets.labels).sum())
            clips += len(targets.labels)
        self._update_weights()
        return StepResult(total, right, clips, wait_s)

    def _update_weights(self) -> None:
        norm = self.fabric.clip_gradients(
            self.batch_loss,
            self._fabric_optimiser,
            max_norm=self.settings.optim.clip_norm,
            error_if_nonfinite=False,
        )
        # Half precision skips single steps; without a finite norm no weight ever moves.
        self._stuck = 0 if norm is None or norm.isfinite() else self._stuck + 1
        if self._stuck >= MAX_STUCK_STEPS:
            raise PevlError(
                f"training stands still: the gradient was not finite in {self._stuck} steps; lower "
                "the learning rate (--learning-rate), or use --precision fp32."
            )
        self._fabric_optimiser.step()
        self.optimiser.zero_grad(set_to_none=True)
        self.model.limit_temperatures()
        if self.averaged is not None:
            self.averaged.update_parameters(self.model)

    def _report(self, epoch: int, loss: float) -> None:
        progress, steps = self.progress, self.epoch_steps
        rate = max(float(rate) for rate in self.schedule.get_last_lr())  # of new weights
        top1 = progress.right / progress.seen
        wait = progress.wait_s / max(self._seconds(), 1e-9)
        done, total = progress.steps, steps * self.settings.optim.epochs
        self.listener(Event("training", done, total, epoch, loss, rate, top1, wait))
        if done % 10 == 0 or done % steps == 0:
            facts = {"loss": loss, "learning_rate": rate, "train_top1": top1, "loader_wait": wait}
            self.fabric.log_dict({f"train/{k}": v for k, v in facts.items()}, step=done)

    def _end_epoch(self, train_clips: Clips, val_clips: Clips) -> None:
        """Validate every few epochs; save the checkpoint if it is the best so far."""
        optim, progress = self.settings.optim, self.progress
        epoch = progress.epochs = progress.steps // self.epoch_steps
        every = 1 if optim.patience else max(optim.epochs // VALIDATIONS, 1)
        last = epoch == optim.epochs
        if epoch % every and not last:
            return
        progress.last = self.validate(val_clips, epoch)
        value = -0.5
        if progress.last is not None:
            value = progress.last.top1 + progress.last.mean_class
        if value > progress.best_value:
            progress.gained_epoch = epoch
        if value >= progress.best_value or last:
            self._add_prototypes(train_clips)
        if value >= progress.best_value:
            progress.best_value, progress.best, progress.best_epoch = value, progress.last, epoch
            self._save_checkpoint("best")

    # -- validation -----------------------------------------------------------------------------

    def validate(self, clips: Clips, epoch: int) -> Accuracy | None:
        """Accuracy on ``clips``; also fits the calibration. None when no clip is readable."""
        self._validation = validation = self.validator.test(self.tested_model, clips)
        if validation is None:
            return None
        self.calibration = validation.calibrate()
        accuracy = validation.accuracy
        self.listener(Event("validating", len(clips), len(clips), epoch, val=accuracy))
        self.fabric.log_dict(
            {"val/top1": accuracy.top1, "val/mean_class": accuracy.mean_class}, step=epoch
        )
        return accuracy

    def _add_prototypes(self, train_clips: Clips) -> None:
        """Compute prototypes with the tested weights, and fit the calibration again with them."""
        validation, self._validation = self._validation, None
        if validation is None or validation.similarities.video_features is None:
            return
        self.prototypes = self.validator.prototypes(
            self.tested_model, train_clips, validation.accuracy.count, self.settings.run.seed
        )
        self.calibration = validation.calibrate(self.prototypes)

    # -- clips ----------------------------------------------------------------------------------

    def _batch_plan(self, clips: Clips) -> BatchPlan:
        """The batches from the current step to the end."""
        optim = self.settings.optim
        plan = BatchPlan(
            clips.labels,
            optim.batch_size,
            self.epoch_steps * optim.accumulate,
            optim.epochs,
            optim.balance,
            self.settings.run.seed,
        )
        plan.start = self.progress.steps * optim.accumulate
        plan.rank, plan.world = self.fabric.global_rank, self.fabric.world_size
        return plan

    def _batches(
        self, clips: Clips, plan: BatchPlan, observations: Observations | None
    ) -> Iterator[Batch]:
        seed = self.settings.run.seed
        augmented = AugmentedClips(clips, self.augmentation, seed, observations)
        return load_batches(augmented, plan, self.workers)

    # -- what is stored -------------------------------------------------------------------------

    def _seconds(self) -> float:
        """Training time in seconds, including earlier sessions."""
        return self._resumed_s + time.monotonic() - self._started_s

    def _save_state(self) -> None:
        self.progress.seconds = self._seconds()
        if self.fabric.is_global_zero:
            averaged = self.averaged
            TrainState(
                settings=run_folder.fixed_settings(self.settings),
                conditions=self._conditions,
                model=learned_weights(self.model),
                averaged=None if averaged is None else learned_weights(self.tested_model),
                averaged_updates=0 if averaged is None else int(averaged.n_averaged),
                optimiser=self.optimiser.state_dict(),
                schedule=self.schedule.state_dict(),
                precision=self.fabric.strategy.precision.state_dict(),
                prototypes=self.prototypes,
                calibration=self.calibration,
                progress=self.progress,
            ).save(self.settings.folder)
        self._saved_s = time.monotonic()

    def _restore(self, state: TrainState) -> None:
        """Load a state; must be called after `make_schedule`, which sets the learning rate."""
        state.restore_model(self.model)
        if self.averaged is not None:
            state.restore_averaged(self.tested_model)
            self.averaged.n_averaged.fill_(state.averaged_updates)
        state.restore_optimiser(self.optimiser)
        state.restore_precision(self.fabric.strategy.precision)
        state.restore_schedule(self.schedule)
        shape = len(self.labels), self.model.config.embed_dim
        self.prototypes = state.checked_prototypes(shape)
        self.calibration, self.progress = state.calibration, state.progress

    def _save_checkpoint(self, name: str) -> None:
        if not self.fabric.is_global_zero:
            return
        progress, model = self.progress, self.tested_model
        last = progress.last
        training: dict[str, Any] = {
            **self.facts,
            "epochs_done": progress.epochs,
            "seconds": round(self._seconds()),
            "val_top1": None if last is None else round(last.top1, 4),
            "val_mean_class": None if last is None else round(last.mean_class, 4),
        }
        calibration = self.calibration
        if calibration is not None and self.prototypes is None:  # trained since the fit
            calibration = calibration.model_copy(update={"prototype": None})
        weights = model.state_dict()
        if self.prototypes is not None:
            weights["prototypes"] = self.prototypes
        facts = checkpoint.make_facts(model.config, self.labels, self.base, training, calibration)
        checkpoint.save(self.settings.folder / name, weights, facts)

    def _result(
        self, train_clips: int, val_clips: int, interrupted: bool, stopped_early: bool
    ) -> Result:
        progress, seconds = self.progress, self._seconds()
        return Result(
            folder=self.settings.folder,
            train_clips=train_clips,
            val_clips=val_clips,
            epochs=progress.epochs,
            best_epoch=progress.best_epoch,
            best=progress.best,
            last=progress.last,
            seconds=seconds,
            wait=progress.wait_s / max(seconds, 1e-9),
            interrupted=interrupted,
            stopped_early=stopped_early,
        )
