"""What `pevl benchmark` gives: the figures of one checkpoint on one split, clip by clip."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from torch import Tensor

from pevl_cli.data.clips import LeftOut
from pevl_cli.data.manifest import Item
from pevl_cli.evaluation.cost import Cost
from pevl_cli.labels import LabelSet
from pevl_cli.metrics import (
    TOP,
    Accuracy,
    Interval,
    Reliability,
    ranks,
)
from pevl_cli.model.calibration import Calibration
from pevl_cli.model.sgmc import mean_similarity

FORMAT = 2  # of the JSON


@dataclass(frozen=True)
class ClipResult:
    clip: str  # its name in the data set
    label: str  # the right one
    group: str
    rank: int  # of the right label among all, from 1
    score: float  # of the right label
    predictions: list[tuple[str, float]]  # the first five with their scores

    @property
    def right(self) -> bool:
        return self.rank == 1


@dataclass(frozen=True)
class Speed:
    """Seconds a clip of each stage, one after the other, nothing cached."""

    clips: int  # that were timed
    decode_s: float | None  # None: there are no videos
    pose_s: float | None  # None: no detector is asked
    model_s: float
    memory_bytes: int | None  # at most, of the process, or of the GPU where there is one

    @property
    def clips_per_s(self) -> float:
        return 1 / ((self.decode_s or 0) + (self.pose_s or 0) + self.model_s)


@dataclass(frozen=True)
class Outcome:
    """What was measured, on what, and by what."""

    dataset: str
    split: str
    checkpoint: str
    accuracy: Accuracy
    intervals: dict[str, Interval]  # 95 %, of "top1" and "mean_class"
    groups: int  # that were drawn for them; 0 = clips were
    calibration: Calibration  # of the scores, as `pevl classify` uses it
    reliability: Reliability  # of these scores
    error_as_trained: float  # calibration error at the temperature of training
    labels: list[str]
    left_out: list[LeftOut]
    incomplete: str  # how much of the data set was there, if not all
    views: int
    cost: Cost
    speed: Speed | None
    made: dict[str, Any]  # versions, machine, weights
    clips: list[ClipResult]

    @property
    def fitted_on(self) -> str:
        """What the scores were fitted on; empty where they are those of training."""
        fitted = self.calibration
        return f"fitted on {fitted.split}, {fitted.clips} clips" if fitted.split else ""

    def as_dict(self) -> dict[str, Any]:
        facts = {"format": FORMAT} | asdict(self)
        facts["calibration"] = self.calibration.model_dump()
        facts["left_out"] = [
            {"clip": c.item.name or str(c.item.path), "reason": c.reason} for c in self.left_out
        ]
        if self.speed is not None:
            facts["speed"]["clips_per_s"] = self.speed.clips_per_s
        return facts


def _results(
    matches: Tensor,
    sure: Tensor,
    true: Sequence[int],
    items: Sequence[Item],
    names: Sequence[str],
    labels: LabelSet,
) -> list[ClipResult]:
    similarity = mean_similarity(matches)
    first = similarity.argmax(1).tolist()
    places = ranks(similarity, true).tolist()
    out = []
    for i, (item, t, best, rank) in enumerate(zip(items, true, first, places, strict=True)):
        row, values = similarity[i], sure[i]
        order = [best, *(c for c in row.argsort(descending=True).tolist() if c != best)]
        out.append(
            ClipResult(
                clip=names[i],
                label=labels.names[t],
                group=item.group,
                rank=rank,
                score=float(values[t]),
                predictions=[(labels.names[c], float(values[c])) for c in order[:TOP]],
            )
        )
    return out
