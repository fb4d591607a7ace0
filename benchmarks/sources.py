"""How often a model is right on people, places and cameras that nothing was learnt from.

    python benchmarks/make_mini.py data CLIPS --out DIR ...
    pevl train --dataset DIR/fold0.csv --poses DIR/poses ... --out DIR/run0     (1, 2, 3 as well)
    python benchmarks/sources.py score DIR/fold0.csv DIR/run0/last --poses DIR/poses --out DIR/0.npz
    python benchmarks/sources.py report DIR/?.npz

The protocol by which defaults are to be chosen: field2's sources (gyms, courts, cameras) are dealt
into FOLDS folds, whole sources at a time; a model learns from all but one and is tested on the
clips of this one. They are named among all labels that the model knows.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import one_hot

from pevl_cli.data.clips import Clips
from pevl_cli.data.loader import Loader, worker_count
from pevl_cli.data.manifest import read_manifest
from pevl_cli.data.samples import view
from pevl_cli.hardware import choose_device
from pevl_cli.labels import read_labels
from pevl_cli.matching import (
    encode_labels,
    flips_at_test,
    match_samples,
    normalise_prototypes,
    sum_video_features,
)
from pevl_cli.metrics import intervals, reliability
from pevl_cli.model import checkpoint
from pevl_cli.model.calibration import Calibration, fit_calibration
from pevl_cli.model.pevl import PeVL
from pevl_cli.pose.files import read_poses

FOLDS = 4
PROTOTYPE_CLIPS = 8  # of each label, whose mean feature is its prototype


def deal_sources(labels: Sequence[str], sources: Sequence[str], folds: int = FOLDS) -> list[int]:
    """The fold of each clip: whole sources, each label's sources spread as evenly as they can be.

    The largest sources are dealt first, each to the fold that has the least of its labels yet.
    """
    names, kinds = sorted(set(sources)), sorted(set(labels))
    counts = np.zeros((len(names), len(kinds)))
    for label, source in zip(labels, sources, strict=True):
        counts[names.index(source), kinds.index(label)] += 1
    totals, dealt, fold_of = counts.sum(0), np.zeros((folds, len(kinds))), {}
    for i in np.argsort(-counts.sum(1), kind="stable"):
        crowding = [
            (((dealt[k] + counts[i]) / totals) ** 2).sum()
            - ((dealt[k] / totals) ** 2).sum()
            + 0.02 * folds * dealt[k].sum() / len(labels)
            for k in range(folds)
        ]
        fold = int(np.argmin(crowding))
        dealt[fold] += counts[i]
        fold_of[names[i]] = fold
    return [fold_of[source] for source in sources]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    steps = parser.add_subparsers(required=True)
    scored = steps.add_parser("score", help="similarities of a fold's test clips with all labels")
    scored.add_argument("clips", type=Path)
    scored.add_argument("checkpoint")
    scored.add_argument("--poses", type=Path, required=True)
    scored.add_argument("--labels", type=Path, help="the same labels in other words")
    scored.add_argument("--splits", nargs="+", default=["test"])
    scored.add_argument("--out", type=Path, required=True)
    scored.set_defaults(do=score)
    reported = steps.add_parser("report", help="the figures of all folds")
    reported.add_argument("folds", type=Path, nargs="+")
    reported.set_defaults(do=report)
    arguments = parser.parse_args()
    arguments.do(arguments)


def score(arguments: argparse.Namespace) -> None:
    model, facts = checkpoint.load(checkpoint.find(arguments.checkpoint))
    model.to(choose_device("auto"))
    labels = facts.label_set
    if arguments.labels:
        other = read_labels(arguments.labels)
        order = [other.names.index(name) for name in labels.names]
        labels = type(labels)(labels.names, tuple(other.texts[i] for i in order), labels.prompt)
    listed = read_manifest(arguments.clips)
    items = [item for split in arguments.splits for item in listed.in_split(split)]
    poses = read_poses(arguments.poses, None)
    clips = Clips(items, labels.names, facts.model, None, poses=poses)
    with torch.inference_mode():
        texts, flip = encode_labels(model, labels), flips_at_test(model, labels)
    workers = worker_count(None, str(model.device))
    samples = Loader(clips.__getitem__, range(len(clips)), workers, None)
    found = match_samples(model, list(samples), texts, flip_at_test=flip)
    near = None
    if facts.model.video:
        shown = Clips(listed.in_split("train"), labels.names, facts.model, None, poses=poses)
        near = found.prototype_similarity(prototypes(model, shown, len(labels)))
    np.savez(
        arguments.out,
        similarities=found.values.numpy(),
        prototypes=np.zeros(0) if near is None else near.numpy(),
        truth=clips.labels,
        names=[item.name for item in clips.items],
        groups=[item.group for item in clips.items],
        labels=labels.names,
        branches=list(facts.model.used_similarities),
    )
    right = found.values.nanmean(1).argmax(1) == torch.tensor(clips.labels)
    print(f"{arguments.out}: {len(clips)} clips, top-1 {right.double().mean():.1%}")


def prototypes(model: PeVL, clips: Clips, labels: int) -> Tensor:
    """The mean video feature of up to PROTOTYPE_CLIPS clips of each label, (C, e)."""
    clips.keep(clips.draw_examples(PROTOTYPE_CLIPS, 0))
    workers = worker_count(None, str(model.device))
    loaded = zip(clips.labels, Loader(clips.__getitem__, range(len(clips)), workers), strict=True)
    views = ((label, view(sample, model.config)) for label, sample in loaded)
    return normalise_prototypes(sum_video_features(model, views, labels))


def report(arguments: argparse.Namespace) -> None:
    folds = [Fold.read(file) for file in arguments.folds]
    # Names begin with the detector whose joints the clip has.
    for detector in sorted({name.split("/")[0] for fold in folds for name in fold.names}):
        _report([fold.of(detector) for fold in folds], detector, folds)


@dataclass(frozen=True)
class Fold:
    """What a model says of N clips from sources that it has not learnt from."""

    similarities: Tensor  # (N, B, C)
    prototypes: Tensor | None  # (N, C)
    truth: Tensor  # (N,)
    names: tuple[str, ...]
    groups: tuple[str, ...]
    branches: tuple[str, ...]  # (B,)

    @classmethod
    def read(cls, file: Path) -> Fold:
        stored = np.load(file)
        near = torch.from_numpy(stored["prototypes"])
        return cls(
            torch.from_numpy(stored["similarities"]),
            near if len(near) else None,
            torch.from_numpy(stored["truth"]),
            *(tuple(stored[key].tolist()) for key in ("names", "groups", "branches")),
        )

    def of(self, detector: str) -> Fold:
        """The clips with joints of this detector."""
        rows = [i for i, name in enumerate(self.names) if name.startswith(f"{detector}/")]
        return Fold(
            self.similarities[rows],
            None if self.prototypes is None else self.prototypes[rows],
            self.truth[rows],
            tuple(self.names[i] for i in rows),
            tuple(self.groups[i] for i in rows),
            self.branches,
        )

    def without_truth(self) -> Fold:
        """The same clips, as if their true labels were not known: clips of other actions."""
        true = one_hot(self.truth, self.similarities.shape[2]).bool()
        near = None if self.prototypes is None else self.prototypes.masked_fill(true, torch.nan)
        return replace(
            self,
            similarities=self.similarities.masked_fill(true[:, None], -torch.inf),
            prototypes=near,
        )


def fit_folds(folds: Sequence[Fold]) -> Calibration:
    """A calibration by what models say of sources that they have not learnt from."""
    near = [fold.prototypes for fold in folds if fold.prototypes is not None]
    return fit_calibration(
        torch.cat([fold.similarities for fold in folds]),
        torch.cat([fold.truth for fold in folds]).tolist(),
        "other sources",
        torch.cat(near) if len(near) == len(folds) else None,
    )


def _report(folds: Sequence[Fold], title: str, calibrated_by: Sequence[Fold]) -> None:
    values = torch.cat([fold.similarities for fold in folds])
    truth = torch.cat([fold.truth for fold in folds])
    groups = [group for fold in folds for group in fold.groups]
    right = values.nanmean(1).argmax(1) == truth
    top1 = intervals(right.numpy(), truth.tolist(), groups)["top1"]
    classes = [float(right[truth == i].double().mean()) for i in truth.unique()]
    print(
        f"{title}: top-1 {right.double().mean():.1%} (95 %: {top1.low:.0%} to {top1.high:.0%}), "
        f"mean class {np.mean(classes):.1%}, {len(right)} clips of {len(set(groups))} sources"
    )
    for i, branch in enumerate(folds[0].branches):
        alone = values[:, i].nan_to_num(-torch.inf).argmax(1) == truth
        print(f"  {branch} alone {alone.double().mean():.1%}")
    known, other, scores = [], [], []
    for k, fold in enumerate(folds):
        calibration = fit_folds([f for i, f in enumerate(calibrated_by) if i != k])
        scores.append(calibration.scores(fold.similarities, fold.prototypes))
        unknown = fold.without_truth()
        best_of_unknown = calibration.scores(unknown.similarities, unknown.prototypes).amax(1)
        threshold = calibration.threshold or 0.0
        known += (scores[-1].amax(1) < threshold).tolist()
        other += (best_of_unknown < threshold).tolist()
    error = reliability(torch.cat(scores), truth.tolist()).error
    print(
        f"  scores fitted to the other folds: refused {np.mean(known):.1%}, and "
        f"{np.mean(other):.1%} without the true label; calibration error {error:.1%}"
    )


if __name__ == "__main__":
    main()
