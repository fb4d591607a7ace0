"""TODO."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from scipy.optimize import minimize, minimize_scalar
from scipy.special import expit, log_softmax
from torch import Tensor

from pevl_cli.model.sgmc import mean_of

UNUSUAL = 0.2  # of known clips: their similarities agree less than is usual
REFUSED = 0.07  # of known clips, at most, may be taken for none of the labels
ABSENT = 0.25  # clips of none of the labels for each known one, as scores expect them
# Temperatures that are tried: from CLIP's sharpest 0.01 down and up.
LOWEST, HIGHEST = 1e-3, 10.0


@dataclass(frozen=True)
class Fitted:
    """What makes scores mean something; see `model.sgmc.scores`."""

    temperature: float
    agreement: float  # that is usual of known actions
    slope: float  # of S, and ...
    offset: float  # ... where a label is as likely as not
    threshold: float  # of the first score: what is below shows none of the labels, or is unclear
    familiarity: tuple[float, float] | None = None  # slope of `nearest`, and what is typical

    def scores(self, similarities: Tensor, familiar: Tensor | None = None) -> Tensor:
        """(N, B, C) and (N, C) -> (N, C)"""
        fitted = self.temperature, self.agreement, (self.slope, self.offset)
        return scores(similarities, *fitted, familiar, self.familiarity)


# -- how much scores mean ---------------------------------------------------------------------


def fit_scores(
    similarities: Tensor, labels: Sequence[int], familiar: Tensor | None = None
) -> Fitted:
    """The τ for which softmax(S/τ) is the likeliest to have given the right labels, the agreement
    that most of these clips have, the slopes and offset for which scores tell best whether the
    first answer is right, and the score that all but a few of these answers reach.

    What clips of other actions look like is learnt from the same clips, each without its own label
    among the others.

    Sources: Guo et al., On calibration of modern neural networks, 2017, Sec. 4.2; Platt 1999, whose
    targets a little below 1 keep a few clips without a mistake from making it sure of all; Snell et
    al., Prototypical networks, 2017.
    """
    values, true = mean_of(similarities).double().numpy(), np.asarray(labels)
    count, classes = values.shape
    if classes < 2:
        return Fitted(1.0, 1.0, 1.0, 0.0, 0.0)
    doubt = 1 / (count + 2)
    target = np.full(values.shape, doubt / (classes - 1))
    target[np.arange(count), true] = 1 - doubt

    def surprise(log_temperature: float) -> float:
        return -float((target * log_softmax(values / np.exp(log_temperature), axis=1)).sum())

    bounds = (np.log(LOWEST), np.log(HIGHEST))
    temperature = float(np.exp(minimize_scalar(surprise, bounds=bounds, method="bounded").x))
    usual = float(agreement(similarities, temperature).quantile(UNUSUAL))
    own = torch.nn.functional.one_hot(torch.as_tensor(true), classes).bool()
    absent = similarities.masked_fill(own[:, None], -torch.inf)
    both = torch.cat([similarities, absent])
    means = mean_of(both).double()
    typical, near = np.nan, np.zeros(2 * count)
    if familiar is not None:
        typical = float(nearest(familiar, means[:count], np.nan).nanmean())
        seen = torch.cat([familiar, familiar.masked_fill(own, np.nan)])
        near = (nearest(seen, means, typical) - typical).nan_to_num().numpy()
    first = means.amax(1).numpy()
    agreed = (agreement(both, temperature) / usual).clamp(max=1).numpy()
    right = np.append(values.argmax(1) == true, np.zeros(count, bool))
    wanted = np.where(right, 1 - doubt, doubt)
    weight = np.repeat((1.0, ABSENT), count)

    def mistaken(slope: float, offset: float, more: float = 0.0) -> float:
        if slope <= 0 or more < 0:
            return np.inf
        logits = slope * first + offset + more * near
        score = np.clip(expit(logits) * agreed, 1e-9, 1 - 1e-9)
        return -float((weight * (wanted * np.log(score) + (1 - wanted) * np.log1p(-score))).sum())

    middle = float(first.mean())
    begin = [1 / temperature, -middle / temperature]
    slope, offset = minimize(lambda x: mistaken(*x), begin, method="Nelder-Mead").x.tolist()
    familiarity = None
    if near.any():
        # The slope of S stays: by what a clip looks like all labels would be as likely.
        begin = [offset, slope / 2]
        best = minimize(lambda x: mistaken(slope, *x), begin, method="Nelder-Mead").x.tolist()
        offset, familiarity = best[0], (best[1], typical)
    found = Fitted(temperature, usual, slope, offset, 0.0, familiarity)
    reached = float(found.scores(similarities, familiar).amax(1).quantile(REFUSED))
    return replace(found, threshold=reached)


def agreement(similarities: Tensor, temperature: float) -> Tensor:
    """How far B similarities see the same in a clip: (N, B, C) -> (N,) in (0, 1], float64.

    The sum over labels of the geometric mean of what each makes of them, softmax(s/τ): 1 where they
    are at one, near 0 where video and pose are sure of different labels, as they are where a clip
    shows none of them. NaN is left out.
    """
    parts = (similarities.double() / temperature).log_softmax(2).nanmean(1)
    return parts.exp().sum(1).nan_to_num(1)


def nearest(familiar: Tensor, mean: Tensor, typical: float) -> Tensor:
    """How far each clip looks like any that a label was learnt from: the largest of
    `Similarities.familiar`; both and S (N, C) -> (N,), float64.

    What is ``typical`` for a clip without a video, and where the first label was not learnt from
    any: that it looks like no other is nothing against it.
    """
    first = familiar.gather(1, mean.argmax(1, keepdim=True))[:, 0]
    best = familiar.double().nan_to_num(-torch.inf).amax(1)
    return torch.where(first.isnan(), typical, best)


def scores(
    similarities: Tensor,
    temperature: float,
    usual: float | None = None,
    likely: tuple[float, float] | None = None,
    familiar: Tensor | None = None,
    familiarity: tuple[float, float] | None = None,
) -> Tensor:
    """How sure each label is: (N, B, C) -> (N, C) in [0, 1], float64; they order labels as S does.

    With ``likely`` = (slope, offset), σ(slope·S + offset): each label by itself, so that none is
    sure where all are far. To that, with ``familiarity`` = (slope, typical), slope·(f - typical)
    is added, f the clip's `nearest`. Without ``likely``, softmax(S/τ). Either is so much less as
    the similarities agree less than is ``usual`` of known actions.
    """
    mean = mean_of(similarities).double()
    if likely is None:
        chosen = (mean / temperature).softmax(1)
    else:
        logits = likely[0] * mean + likely[1]
        if familiarity is not None and familiar is not None:
            slope, typical = familiarity
            logits = logits + slope * (nearest(familiar, mean, typical) - typical)[:, None]
        chosen = logits.sigmoid()
    if usual is None:
        return chosen
    return chosen * (agreement(similarities, temperature) / usual).clamp(max=1)[:, None]
