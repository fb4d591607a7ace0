"""The results of `pevl benchmark`: one checkpoint on one split, with all clips."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from torch import Tensor

from pevl_cli.data.clips import LeftOut
from pevl_cli.data.manifest import Item
from pevl_cli.evaluation.cost import Cost
from pevl_cli.evaluation.speed import Speed
from pevl_cli.labels import LabelSet
from pevl_cli.metrics import TOP_K, Accuracy, Interval, Reliability, ranks
from pevl_cli.model.calibration import Calibration
from pevl_cli.model.sgmc import mean_similarity

FORMAT = 2  # of result.json


@dataclass(frozen=True)
class ClipResult:
    """The answer for one clip."""

    clip: str  # its name in the data set
    label: str  # true label
    group: str
    rank: int  # rank of the true label, from 1
    score: float  # score of the true label, in [0, 1]
    predictions: list[tuple[str, float]]  # the first five labels with their scores, best first

    @property
    def correct(self) -> bool:
        """Whether the answer is the true label."""
        return self.rank == 1


@dataclass(frozen=True)
class Outcome:
    """The measured results, the data, and the software and hardware."""

    dataset: str
    split: str  # "train", "val", "test", or "all"
    checkpoint: str
    accuracy: Accuracy
    intervals: dict[str, Interval]  # 95 %, of "top1" and "mean_class"
    groups: int  # number of groups of the bootstrap; 0 = over clips
    calibration: Calibration  # as in `pevl classify`
    reliability: Reliability  # of the calibrated scores
    error_as_trained: float  # calibration error at the temperature of training, in [0, 1]
    labels: list[str]
    left_out: list[LeftOut]
    incomplete: str  # available part of an incomplete split; empty = complete
    views: int
    cost: Cost
    speed: Speed | None
    provenance: dict[str, Any]  # versions, machine, hashes of weights, poses and data
    clips: list[ClipResult]

    @property
    def calibrated_on(self) -> str:
        """The clips of the calibration; empty if scores use the temperature of training."""
        calibration = self.calibration
        return f"{calibration.split}, {calibration.clips} clips" if calibration.split else ""

    def as_dict(self) -> dict[str, Any]:
        """The content of result.json."""
        content = {"format": FORMAT} | asdict(self)
        content["calibration"] = self.calibration.model_dump()
        content["left_out"] = [
            {"clip": c.item.name or str(c.item.path), "reason": c.reason} for c in self.left_out
        ]
        if self.speed is not None:
            content["speed"]["clips_per_s"] = self.speed.clips_per_s
        return content


def clip_results(
    similarities: Tensor,
    scores: Tensor,
    true: Sequence[int],
    items: Sequence[Item],
    names: Sequence[str],
    labels: LabelSet,
) -> list[ClipResult]:
    """One result per clip.

    similarities (N, B, C), scores (N, C) in [0, 1], N true labels, items and names.
    """
    similarity = mean_similarity(similarities)
    first = similarity.argmax(1).tolist()
    places = ranks(similarity, true).tolist()
    results = []
    for i, (item, label, best, rank) in enumerate(zip(items, true, first, places, strict=True)):
        values = scores[i]
        by_similarity = similarity[i].argsort(descending=True).tolist()
        order = [best, *(c for c in by_similarity if c != best)]
        results.append(
            ClipResult(
                clip=names[i],
                label=labels.names[label],
                group=item.group,
                rank=rank,
                score=float(values[label]),
                predictions=[(labels.names[c], float(values[c])) for c in order[:TOP_K]],
            )
        )
    return results
