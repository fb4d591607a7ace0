"""Scores from similarities: fitted on validation clips, stored with a checkpoint, applied here.

Shapes: N clips, B similarities, C labels; similarities (N, B, C) and prototype similarities (N, C)
as `sgmc.Similarities` has them.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field
from scipy.optimize import minimize, minimize_scalar
from scipy.special import expit, log_softmax
from torch import Tensor

from pevl_cli.model.sgmc import mean_similarity

AGREEMENT_QUANTILE = 0.2  # of the validation clips' agreement: what is typical
REJECTED_SHARE = 0.07  # of the validation clips, at most, may score below the threshold
ABSENT_WEIGHT = 0.25  # of a clip whose label is not asked for, beside one whose label is
# Temperatures that are tried: from CLIP's sharpest 0.01 down and up.
MIN_TEMPERATURE, MAX_TEMPERATURE = 1e-3, 10.0


class Calibration(BaseModel):
    """How similarities become scores in [0, 1], and from which score on an answer is accepted.

    With ``platt`` = (slope, offset) a label's score is σ(slope·S + offset): each label by itself,
    so that no score is high where all labels are far. With ``prototype`` = (slope, typical)
    slope·(f - typical) is added, f the clip's `nearest_prototype`. Without ``platt`` it is
    softmax(S/τ). Either is lowered where the B similarities agree less than ``typical_agreement``.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    temperature: float = Field(gt=0)
    typical_agreement: float | None = Field(None, gt=0)
    platt: tuple[float, float] | None = None
    prototype: tuple[float, float] | None = None
    threshold: float | None = Field(None, ge=0, le=1)  # below it: none of the labels
    split: str = ""  # that it was fitted on; empty = the temperature of training, not fitted
    clips: int = Field(0, ge=0)  # of that split

    def scores(self, similarities: Tensor, prototype_similarity: Tensor | None = None) -> Tensor:
        """(N, B, C) and (N, C) -> (N, C) in [0, 1], float64; they order labels as S does."""
        mean = mean_similarity(similarities).double()
        if self.platt is None:
            chosen = (mean / self.temperature).softmax(1)
        else:
            logits = self.platt[0] * mean + self.platt[1]
            if self.prototype is not None and prototype_similarity is not None:
                slope, typical = self.prototype
                nearest = nearest_prototype(prototype_similarity, mean, typical)
                logits = logits + slope * (nearest - typical)[:, None]
            chosen = logits.sigmoid()
        if self.typical_agreement is None:
            return chosen
        agreement = stream_agreement(similarities, self.temperature)
        return chosen * (agreement / self.typical_agreement).clamp(max=1)[:, None]


def fit_calibration(
    similarities: Tensor,
    labels: Sequence[int],
    split: str,
    prototype_similarity: Tensor | None = None,
) -> Calibration:
    """The calibration that fits clips of a ``split`` best; ``labels`` are their right ones, (N,).

    In this order: τ, for which softmax(S/τ) is the likeliest to have given the right labels; the
    agreement that most of the clips have; slope and offset, for which scores tell best whether the
    first answer is right; slope of the nearest prototype; and the threshold that all but a few of
    the clips reach. Each clip stands for clips of other actions, too: once without its own label.

    Sources: Guo et al., On calibration of modern neural networks, 2017, Sec. 4.2; Platt 1999, whose
    targets a little below 1 keep a few clips without a mistake from making it sure of all; Snell et
    al., Prototypical networks, 2017. Differs: scikit-learn fits Platt's sigmoid and the temperature
    alone; here the sigmoid is multiplied by the agreement, which its solvers do not take.
    """
    values, true = mean_similarity(similarities).double().numpy(), np.asarray(labels)
    count, classes = values.shape
    if classes < 2:
        only = {"typical_agreement": 1.0, "platt": (1.0, 0.0), "threshold": 0.0}
        return Calibration(temperature=1.0, split=split, clips=count, **only)
    doubt = 1 / (count + 2)
    temperature = _fit_temperature(values, true, doubt)
    typical_agreement = float(
        stream_agreement(similarities, temperature).quantile(AGREEMENT_QUANTILE)
    )
    own = torch.nn.functional.one_hot(torch.as_tensor(true), classes).bool()
    both = torch.cat([similarities, similarities.masked_fill(own[:, None], -torch.inf)])
    means = mean_similarity(both).double()
    typical, near = np.nan, np.zeros(2 * count)
    if prototype_similarity is not None:
        typical = float(nearest_prototype(prototype_similarity, means[:count], np.nan).nanmean())
        seen = torch.cat([prototype_similarity, prototype_similarity.masked_fill(own, np.nan)])
        near = (nearest_prototype(seen, means, typical) - typical).nan_to_num().numpy()
    first = means.amax(1).numpy()
    agreed = (stream_agreement(both, temperature) / typical_agreement).clamp(max=1).numpy()
    right = np.append(values.argmax(1) == true, np.zeros(count, bool))
    target = np.where(right, 1 - doubt, doubt)
    weight = np.repeat((1.0, ABSENT_WEIGHT), count)

    def cross_entropy(slope: float, offset: float, near_slope: float = 0.0) -> float:
        if slope <= 0 or near_slope < 0:
            return np.inf
        logits = slope * first + offset + near_slope * near
        score = np.clip(expit(logits) * agreed, 1e-9, 1 - 1e-9)
        return -float((weight * (target * np.log(score) + (1 - target) * np.log1p(-score))).sum())

    start = [1 / temperature, -float(first.mean()) / temperature]
    slope, offset = minimize(lambda x: cross_entropy(*x), start, method="Nelder-Mead").x.tolist()
    prototype = None
    if near.any():
        # The slope of S stays: by what a clip looks like all labels would be as likely.
        start = [offset, slope / 2]
        best = minimize(lambda x: cross_entropy(slope, *x), start, method="Nelder-Mead").x.tolist()
        offset, prototype = best[0], (best[1], typical)
    fitted = Calibration(
        temperature=temperature,
        typical_agreement=typical_agreement,
        platt=(slope, offset),
        prototype=prototype,
        split=split,
        clips=count,
    )
    scores = fitted.scores(similarities, prototype_similarity)
    threshold = float(scores.amax(1).quantile(REJECTED_SHARE))
    return fitted.model_copy(update={"threshold": threshold})


def _fit_temperature(values: np.ndarray, true: np.ndarray, doubt: float) -> float:
    """τ of softmax(S/τ) with the least cross entropy to targets 1 - doubt, (N, C) and (N,)."""
    count, classes = values.shape
    target = np.full(values.shape, doubt / (classes - 1))
    target[np.arange(count), true] = 1 - doubt

    def cross_entropy(log_temperature: float) -> float:
        return -float((target * log_softmax(values / np.exp(log_temperature), axis=1)).sum())

    bounds = (np.log(MIN_TEMPERATURE), np.log(MAX_TEMPERATURE))
    return float(np.exp(minimize_scalar(cross_entropy, bounds=bounds, method="bounded").x))


def stream_agreement(similarities: Tensor, temperature: float) -> Tensor:
    """How far the B similarities of a clip agree: (N, B, C) -> (N,) in (0, 1], float64.

    The sum over labels of the geometric mean of each similarity's softmax(s/τ): 1 where all agree,
    near 0 where video and pose are sure of different labels, as they are where a clip shows none of
    them. NaN is left out.
    """
    parts = (similarities.double() / temperature).log_softmax(2).nanmean(1)
    return parts.exp().sum(1).nan_to_num(1)


def nearest_prototype(prototype_similarity: Tensor, mean: Tensor, typical: float) -> Tensor:
    """The largest prototype similarity of each clip: (N, C), and S (N, C), -> (N,), float64.

    It is ``typical`` for a clip without video, and where the first label has no prototype: then a
    low similarity with the others is no evidence against the answer.
    """
    first = prototype_similarity.gather(1, mean.argmax(1, keepdim=True))[:, 0]
    best = prototype_similarity.double().nan_to_num(-torch.inf).amax(1)
    return torch.where(first.isnan(), typical, best)
