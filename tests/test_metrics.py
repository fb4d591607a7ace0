"""Figures from similarities: known cases, and what intervals and tests must do."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tiny import drawn_labels

from pevl_cli.metrics import accuracy, intervals, paired_test, ranks, reliability

NAMES = tuple("abcdefg")


def test_accuracy_of_a_known_case() -> None:
    similarity = torch.tensor(
        [
            [0.9, 0.1, 0.0, 0.0, 0.0, 0.0, 0.0],  # right
            [0.9, 0.1, 0.0, 0.0, 0.0, 0.0, 0.0],  # right
            [0.1, 0.2, 0.9, 0.3, 0.4, 0.5, 0.6],  # the last: not among the first five
            [0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3],  # the second
        ]
    )
    actual = accuracy(similarity[:, None], [0, 0, 0, 1], NAMES)
    assert (actual.top1, actual.top5, actual.count) == (0.5, 0.75, 4)
    assert actual.per_class == {"a": pytest.approx(2 / 3), "b": 0.0}
    assert actual.mean_class == pytest.approx(1 / 3)
    assert actual.confused == [("a", "c", 1), ("b", "a", 1)]


def test_with_five_labels_or_fewer_all_are_among_the_first_five() -> None:
    assert accuracy(torch.eye(3)[:, None], [1, 2, 0], NAMES[:3]).top5 == 1


def test_the_calibration_error_is_least_where_scores_are_right() -> None:
    similarity, labels = drawn_labels(20_000, len(NAMES), 0.2)
    right = reliability((similarity / 0.2).softmax(1), labels)
    too_sure, unsure = (reliability((similarity / t).softmax(1), labels).error for t in (0.05, 0.8))
    assert right.error < 0.02 < 0.1 < min(too_sure, unsure)
    assert np.abs(np.subtract(right.score, right.right)).max() < 0.1


def test_scores_on_the_edge_of_two_bins_are_counted_once() -> None:
    """Three labels, all alike: a score of exactly a third."""
    similarity = torch.tensor([[0.0, 0.0, 0.0], [0.1, 0.0, 0.0]])
    found = reliability(similarity.double().softmax(1), [0, 1])
    assert found.error == pytest.approx(0.52, abs=0.02)


def test_ties_are_broken_once() -> None:
    """Ten labels, all alike: the answer is the first, and it is among the first five."""
    alike = accuracy(torch.zeros(2, 1, 10), [0, 9], [*map(str, range(10))])
    assert (alike.top1, alike.top5) == (0.5, 1.0)
    assert ranks(torch.zeros(2, 10), [0, 9]).tolist() == [1, 2]


def test_an_interval_is_as_wide_as_theory_says() -> None:
    rng = np.random.default_rng(1)
    right = rng.random(400) < 0.8
    found = intervals(right, [0] * 400, [""] * 400)["top1"]
    assert found.low < right.mean() < found.high
    assert found.high - found.low == pytest.approx(2 * 1.96 * (0.16 / 400) ** 0.5, rel=0.15)


def test_clips_of_one_group_count_as_little_as_they_are_alike() -> None:
    """Forty clips of ten people, each person all right or all wrong: ten, not forty, coins."""
    right = np.repeat([True, False] * 5, 4)
    people = [f"p{i // 4}" for i in range(40)]
    alone = intervals(right, [0] * 40, [""] * 40)["top1"]
    grouped = intervals(right, [0] * 40, people)["top1"]
    assert (grouped.high - grouped.low) > 1.7 * (alone.high - alone.low)


def test_clips_without_a_mistake_are_no_proof() -> None:
    """Nine of nine: Clopper and Pearson's interval, and not "100 to 100 %"."""
    for value, low, high in ((True, 0.025 ** (1 / 9), 1.0), (False, 0.0, 1 - 0.025 ** (1 / 9))):
        found = intervals(np.full(9, value), [0, 1, 2] * 3, [""] * 9)
        for figure in ("top1", "mean_class"):
            assert found[figure].low == pytest.approx(low)
            assert found[figure].high == pytest.approx(high)


def test_of_one_group_nothing_is_known() -> None:
    found = intervals(np.array([True, False]), [0, 1], ["p", "p"])
    assert (found["top1"].low, found["top1"].high) == (0, 1)


def test_the_mean_over_classes_has_an_interval_of_its_own() -> None:
    right = np.array([True] * 90 + [False] * 5 + [True] * 5)
    labels = [0] * 90 + [1] * 10
    found = intervals(right, labels, [""] * 100)
    assert found["mean_class"].low < 0.75 < found["mean_class"].high
    assert found["mean_class"].low < found["top1"].low


def test_two_models_on_the_same_clips() -> None:
    first = np.array([True] * 50 + [False] * 50)
    second = first.copy()
    second[50:62] = True  # twelve gained
    second[:2] = False  # two lost
    found = paired_test(first, second, [""] * 100)
    assert (found.only_first, found.only_second) == (2, 12)
    assert found.difference == pytest.approx(0.1)
    assert found.interval.low < 0.1 < found.interval.high
    # The exact sign test of 2 in 14.
    assert found.p_value == pytest.approx(2 * (1 + 14 + 91) / 2**14)
    assert paired_test(first, first, [""] * 100).p_value == 1
