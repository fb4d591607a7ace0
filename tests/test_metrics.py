"""Figures from similarities: known cases, and what intervals and tests must do."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from pevl_cli.metrics import accuracy, intervals, paired, ranks, reliability
from pevl_cli.model.calibration import REFUSED, UNUSUAL, agreement, fit_scores, scores
from pevl_cli.model.sgmc import mean_similarity

NAMES = tuple("abcdefg")


def drawn(clips: int, temperature: float, seed: int = 0) -> tuple[Tensor, list[int]]:
    """Similarities, and labels drawn from softmax(S/τ): calibrated at τ by their making."""
    generator = torch.Generator().manual_seed(seed)
    similarity = torch.randn(clips, len(NAMES), generator=generator) * 0.2
    scores = (similarity / temperature).softmax(1)
    return similarity, torch.multinomial(scores, 1, generator=generator)[:, 0].tolist()


def test_accuracy_of_a_known_case() -> None:
    similarity = torch.tensor(
        [
            [0.9, 0.1, 0.0, 0.0, 0.0, 0.0, 0.0],  # right
            [0.9, 0.1, 0.0, 0.0, 0.0, 0.0, 0.0],  # right
            [0.1, 0.2, 0.9, 0.3, 0.4, 0.5, 0.6],  # the last: not among the first five
            [0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3],  # the second
        ]
    )
    got = accuracy(similarity[:, None], [0, 0, 0, 1], NAMES)
    assert (got.top1, got.top5, got.count) == (0.5, 0.75, 4)
    assert got.per_class == {"a": pytest.approx(2 / 3), "b": 0.0}
    assert got.mean_class == pytest.approx(1 / 3)
    assert got.confused == [("a", "c", 1), ("b", "a", 1)]


def test_with_five_labels_or_fewer_all_are_among_the_first_five() -> None:
    assert accuracy(torch.eye(3)[:, None], [1, 2, 0], NAMES[:3]).top5 == 1


@pytest.mark.parametrize("temperature", [0.05, 0.2, 1.0])
def test_the_temperature_that_made_the_labels_is_found(temperature: float) -> None:
    similarity, labels = drawn(20_000, temperature)
    assert fit_scores(similarity[:, None], labels).temperature == pytest.approx(
        temperature, rel=0.05
    )


def test_a_few_clips_without_a_mistake_do_not_make_it_sure_of_everything() -> None:
    similarity = torch.eye(7)[:3] * 0.1
    temperature = fit_scores(similarity[:, None], [0, 1, 2]).temperature
    best = (similarity / temperature).softmax(1).amax(1)
    assert ((best > 0.6) & (best < 0.9)).all()


def test_the_calibration_error_is_least_where_scores_are_right() -> None:
    similarity, labels = drawn(20_000, 0.2)
    right = reliability((similarity / 0.2).softmax(1), labels)
    too_sure, unsure = (reliability((similarity / t).softmax(1), labels).error for t in (0.05, 0.8))
    assert right.error < 0.02 < 0.1 < min(too_sure, unsure)
    assert np.abs(np.subtract(right.score, right.right)).max() < 0.1


def test_scores_on_the_edge_of_two_bins_are_counted_once() -> None:
    """Three labels, all alike: a score of exactly a third."""
    similarity = torch.tensor([[0.0, 0.0, 0.0], [0.1, 0.0, 0.0]])
    found = reliability(similarity.double().softmax(1), [0, 1])
    assert found.error == pytest.approx(0.52, abs=0.02)


def test_scores_are_lower_where_the_similarities_do_not_agree() -> None:
    agree = torch.tensor([[[0.9, 0.1, 0.0], [0.9, 0.1, 0.0]]])
    differ = torch.tensor([[[0.9, 0.1, 0.0], [0.1, 0.9, 0.0]]])
    assert float(agreement(agree, 0.2)) == pytest.approx(1)
    each = (differ / 0.2).softmax(2).double()
    apart = float(agreement(differ, 0.2))
    assert apart == pytest.approx(float((each[:, 0] * each[:, 1]).sqrt().sum())) and apart < 0.5
    plain = (mean_similarity(differ) / 0.2).softmax(1).double()
    assert torch.allclose(scores(differ, 0.2), plain), "nothing was fitted"
    assert torch.allclose(scores(differ, 0.2, apart / 2), plain), "it agrees as is usual"
    assert torch.allclose(scores(differ, 0.2, 2 * apart), plain / 2)
    assert torch.allclose(scores(agree[:, :1], 0.2, 1.0), scores(agree[:, :1], 0.2))


def test_scores_leave_out_what_has_nothing_to_go_by() -> None:
    generator = torch.Generator().manual_seed(0)
    found = torch.rand(5, 3, 4, generator=generator)
    found[2, 1] = torch.nan
    found[3] = torch.nan
    mean, sure = mean_similarity(found), scores(found, 0.3, 0.99)
    assert torch.allclose(mean[2], found[2, [0, 2]].mean(0)) and sure.isfinite().all()
    assert torch.allclose(sure[2], scores(found[2:3, [0, 2]], 0.3, 0.99))
    assert torch.allclose(sure[3], torch.tensor(0.25).double()) and not mean[3].any()
    assert (sure.argsort(1)[:3] == mean.argsort(1)[:3]).all(), "labels stand as S has them"


def test_the_threshold_refuses_few_of_the_clips_it_was_fitted_on() -> None:
    similarity, labels = drawn(1000, 0.1)
    found = torch.stack([similarity, similarity + 0.02 * torch.randn_like(similarity)], 1)
    fitted = fit_scores(found, labels)
    best = fitted.scores(found).amax(1)
    assert (best < fitted.threshold).double().mean() == pytest.approx(REFUSED, abs=0.002)
    usual = agreement(found, fitted.temperature) >= fitted.agreement
    assert usual.double().mean() == pytest.approx(1 - UNUSUAL, abs=0.002)
    unlike = torch.stack([similarity, similarity.flip(1)], 1)
    strange = fitted.scores(unlike).amax(1)
    assert (strange < fitted.threshold).double().mean() > 0.3


def near_and_far(count: int, seed: int = 0) -> tuple[torch.Tensor, list[int]]:
    """Clips near their own label and far from all others, which are all alike."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % 6
    similarity = 0.1 * torch.randn(count, 1, 6, generator=generator)
    similarity[torch.arange(count), 0, labels] += 0.6
    return similarity, labels.tolist()


def test_a_clip_far_from_all_labels_has_a_low_score_even_where_one_is_nearest() -> None:
    """Each clip without its own label: the nearest of the others, however much nearer."""
    found, labels = near_and_far(300)
    fitted = fit_scores(found, labels)
    others, _ = near_and_far(300, seed=1)
    # The label that these show is not asked for.
    far = others[:, :, 1:][torch.tensor(labels) == 0]
    assert (fitted.scores(far).amax(1) < fitted.threshold).double().mean() > 0.95
    assert (fitted.scores(others).amax(1) < fitted.threshold).double().mean() < 2 * REFUSED
    one = torch.tensor([[[0.25, 0.0, 0.0]]])
    assert scores(one, 0.05)[0, 0] > 0.9 > 0.3 > fitted.scores(one)[0, 0]


def test_scores_of_labels_by_themselves_stand_as_similarities_do() -> None:
    found, labels = near_and_far(30)
    sure = fit_scores(found, labels).scores(found)
    assert (sure.argsort(1) == mean_similarity(found).argsort(1)).all()
    assert ((sure >= 0) & (sure <= 1)).all()


def test_a_clip_that_looks_like_none_of_those_learnt_has_a_lower_score() -> None:
    """What a label's clips look like tells more than the words: known ones 0.9, others 0.6."""
    found, labels = near_and_far(300)
    found += 0.35  # so that the nearest of other labels is often near
    familiar = torch.full((300, 6), 0.6)
    familiar[torch.arange(300), labels] = 0.9
    familiar += 0.05 * torch.randn(300, 6, generator=torch.Generator().manual_seed(1))
    plain, fitted = fit_scores(found, labels), fit_scores(found, labels, familiar)
    assert plain.familiarity is None and fitted.familiarity is not None
    slope, usual = fitted.familiarity
    assert slope > 1 and usual == pytest.approx(0.9, abs=0.02)
    sure = fitted.scores(found, familiar)
    assert (sure.amax(1) < fitted.threshold).double().mean() == pytest.approx(REFUSED, abs=0.01)
    strange = fitted.scores(found, familiar.clamp(max=0.6))
    assert (strange.amax(1) < fitted.threshold).double().mean() > 0.5
    assert (strange < sure).all() and (strange.argsort(1) == sure.argsort(1)).all()


def test_nothing_is_held_against_a_clip_of_which_it_is_not_known_what_it_looks_like() -> None:
    found, labels = near_and_far(60)
    familiar = torch.rand(60, 6, generator=torch.Generator().manual_seed(0))
    fitted = fit_scores(found, labels, familiar)
    assert fitted.familiarity is not None
    without = fitted.scores(found)
    # No video; and a first label without a prototype, whatever the others look like.
    unknown = torch.full_like(familiar, torch.nan)
    assert torch.equal(fitted.scores(found, unknown), without)
    first = mean_similarity(found).argmax(1)
    low = torch.full_like(familiar, 0.1)
    low[torch.arange(60), first] = torch.nan
    assert torch.equal(fitted.scores(found, low), without)
    assert fit_scores(found, labels, unknown) == fit_scores(found, labels)


@pytest.mark.parametrize("count", [2, 3])
def test_scores_can_be_fitted_to_a_few_clips_without_a_mistake(count: int) -> None:
    found = torch.eye(count)[:, None].expand(count, 3, count) * 0.5
    for familiar in (None, 0.4 + 0.5 * torch.eye(count)):
        fitted = fit_scores(found, list(range(count)), familiar)
        numbers = fitted.slope, fitted.offset, fitted.threshold, *(fitted.familiarity or ())
        assert np.isfinite(numbers).all() and fitted.slope > 0
        assert (fitted.familiarity is None) == (familiar is None)
        assert 0.5 < float(fitted.scores(found, familiar).amax()) < 0.99
        # The other labels are not as likely, as they would be by what the clip looks like alone.
        assert float(fitted.scores(found, familiar).amin()) < 0.5
        far = None if familiar is None else familiar[:1].clamp(max=0.4)
        assert float(fitted.scores(torch.zeros(1, 3, count), far).amax()) < fitted.threshold


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
    found = paired(first, second, [""] * 100)
    assert (found.only_first, found.only_second) == (2, 12)
    assert found.difference == pytest.approx(0.1)
    assert found.interval.low < 0.1 < found.interval.high
    # The exact sign test of 2 in 14.
    assert found.p_value == pytest.approx(2 * (1 + 14 + 91) / 2**14)
    assert paired(first, first, [""] * 100).p_value == 1
