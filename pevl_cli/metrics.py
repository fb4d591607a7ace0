"""How right answers are, how sure that is, and how much scores mean: figures from similarities.

Shapes: N clips, B similarities, C classes. Similarities (N, B, C) are the values of
`sgmc.Similarities`; S (N, C) is their mean.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from scipy.stats import binomtest, bootstrap
from sklearn.calibration import calibration_curve
from sklearn.metrics import accuracy_score, recall_score
from torch import Tensor

from pevl_cli.model.sgmc import mean_similarity

TOP = 5  # answers that are looked at
LEVEL = 0.95  # of intervals
RESAMPLES = 2000
BINS = 15  # of scores, for the calibration error


@dataclass(frozen=True)
class Accuracy:
    """All in [0, 1]."""

    top1: float
    top5: float  # the right label is among the first five
    mean_class: float
    count: int
    per_class: dict[str, float]
    confused: list[tuple[str, str, int]]  # true label, given label, clips; the most frequent first


def accuracy(
    similarities: Tensor,
    labels: Sequence[int],
    names: Sequence[str],
) -> Accuracy:
    """Share of clips whose best text is the right one; and its mean over classes that occur."""
    similarity = mean_similarity(similarities)
    true, given = np.asarray(labels), similarity.argmax(1).numpy()
    right = given == true
    classes = np.unique(true)
    shares = recall_score(true, given, labels=classes, average=None).tolist()
    per_class = {names[c]: share for c, share in zip(classes, shares, strict=True)}
    mixed = Counter(zip(true[~right].tolist(), given[~right].tolist(), strict=True))
    return Accuracy(
        float(accuracy_score(true, given)),
        float((ranks(similarity, labels) <= TOP).mean()),
        float(np.mean(shares)),
        len(true),
        per_class,
        [(names[t], names[g], count) for (t, g), count in mixed.most_common()],
    )


def ranks(similarity: Tensor, labels: Sequence[int]) -> np.ndarray:
    """The place of the right label among all, from 1, (N,). The answer is the first of the best;
    whatever else is as near as the right label does not stand above it.
    """
    true = torch.as_tensor(list(labels))
    own = similarity.gather(1, true[:, None])
    above = (similarity > own).sum(1)
    right = similarity.argmax(1) == true
    place: np.ndarray = torch.where(right, 1, (1 + above).clamp_min(2)).numpy()
    return place


@dataclass(frozen=True)
class Reliability:
    """Of the first answers: how often they are right where the model is so sure."""

    score: list[float]  # mean score of each bin that has clips
    right: list[float]  # share of right answers in it
    error: float  # expected calibration error: their mean distance, weighted by clips


def reliability(found: Tensor, labels: Sequence[int]) -> Reliability:
    """``found``: scores (N, C)."""
    best = np.clip(found.amax(1).numpy(), 0, 1)
    right = found.argmax(1).numpy() == np.asarray(labels)
    share, mean = calibration_curve(right, best, n_bins=BINS)
    # As that counts them, where a score lies on the edge of two bins.
    clips = np.bincount(np.searchsorted(np.linspace(0, 1, BINS + 1)[1:-1], best))
    error = float(np.average(np.abs(share - mean), weights=clips[clips > 0]))
    return Reliability(mean.tolist(), share.tolist(), error)


# -- how sure figures are ---------------------------------------------------------------------


@dataclass(frozen=True)
class Interval:
    low: float
    high: float


def intervals(
    right: np.ndarray, labels: Sequence[int], groups: Sequence[str]
) -> dict[str, Interval]:
    """95 % intervals of top-1 and mean class, by bootstrap over clips, or groups of them.

    right (N,) bool. Clips of one person or one source video are alike, so where ``groups`` names
    any, whole groups are drawn.
    """
    who = _whose(groups)
    classes, column = np.unique(labels, return_inverse=True)
    hits, clips = (np.zeros((who.max() + 1, len(classes))) for _ in range(2))
    np.add.at(hits, (who, column), right)
    np.add.at(clips, (who, column), 1)

    def top1(drawn_hits: np.ndarray, drawn_clips: np.ndarray) -> np.ndarray:
        return drawn_hits.sum(-1) / drawn_clips.sum(-1)

    def mean_class(drawn_hits: np.ndarray, drawn_clips: np.ndarray) -> np.ndarray:
        share = drawn_hits / np.where(drawn_clips > 0, drawn_clips, np.nan)
        return np.nanmean(share, -1)

    widest = Interval(0.0, 1.0)
    return {
        "top1": _bootstrap(lambda w: top1(w @ hits, w @ clips), len(hits), widest),
        "mean_class": _bootstrap(lambda w: mean_class(w @ hits, w @ clips), len(hits), widest),
    }


@dataclass(frozen=True)
class Paired:
    """Two models on the same clips."""

    difference: float  # top-1 of the second less that of the first
    interval: Interval  # of it, by bootstrap as in `intervals`
    only_first: int  # clips that only the first names rightly
    only_second: int
    p_value: float  # McNemar's exact test: that such clips are as many on either side


def paired(first: np.ndarray, second: np.ndarray, groups: Sequence[str]) -> Paired:
    """Compare right answers (N,) bool of two models, clip by clip."""
    who = _whose(groups)
    gain = np.bincount(who, second.astype(float) - first)
    clips = np.bincount(who).astype(float)
    only_first, only_second = int((first & ~second).sum()), int((second & ~first).sum())
    apart = only_first + only_second
    return Paired(
        difference=float(second.mean() - first.mean()),
        interval=_bootstrap(lambda w: (w @ gain) / (w @ clips), len(clips), Interval(-1.0, 1.0)),
        only_first=only_first,
        only_second=only_second,
        p_value=float(binomtest(only_second, apart).pvalue) if apart else 1.0,
    )


def _whose(groups: Sequence[str]) -> np.ndarray:
    """The group of each clip as a number; a clip without one is a group by itself."""
    named = [group or f"\0{i}" for i, group in enumerate(groups)]
    return np.unique(named, return_inverse=True)[1]


def _bootstrap(
    figure: Callable[[np.ndarray], np.ndarray], count: int, widest: Interval
) -> Interval:
    """``figure``: how often each of ``count`` units was drawn, (R, count) -> (R,).

    Of a single unit nothing is known.
    """
    if count < 2:
        return widest

    def statistic(drawn: np.ndarray, axis: int) -> np.ndarray:
        rows = drawn.reshape(-1, count).astype(int)
        offset = np.arange(len(rows))[:, None] * count
        times = np.bincount((rows + offset).ravel(), minlength=len(rows) * count)
        out: np.ndarray = figure(times.reshape(len(rows), count).astype(float))
        return out.reshape(drawn.shape[:-1])

    found = bootstrap(
        (np.arange(count),),
        statistic,
        n_resamples=RESAMPLES,
        batch=100,
        vectorized=True,
        confidence_level=LEVEL,
        method="percentile",
        rng=np.random.default_rng(0),
    ).confidence_interval
    low, high = float(found.low), float(found.high)
    if low == high and widest.low == 0 and low in {0.0, 1.0}:
        # All right, or all wrong, whatever is drawn: as sure as so many coins make it.
        exact = binomtest(round(low * count), count).proportion_ci(LEVEL)
        return Interval(float(exact.low), float(exact.high))
    return Interval(low, high)
