"""Training: the paper's recipe for models on CLIP, a short one for `mini` from scratch.

Knows nothing about consoles: progress goes to a callback, results come back as facts.
"""

from __future__ import annotations

import os
import platform
import time
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.optim.lr_scheduler import CosineAnnealingLR, LinearLR, SequentialLR
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from pevl_cli import __version__
from pevl_cli.datasets.manifest import Item, Manifest
from pevl_cli.errors import PevlError
from pevl_cli.evaluate import Accuracy, accuracy, similarities
from pevl_cli.hardware import has_bf16
from pevl_cli.labels import LabelSet
from pevl_cli.model import checkpoint
from pevl_cli.model.clip import load_clip
from pevl_cli.model.config import CONFIGS, ModelConfig
from pevl_cli.model.pevl import Batch, PeVL
from pevl_cli.pose import PoseDetector
from pevl_cli.samples import Augmentation, Sample, collate, read_sample, vary

DEFAULT_CLIP = {"vit-b-16": "ViT-B-16-quickgelu:openai", "vit-l-14": "ViT-L-14-quickgelu:openai"}
# Decoded clips are kept in memory up to this much, beyond it they are decoded again each epoch.
KEEP_BYTES = 6 << 30


@dataclass(frozen=True)
class Recipe:
    """How to train. The defaults are the paper's (Sec. 4.1) where it says."""

    epochs: int = 50
    batch_size: int = 8
    learning_rate: float = 8e-6
    weight_decay: float = 0.05
    warmup_epochs: float = 3.0
    ema_decay: float = 0.0  # 0 = off; else weights averaged over training are kept and tested
    balance: float = 0.0  # 0 = every clip equally often, 1 = every class equally often
    clip_norm: float = 1.0
    seed: int = 0


RECIPES = {
    "vit-b-16": Recipe(),
    "vit-l-14": Recipe(),
    "mini": Recipe(
        epochs=60,
        batch_size=16,
        learning_rate=1e-3,
        ema_decay=0.98,
        balance=0.5,
    ),
}


@dataclass(frozen=True)
class Event:
    """Where training stands, after a step or an epoch."""

    stage: str  # "reading", "training", "validating"
    done: int
    total: int
    epoch: int = 0
    loss: float | None = None
    learning_rate: float | None = None
    train_top1: float | None = None
    val: Accuracy | None = None


@dataclass
class Result:
    folder: Path
    epochs: int
    best_epoch: int
    best: Accuracy | None
    last: Accuracy | None
    seconds: float
    interrupted: bool = False
    skipped: list[str] = field(default_factory=list)


Listener = Callable[[Event], None]


class Clips:
    """The readable clips of a split, decoded once and kept while memory allows."""

    def __init__(
        self,
        items: Sequence[Item],
        labels: LabelSet,
        config: ModelConfig,
        detector: PoseDetector | None,
        listener: Listener,
    ) -> None:
        self.config, self.detector = config, detector
        self.items: list[Item] = []
        self.labels: list[int] = []
        self.skipped: list[str] = []
        self._kept: list[Sample | None] = []
        index = {name: i for i, name in enumerate(labels.names)}
        kept_bytes = 0
        with ThreadPoolExecutor(max(os.cpu_count() or 1, 1)) as pool:
            for done, (item, sample) in enumerate(
                zip(items, pool.map(self._try_read, items), strict=True), 1
            ):
                if isinstance(sample, Sample):
                    kept_bytes += sample.frames.nbytes
                    self.items.append(item)
                    self.labels.append(index[item.label])
                    self._kept.append(sample if kept_bytes < KEEP_BYTES else None)
                else:
                    self.skipped.append(sample)
                listener(Event("reading", done, len(items)))

    def _try_read(self, item: Item) -> Sample | str:
        try:
            return self._read(item)
        except PevlError as error:
            return str(error)

    def _read(self, item: Item) -> Sample:
        return read_sample(item.path, self.config, self.detector, item.start_s, item.end_s)

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, i: int) -> Sample:
        return self._kept[i] or self._read(self.items[i])


def train(
    manifest: Manifest,
    config_name: str,
    folder: Path,
    recipe: Recipe | None = None,
    changes: dict[str, object] | None = None,
    detector: PoseDetector | None = None,
    clip: str | None = None,
    augmentation: Augmentation | None = None,
    device: str = "cpu",
    listener: Listener = lambda event: None,
) -> Result:
    """Train a model on a manifest and write `best/`, `last/` and their facts into ``folder``.

    ``changes`` are fields of the config to set otherwise; ``clip`` is where CLIP's weights are.
    KeyboardInterrupt ends training early and still leaves both checkpoints.
    """
    recipe = recipe or RECIPES[config_name]
    torch.manual_seed(recipe.seed)
    changes = dict(changes or {})
    if detector is None:
        # Without the actor there is nothing to cut out, now and whenever the model is used.
        changes |= {"pose": False, "crop": "full"}
    else:
        detector.digest()  # weights that cannot be had are told once, not for each clip
    config = ModelConfig.model_validate(CONFIGS[config_name].model_dump() | changes)
    base_state, base = None, None
    try:  # told now, not after an hour
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise PevlError(f"{folder}: not a folder to write to ({error.strerror}).") from error
    if config.frozen_base:
        source = clip or DEFAULT_CLIP[config_name]
        base_state, config, digest = load_clip(source, config)
        base = checkpoint.Base(source=source, digest=digest)
    train_clips = Clips(manifest.of("train"), manifest.labels, config, detector, listener)
    val_clips = Clips(manifest.of("val"), manifest.labels, config, detector, listener)
    if len(set(train_clips.labels)) < 2:
        raise PevlError(
            f"{manifest.source}: fewer than two classes have readable training clips; "
            f"{len(train_clips.skipped)} could not be read"
            + (f", the first: {train_clips.skipped[0]}" if train_clips.skipped else ".")
        )
    model = PeVL(config)
    if base_state is not None:
        model.load_state_dict(base_state, strict=False)  # its names were checked by load_clip
    trainer = Trainer(model.to(device), manifest.labels, recipe, augmentation, listener)
    facts = {
        "pevl": __version__,
        "torch": torch.__version__,
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, {device}",
        "data": manifest.source.parent.name if manifest.source.is_file() else manifest.source.name,
        "train_clips": len(train_clips),
        "val_clips": len(val_clips),
        "recipe": asdict(recipe),
        "pose_weights": detector.digest() if detector is not None else None,
    }
    result = trainer.fit(train_clips, val_clips, folder, base, facts)
    result.skipped = train_clips.skipped + val_clips.skipped
    return result


class Trainer:
    """One model, its optimiser and its schedule."""

    def __init__(
        self,
        model: PeVL,
        labels: LabelSet,
        recipe: Recipe,
        augmentation: Augmentation | None,
        listener: Listener,
    ) -> None:
        self.model, self.labels, self.recipe, self.listener = model, labels, recipe, listener
        augmentation = augmentation or Augmentation()
        if labels.names_a_side:  # a mirrored left kick is a right one
            augmentation = Augmentation(**{**asdict(augmentation), "mirror": False})
        if not (model.config.video and model.config.pose):
            augmentation = Augmentation(**{**asdict(augmentation), "stream_loss": 0.0})
        self.augmentation = augmentation
        self.rng = np.random.default_rng(recipe.seed)
        self.averaged: AveragedModel | None = None
        if recipe.ema_decay:
            self.averaged = AveragedModel(
                model, multi_avg_fn=get_ema_multi_avg_fn(recipe.ema_decay), use_buffers=True
            )

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
        recipe, started = self.recipe, time.monotonic()
        steps = max(len(train_clips) // recipe.batch_size, 1)
        optimiser = torch.optim.AdamW(
            _groups(self.model, recipe.weight_decay), lr=recipe.learning_rate
        )
        schedule = _schedule(optimiser, steps * recipe.epochs, int(steps * recipe.warmup_epochs))
        result = Result(folder, 0, 0, None, None, 0.0)
        best = -1.0
        try:
            for epoch in range(1, recipe.epochs + 1):
                self._epoch(train_clips, steps, epoch, optimiser, schedule)
                result.epochs = epoch
                # Checked about 30 times: often enough to choose, seldom enough to cost little.
                if epoch % max(recipe.epochs // 30, 1) and epoch < recipe.epochs:
                    continue
                result.last = self.test(val_clips, epoch) if len(val_clips) else None
                value = 0.0 if result.last is None else result.last.top1 + result.last.mean_class
                if value >= best:
                    best, result.best, result.best_epoch = value, result.last, epoch
                    self._save(folder / "best", base, facts, result, started)
        except KeyboardInterrupt:
            result.interrupted = True
        self._save(folder / "last", base, facts, result, started)
        if best < 0:  # interrupted before the first check
            self._save(folder / "best", base, facts, result, started)
        result.seconds = time.monotonic() - started
        return result

    def test(self, clips: Clips, epoch: int) -> Accuracy:
        model = self.tested_model.eval()
        with torch.inference_mode():
            texts = model.encode_text(self.labels.prompts)
        found = []
        for start in range(0, len(clips), 16):
            part = [clips[i] for i in range(start, min(start + 16, len(clips)))]
            found.append(similarities(model, part, texts))
        got = accuracy(torch.cat(found), clips.labels, self.labels.names)
        self.listener(Event("validating", len(clips), len(clips), epoch, val=got))
        return got

    def _epoch(
        self,
        clips: Clips,
        steps: int,
        epoch: int,
        optimiser: torch.optim.Optimizer,
        schedule: torch.optim.lr_scheduler.LRScheduler,
    ) -> None:
        model, recipe = self.model.train(), self.recipe
        order = self._order(clips.labels, steps * recipe.batch_size)
        device = model.logit_scale.device
        half = has_bf16(device.type)
        right = seen = 0
        for step in range(steps):
            chosen = order[step * recipe.batch_size : (step + 1) * recipe.batch_size]
            batch = self._batch(clips, chosen).to(device)
            classes = torch.tensor([clips.labels[i] for i in chosen])
            # The batch's distinct labels only, each encoded once.
            distinct, labels = torch.unique(classes, return_inverse=True)
            prompts = [self.labels.prompts[int(c)] for c in distinct]
            with torch.autocast(device.type, torch.bfloat16, enabled=half), _attention(device):
                texts = model.encode_text(prompts)
                if model.text is None:
                    texts = texts[distinct.to(device)]
                loss, similarity = model.loss(batch, texts, labels.to(device))
            if not torch.isfinite(loss):
                raise PevlError(
                    f"training went wrong in epoch {epoch}: the loss is {loss.item()}. "
                    "Lower --learning-rate."
                )
            optimiser.zero_grad(set_to_none=True)
            with _attention(device):
                loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), recipe.clip_norm)
            optimiser.step()
            schedule.step()
            if self.averaged is not None:
                self.averaged.update_parameters(model)
            right += int((similarity.argmax(1).cpu() == labels).sum())
            seen += len(chosen)
            self.listener(
                Event(
                    "training",
                    (epoch - 1) * steps + step + 1,
                    steps * recipe.epochs,
                    epoch,
                    float(loss.detach()),
                    float(schedule.get_last_lr()[0]),
                    right / seen,
                )
            )

    def _order(self, labels: Sequence[int], count: int) -> np.ndarray:
        """Clips of one epoch; with ``balance`` the rarer classes come more often."""
        if not self.recipe.balance or count > len(labels):
            rounds = -(-count // len(labels))
            order = np.concatenate([self.rng.permutation(len(labels)) for _ in range(rounds)])
            return order[:count]
        sizes = Counter(labels)
        weight = np.array([sizes[c] ** -self.recipe.balance for c in labels], float)
        return self.rng.choice(len(labels), count, replace=False, p=weight / weight.sum())

    def _batch(self, clips: Clips, chosen: np.ndarray) -> Batch:
        config = self.model.config
        return collate([vary(clips[i], config, self.augmentation, self.rng) for i in chosen])

    def _save(
        self,
        folder: Path,
        base: checkpoint.Base | None,
        facts: dict[str, object],
        result: Result,
        started: float,
    ) -> None:
        training = {
            **facts,
            "epochs_done": result.epochs,
            "seconds": round(time.monotonic() - started),
            "val_top1": None if result.last is None else round(result.last.top1, 4),
            "val_mean_class": None if result.last is None else round(result.last.mean_class, 4),
        }
        model = self.tested_model
        stored = checkpoint.facts_of(model.config, self.labels, base, training)
        checkpoint.save(folder, model.state_dict(), stored)


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


def _schedule(
    optimiser: torch.optim.Optimizer, steps: int, warmup: int
) -> torch.optim.lr_scheduler.LRScheduler:
    warmup = min(warmup, max(steps - 1, 0))
    cosine = CosineAnnealingLR(optimiser, max(steps - warmup, 1))
    if not warmup:
        return cosine
    rise = LinearLR(optimiser, 1e-3, total_iters=warmup)
    return SequentialLR(optimiser, [rise, cosine], [warmup])
