"""Accuracy, its confidence intervals, paired tests and calibration error, from similarities.

Shapes: N clips, B similarities, C classes. Similarities (N, B, C) are the values of
`sgmc.Similarities`; S (N, C) is their mean. All figures are in [0, 1].
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

TOP_K = 5  # labels of the top-5 accuracy, and answers listed per clip
CONFIDENCE_LEVEL = 0.95  # confidence level of intervals
RESAMPLES = 2000  # number of bootstrap samples
BINS = 15  # number of score bins of the calibration error


@dataclass(frozen=True)
class Accuracy:
    """Shares of clips with a correct answer, in [0, 1].

    The answer is the label with the highest S.
    """

    top1: float
    top5: float  # share of clips whose true label is among the first five
    mean_class: float  # mean of the top-1 accuracies of the classes that occur
    count: int  # number of clips
    per_class: dict[str, float]  # label -> top-1 accuracy
    confused: list[tuple[str, str, int]]  # true label, answer, clips; most frequent first


def accuracy(similarities: Tensor, labels: Sequence[int], names: Sequence[str]) -> Accuracy:
    """Accuracy of similarities (N, B, C).

    ``labels``: N indices of the true labels in ``names`` (C).
    """
    similarity = mean_similarity(similarities)
    true, answer = np.asarray(labels), similarity.argmax(1).numpy()
    correct = answer == true
    classes = np.unique(true)
    shares = recall_score(true, answer, labels=classes, average=None).tolist()
    per_class = {names[c]: share for c, share in zip(classes, shares, strict=True)}
    confusions = Counter(zip(true[~correct].tolist(), answer[~correct].tolist(), strict=True))
    return Accuracy(
        float(accuracy_score(true, answer)),
        float((ranks(similarity, labels) <= TOP_K).mean()),
        float(np.mean(shares)),
        len(true),
        per_class,
        [(names[t], names[a], count) for (t, a), count in confusions.most_common()],
    )


def ranks(similarity: Tensor, labels: Sequence[int]) -> np.ndarray:
    """Rank of the true label of each clip when labels are sorted by S (N, C): (N,) int, from 1.

    Of labels with equal S, the first one is the answer and has rank 1; the others have rank 2 or
    more.
    """
    true = torch.as_tensor(list(labels))
    true_similarity = similarity.gather(1, true[:, None])
    above = (similarity > true_similarity).sum(1)
    correct = similarity.argmax(1) == true
    rank: np.ndarray = torch.where(correct, 1, (1 + above).clamp_min(2)).numpy()
    return rank


@dataclass(frozen=True)
class Reliability:
    """Share of correct answers as a function of their score, in bins of equal width."""

    score: list[float]  # mean score of each bin that has clips
    right: list[float]  # share of correct answers in each of these bins
    error: float  # expected calibration error: mean of |score - right|, weighted by clips


def reliability(scores: Tensor, labels: Sequence[int]) -> Reliability:
    """Reliability of scores (N, C) in [0, 1]; ``labels``: N indices of the true labels.

    Source: Guo et al., On calibration of modern neural networks, 2017, Sec. 2.
    """
    best = np.clip(scores.amax(1).numpy(), 0, 1)
    correct = scores.argmax(1).numpy() == np.asarray(labels)
    share, mean = calibration_curve(correct, best, n_bins=BINS)
    # The same rule as `calibration_curve` for a score on the edge of a bin (search from the left).
    clips = np.bincount(np.searchsorted(np.linspace(0, 1, BINS + 1)[1:-1], best))
    error = float(np.average(np.abs(share - mean), weights=clips[clips > 0]))
    return Reliability(mean.tolist(), share.tolist(), error)


# -- confidence intervals and tests --------------------------------------------------------------


@dataclass(frozen=True)
class Interval:
    """A 95 % confidence interval."""

    low: float
    high: float


def intervals(
    right: np.ndarray, labels: Sequence[int], groups: Sequence[str]
) -> dict[str, Interval]:
    """Intervals of "top1" and "mean_class", by bootstrap.

    ``right`` (N,) bool: the answer is correct; N labels; N groups. Clips of one person or one
    source video are alike, so the bootstrap draws whole groups. A clip with the group "" is a
    group of its own.
    """
    unit = _group_numbers(groups)
    classes, column = np.unique(labels, return_inverse=True)
    hits, clips = (np.zeros((unit.max() + 1, len(classes))) for _ in range(2))
    np.add.at(hits, (unit, column), right)
    np.add.at(clips, (unit, column), 1)

    def top1(times: np.ndarray) -> np.ndarray:
        return (times @ hits).sum(-1) / (times @ clips).sum(-1)

    def mean_class(times: np.ndarray) -> np.ndarray:
        drawn_clips = times @ clips
        share = (times @ hits) / np.where(drawn_clips > 0, drawn_clips, np.nan)
        return np.nanmean(share, -1)

    widest = Interval(0.0, 1.0)
    return {
        "top1": _bootstrap(top1, len(hits), widest),
        "mean_class": _bootstrap(mean_class, len(hits), widest),
    }


@dataclass(frozen=True)
class PairedTest:
    """Difference of the top-1 accuracies of two models on the same clips."""

    difference: float  # second minus first, in [-1, 1]
    interval: Interval  # confidence interval of the difference, by bootstrap as in `intervals`
    only_first: int  # clips that only the first names correctly
    only_second: int  # clips that only the second names correctly
    p_value: float  # McNemar's exact test of only_first against only_second


def paired_test(first: np.ndarray, second: np.ndarray, groups: Sequence[str]) -> PairedTest:
    """Compare two models clip by clip: (N,) bool each, True where the answer is correct.

    N groups as in `intervals`.
    """
    unit = _group_numbers(groups)
    gain = np.bincount(unit, second.astype(float) - first)
    clips = np.bincount(unit).astype(float)
    only_first, only_second = int((first & ~second).sum()), int((second & ~first).sum())
    differing = only_first + only_second
    return PairedTest(
        difference=float(second.mean() - first.mean()),
        interval=_bootstrap(
            lambda times: (times @ gain) / (times @ clips), len(clips), Interval(-1.0, 1.0)
        ),
        only_first=only_first,
        only_second=only_second,
        p_value=float(binomtest(only_second, differing).pvalue) if differing else 1.0,
    )


def _group_numbers(groups: Sequence[str]) -> np.ndarray:
    """The group of each clip as a number from 0, (N,)."""
    names = [group or f"\0{i}" for i, group in enumerate(groups)]
    return np.unique(names, return_inverse=True)[1]


def _bootstrap(
    figure: Callable[[np.ndarray], np.ndarray], count: int, widest: Interval
) -> Interval:
    """The percentile interval of a figure over ``count`` units (groups).

    ``figure``: number of times that each unit was drawn, (R, count) float -> figure (R,). A single
    unit gives the ``widest`` interval.
    """
    if count < 2:
        return widest

    def statistic(drawn: np.ndarray, axis: int) -> np.ndarray:
        rows = drawn.reshape(-1, count).astype(int)
        offset = np.arange(len(rows))[:, None] * count
        times = np.bincount((rows + offset).ravel(), minlength=len(rows) * count)
        values: np.ndarray = figure(times.reshape(len(rows), count).astype(float))
        return values.reshape(drawn.shape[:-1])

    interval = bootstrap(
        (np.arange(count),),
        statistic,
        n_resamples=RESAMPLES,
        batch=100,
        vectorized=True,
        confidence_level=CONFIDENCE_LEVEL,
        method="percentile",
        rng=np.random.default_rng(0),
    ).confidence_interval
    low, high = float(interval.low), float(interval.high)
    if low == high and widest.low == 0 and low in {0.0, 1.0}:
        # Every draw has all clips right, or all wrong: the exact binomial interval of ``count``
        # units.
        exact = binomtest(round(low * count), count).proportion_ci(CONFIDENCE_LEVEL)
        return Interval(float(exact.low), float(exact.high))
    return Interval(low, high)
