"""Calibration: scores from similarities; fitted on validation clips, stored with a checkpoint.

Shapes: N clips, B similarities, C labels. Similarities (N, B, C) and prototype similarities (N, C)
are those of `sgmc.Similarities`; S (N, C) is the mean of the B similarities.
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

AGREEMENT_QUANTILE = 0.2  # quantile of the validation clips' agreement = typical agreement
REJECTED_SHARE = 0.07  # share of the validation clips with a score below the threshold
ABSENT_WEIGHT = 0.25  # weight of a clip without its true label; weight with it: 1
# Range of temperatures in the fit; the least of CLIP is 0.01.
MIN_TEMPERATURE, MAX_TEMPERATURE = 1e-3, 10.0


class Calibration(BaseModel):
    """A mapping of similarities to scores in [0, 1], and a threshold for "none of these labels".

    With ``platt`` = (slope, offset) a label's score is σ(slope·S + offset), independent of the
    other labels: all scores are low if all similarities are low. With ``prototype`` = (slope,
    typical) slope·(f - typical) is added to the logit, f the clip's `nearest_prototype`. Without
    ``platt`` the score is softmax(S/τ). Both kinds are multiplied by min(agreement /
    typical_agreement, 1).
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    temperature: float = Field(gt=0)
    typical_agreement: float | None = Field(None, gt=0)
    platt: tuple[float, float] | None = None
    prototype: tuple[float, float] | None = None
    threshold: float | None = Field(None, ge=0, le=1)  # best score below it = none of the labels
    split: str = ""  # split of the fit; empty: not fitted, temperature of training
    clips: int = Field(0, ge=0)  # number of clips of the fit

    def scores(self, similarities: Tensor, prototype_similarity: Tensor | None = None) -> Tensor:
        """Scores (N, C) in [0, 1], float64, of similarities (N, B, C).

        ``prototype_similarity`` (N, C) or None. Sorting labels by score or by S gives the same
        order.
        """
        mean = mean_similarity(similarities).double()
        if self.platt is None:
            scores = (mean / self.temperature).softmax(1)
        else:
            logits = self.platt[0] * mean + self.platt[1]
            if self.prototype is not None and prototype_similarity is not None:
                slope, typical = self.prototype
                nearest = nearest_prototype(prototype_similarity, mean, typical)
                logits = logits + slope * (nearest - typical)[:, None]
            scores = logits.sigmoid()
        if self.typical_agreement is None:
            return scores
        agreement = stream_agreement(similarities, self.temperature)
        return scores * (agreement / self.typical_agreement).clamp(max=1)[:, None]


def fit_calibration(
    similarities: Tensor,
    labels: Sequence[int],
    split: str,
    prototype_similarity: Tensor | None = None,
) -> Calibration:
    """Fit a calibration to the N clips of a ``split``; ``labels``: indices of the true labels.

    similarities (N, B, C), prototype_similarity (N, C) or None.

    Steps: τ, by the cross entropy of softmax(S/τ); the typical agreement, a quantile; slope and
    offset of the sigmoid, by the cross entropy between the best label's score and whether this
    label is correct; the slope of the nearest prototype; the threshold, a quantile of the best
    scores. The sigmoid is fitted with each clip twice: with all labels, and without its true label,
    as a clip of an unknown action.

    Sources: Guo et al., On calibration of modern neural networks, 2017, Sec. 4.2; Platt 1999, whose
    targets slightly below 1 keep scores below 1 if all of a few clips are correct; Snell et al.,
    Prototypical networks, 2017. Differs: scikit-learn fits Platt's sigmoid and the temperature
    without a factor; here the sigmoid is multiplied by the agreement.
    """
    values, true = mean_similarity(similarities).double().numpy(), np.asarray(labels)
    count, classes = values.shape
    if classes < 2:
        constants = {
            "typical_agreement": 1.0,
            "platt": (1.0, 0.0),
            "threshold": 0.0,
        }
        return Calibration(temperature=1.0, split=split, clips=count, **constants)
    smoothing = 1 / (count + 2)
    temperature = _fit_temperature(values, true, smoothing)
    typical_agreement = float(
        stream_agreement(similarities, temperature).quantile(AGREEMENT_QUANTILE)
    )
    true_label = torch.nn.functional.one_hot(torch.as_tensor(true), classes).bool()
    # Each clip with all labels, then each clip without its true label.
    twice = torch.cat([similarities, similarities.masked_fill(true_label[:, None], -torch.inf)])
    means = mean_similarity(twice).double()
    typical, nearest = np.nan, np.zeros(2 * count)
    if prototype_similarity is not None:
        typical = float(nearest_prototype(prototype_similarity, means[:count], np.nan).nanmean())
        without = prototype_similarity.masked_fill(true_label, np.nan)
        both = torch.cat([prototype_similarity, without])
        nearest = (nearest_prototype(both, means, typical) - typical).nan_to_num().numpy()
    correct = np.append(values.argmax(1) == true, np.zeros(count, bool))
    slope, offset, prototype_slope = _fit_sigmoid(
        best=means.amax(1).numpy(),
        agreement=(stream_agreement(twice, temperature) / typical_agreement).clamp(max=1).numpy(),
        nearest=nearest,
        target=np.where(correct, 1 - smoothing, smoothing),
        weight=np.repeat((1.0, ABSENT_WEIGHT), count),
        temperature=temperature,
    )
    fitted = Calibration(
        temperature=temperature,
        typical_agreement=typical_agreement,
        platt=(slope, offset),
        prototype=None if prototype_slope is None else (prototype_slope, typical),
        split=split,
        clips=count,
    )
    scores = fitted.scores(similarities, prototype_similarity)
    threshold = float(scores.amax(1).quantile(REJECTED_SHARE))
    return fitted.model_copy(update={"threshold": threshold})


def _fit_sigmoid(
    best: np.ndarray,
    agreement: np.ndarray,
    nearest: np.ndarray,
    target: np.ndarray,
    weight: np.ndarray,
    temperature: float,
) -> tuple[float, float, float | None]:
    """Slope and offset of the best S, and slope of the nearest prototype; all arrays (M,).

    Minimises the weighted cross entropy between ``target`` and the score
    σ(slope·best + offset + prototype_slope·nearest)·agreement. The third result is None if
    ``nearest`` is all 0.
    """

    def cross_entropy(slope: float, offset: float, prototype_slope: float = 0.0) -> float:
        if slope <= 0 or prototype_slope < 0:
            return np.inf
        logits = slope * best + offset + prototype_slope * nearest
        score = np.clip(expit(logits) * agreement, 1e-9, 1 - 1e-9)
        return -float((weight * (target * np.log(score) + (1 - target) * np.log1p(-score))).sum())

    start = [1 / temperature, -float(best.mean()) / temperature]
    slope, offset = minimize(lambda x: cross_entropy(*x), start, method="Nelder-Mead").x.tolist()
    if not nearest.any():
        return slope, offset, None
    # The slope of S is kept: a joint fit lowers it, and all labels get similar scores.
    start = [offset, slope / 2]
    fit = minimize(lambda x: cross_entropy(slope, *x), start, method="Nelder-Mead")
    offset, prototype_slope = fit.x.tolist()
    return slope, offset, prototype_slope


def _fit_temperature(values: np.ndarray, true: np.ndarray, smoothing: float) -> float:
    """τ of softmax(S/τ) with the least cross entropy; values (N, C), true (N,).

    Targets: 1 - smoothing.
    """
    count, classes = values.shape
    target = np.full(values.shape, smoothing / (classes - 1))
    target[np.arange(count), true] = 1 - smoothing

    def cross_entropy(log_temperature: float) -> float:
        return -float((target * log_softmax(values / np.exp(log_temperature), axis=1)).sum())

    bounds = (np.log(MIN_TEMPERATURE), np.log(MAX_TEMPERATURE))
    return float(np.exp(minimize_scalar(cross_entropy, bounds=bounds, method="bounded").x))


def stream_agreement(similarities: Tensor, temperature: float) -> Tensor:
    """Agreement of the B similarities of each clip: (N, B, C) -> (N,) in (0, 1], float64.

    The sum over labels of the geometric mean of each similarity's softmax(s/τ): 1 if all are
    equal; near 0 if video and pose have different best labels with high scores, which is typical of
    clips of unknown actions. NaN is ignored.
    """
    parts = (similarities.double() / temperature).log_softmax(2).nanmean(1)
    return parts.exp().sum(1).nan_to_num(1)


def nearest_prototype(prototype_similarity: Tensor, mean: Tensor, typical: float) -> Tensor:
    """The largest prototype similarity of each clip: (N, C), with S (N, C) -> (N,), float64.

    It is ``typical`` for a clip without video, and if the best label by S has no prototype: then a
    low similarity with the other prototypes is no evidence against the answer.
    """
    first = prototype_similarity.gather(1, mean.argmax(1, keepdim=True))[:, 0]
    best = prototype_similarity.double().nan_to_num(-torch.inf).amax(1)
    return torch.where(first.isnan(), typical, best)
