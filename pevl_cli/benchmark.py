"""A checkpoint's figures on a data set, by that set's own split and metrics."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import torch

from pevl_cli import recognise, run
from pevl_cli.clips import Clips, LeftOut
from pevl_cli.datasets.manifest import Manifest
from pevl_cli.errors import PevlError, UsageError
from pevl_cli.evaluate import similarities
from pevl_cli.labels import LabelSet
from pevl_cli.metrics import Accuracy, accuracy
from pevl_cli.model import checkpoint
from pevl_cli.recorded import RecordedPoses

CLIPS_AT_ONCE = 16


@dataclass(frozen=True)
class Outcome:
    """What was measured, and on what."""

    dataset: str
    split: str
    checkpoint: str
    accuracy: Accuracy
    left_out: list[LeftOut]
    incomplete: str  # how much of the data set was there, if not all
    views: int

    def as_dict(self) -> dict[str, Any]:
        facts = asdict(self)
        facts["left_out"] = [
            {"clip": c.item.name or str(c.item.path), "reason": c.reason} for c in self.left_out
        ]
        return facts


def benchmark(
    manifest: Manifest,
    recogniser: recognise.Recogniser,
    checkpoint_name: str,
    poses: RecordedPoses | None = None,
    split: str | None = None,
    views: int = 1,
    listener: Callable[[int, int], None] = lambda done, total: None,
) -> Outcome:
    """Top-1, mean class and per-class accuracy on a split; by default the one that is published.

    PevlError when labels do not fit or no clip can be read.
    """
    config = recogniser.model.config
    if not config.video and recogniser.detector is None and poses is None:
        raise UsageError(f"{checkpoint_name}: looks at poses only, and cannot do without them.")
    if split is None and manifest.drawn and not trained_on(manifest, checkpoint_name):
        split, listed = "all", list(manifest.items)  # nobody said that some are for training
    else:
        usual = (s for s in (manifest.tested, "val") if manifest.of(s))
        split = split or next(usual, manifest.tested)
        listed = manifest.of(split)
    if not listed:
        known = sorted({item.split for item in manifest.items})
        raise UsageError(f"{manifest.source}: has no split '{split}', but {', '.join(known)}.")
    labels = fitting_labels(manifest, recogniser.labels, checkpoint_name)
    items = [i for i in listed if i.there or (poses is not None and poses.find(i.name))]
    clips = Clips(items, labels.names, config, recogniser.detector, 0, poses)
    texts = recogniser.encode(labels)
    rows, labels_of, left_out = [], [], []
    samples = []
    for i, item in enumerate(items):
        try:
            samples.append(clips[i])
            labels_of.append(clips.labels[i])
        except (PevlError, OSError) as error:
            left_out.append(LeftOut(item, str(error)))
        if len(samples) == CLIPS_AT_ONCE:
            rows.append(similarities(recogniser.model, samples, texts, views))
            samples = []
        listener(i + 1, len(items))
    if samples:
        rows.append(similarities(recogniser.model, samples, texts, views))
    if not rows:
        why = f"; the first: {left_out[0].reason}" if left_out else ", nor poses of it"
        raise PevlError(
            f"{manifest.source}: none of the {len(listed)} clips of split '{split}' can be read"
            f"{why}"
        )
    bad = {c.item for c in left_out}
    readable = [item for item in items if item not in bad]
    return Outcome(
        dataset=manifest.title,
        split=split,
        checkpoint=checkpoint_name,
        accuracy=accuracy(torch.cat(rows), labels_of, labels.names),
        left_out=left_out,
        incomplete=manifest.incomplete(readable, () if split == "all" else (split,)),
        views=views,
    )


def trained_on(manifest: Manifest, checkpoint_name: str) -> bool:
    """Whether it is the very data set, with the same splits, that a checkpoint was trained on."""
    training = checkpoint.read_facts(checkpoint.find(checkpoint_name)).training
    return training.get("data_hash") == run.data_hash(manifest)


def seen_in_training(split: str, manifest: Manifest, checkpoint_name: str) -> bool:
    """Whether a checkpoint was trained on this split of a data set of this name."""
    training = checkpoint.read_facts(checkpoint.find(checkpoint_name)).training
    if training.get("data") != manifest.title:
        return False
    return split == "train" or (split == "val" and bool(training.get("all_clips")))


def fitting_labels(manifest: Manifest, known: LabelSet | None, checkpoint_name: str) -> LabelSet:
    """The labels to choose among: the checkpoint's, if the data set's are among them.

    PevlError shows the first that differs. Where labels are numbers (a pickle's), their order has
    to be the same, or numbers would mean other actions.
    """
    if known is None:
        return manifest.labels
    theirs, ours = manifest.labels.names, known.names
    if manifest.poses == manifest.source:
        for i in range(max(len(theirs), len(ours))):
            a = theirs[i] if i < len(theirs) else "(none)"
            b = ours[i] if i < len(ours) else "(none)"
            if a != b:
                raise PevlError(
                    f"label {i} is '{a}' in {manifest.source.name} and '{b}' in {checkpoint_name}: "
                    "the same label file is needed for both."
                )
        return known
    used = {item.label for item in manifest.items}
    for i, name in enumerate(theirs):
        if name in used and name not in ours:
            raise PevlError(
                f"label {i} of {manifest.name or manifest.source}, '{name}', is none of the "
                f"{len(ours)} labels of {checkpoint_name} (whose label {min(i, len(ours) - 1)} is "
                f"'{ours[min(i, len(ours) - 1)]}')."
            )
    return known
