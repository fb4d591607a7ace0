"""Scores from similarities: what is fitted, and what lowers a score."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tiny import drawn_labels
from torch import Tensor

from pevl_cli.model.calibration import (
    AGREEMENT_QUANTILE,
    REJECTED_SHARE,
    Calibration,
    fit_calibration,
    nearest_prototype,
    stream_agreement,
)
from pevl_cli.model.sgmc import mean_similarity


def uncalibrated(similarities: Tensor, temperature: float, typical: float | None = None) -> Tensor:
    """softmax(S/τ), lowered by the agreement where ``typical`` is given."""
    return Calibration(temperature=temperature, typical_agreement=typical).scores(similarities)


def rejected(fitted: Calibration, scores: Tensor) -> float:
    """Share of clips whose best score is below the threshold."""
    return float((scores.amax(1) < fitted.threshold).double().mean())


def near_and_far(count: int, seed: int = 0) -> tuple[Tensor, list[int]]:
    """Clips near their own label and equally far from all others: (N, 1, 6) and labels."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % 6
    similarity = 0.1 * torch.randn(count, 1, 6, generator=generator)
    similarity[torch.arange(count), 0, labels] += 0.6
    return similarity, labels.tolist()


# -- temperature ------------------------------------------------------------------------------


@pytest.mark.parametrize("temperature", [0.05, 0.2, 1.0])
def test_the_temperature_that_the_labels_were_drawn_with_is_fitted(temperature: float) -> None:
    similarity, labels = drawn_labels(20_000, 7, temperature)
    fitted = fit_calibration(similarity[:, None], labels, "val")
    assert fitted.temperature == pytest.approx(temperature, rel=0.05)
    assert (fitted.split, fitted.clips) == ("val", 20_000)


def test_a_few_clips_without_a_mistake_do_not_give_scores_near_1() -> None:
    similarity = torch.eye(7)[:3] * 0.1
    temperature = fit_calibration(similarity[:, None], [0, 1, 2], "val").temperature
    best = (similarity / temperature).softmax(1).amax(1)
    assert ((best > 0.6) & (best < 0.9)).all()


# -- agreement --------------------------------------------------------------------------------


def test_scores_are_lower_where_the_similarities_do_not_agree() -> None:
    agree = torch.tensor([[[0.9, 0.1, 0.0], [0.9, 0.1, 0.0]]])
    differ = torch.tensor([[[0.9, 0.1, 0.0], [0.1, 0.9, 0.0]]])
    assert float(stream_agreement(agree, 0.2)) == pytest.approx(1)
    each = (differ / 0.2).softmax(2).double()
    apart = float(stream_agreement(differ, 0.2))
    assert apart == pytest.approx(float((each[:, 0] * each[:, 1]).sqrt().sum())) and apart < 0.5
    plain = (mean_similarity(differ) / 0.2).softmax(1).double()
    assert torch.allclose(uncalibrated(differ, 0.2), plain), "nothing was fitted"
    assert torch.allclose(uncalibrated(differ, 0.2, apart / 2), plain), "typical agreement"
    assert torch.allclose(uncalibrated(differ, 0.2, 2 * apart), plain / 2)
    one = agree[:, :1]
    assert torch.allclose(uncalibrated(one, 0.2, 1.0), uncalibrated(one, 0.2))


def test_missing_similarities_are_left_out() -> None:
    generator = torch.Generator().manual_seed(0)
    similarities = torch.rand(5, 3, 4, generator=generator)
    similarities[2, 1] = torch.nan
    similarities[3] = torch.nan
    mean, scores = mean_similarity(similarities), uncalibrated(similarities, 0.3, 0.99)
    assert torch.allclose(mean[2], similarities[2, [0, 2]].mean(0)) and scores.isfinite().all()
    assert torch.allclose(scores[2], uncalibrated(similarities[2:3, [0, 2]], 0.3, 0.99))
    assert torch.allclose(scores[3], torch.tensor(0.25).double()) and not mean[3].any()
    assert (scores.argsort(1)[:3] == mean.argsort(1)[:3]).all(), "the order is that of S"


# -- threshold --------------------------------------------------------------------------------


def test_the_threshold_rejects_few_of_the_clips_it_was_fitted_on() -> None:
    similarity, labels = drawn_labels(1000, 7, 0.1)
    pair = torch.stack([similarity, similarity + 0.02 * torch.randn_like(similarity)], 1)
    fitted = fit_calibration(pair, labels, "val")
    assert rejected(fitted, fitted.scores(pair)) == pytest.approx(REJECTED_SHARE, abs=0.002)
    typical = stream_agreement(pair, fitted.temperature) >= fitted.typical_agreement
    assert typical.double().mean() == pytest.approx(1 - AGREEMENT_QUANTILE, abs=0.002)
    unlike = torch.stack([similarity, similarity.flip(1)], 1)
    assert rejected(fitted, fitted.scores(unlike)) > 0.3


def test_a_clip_far_from_all_labels_has_a_low_score_even_where_one_is_nearest() -> None:
    """Each clip without its own label: the nearest of the others, however much nearer."""
    similarities, labels = near_and_far(300)
    fitted = fit_calibration(similarities, labels, "val")
    others, _ = near_and_far(300, seed=1)
    far = others[:, :, 1:][torch.tensor(labels) == 0]  # without the label that these clips show
    assert rejected(fitted, fitted.scores(far)) > 0.95
    assert rejected(fitted, fitted.scores(others)) < 2 * REJECTED_SHARE
    one = torch.tensor([[[0.25, 0.0, 0.0]]])
    assert uncalibrated(one, 0.05)[0, 0] > 0.9 > 0.3 > fitted.scores(one)[0, 0]


def test_sigmoid_scores_keep_the_order_of_the_similarities() -> None:
    similarities, labels = near_and_far(30)
    scores = fit_calibration(similarities, labels, "val").scores(similarities)
    assert (scores.argsort(1) == mean_similarity(similarities).argsort(1)).all()
    assert ((scores >= 0) & (scores <= 1)).all()


# -- prototypes -------------------------------------------------------------------------------


def test_a_clip_far_from_all_prototypes_has_a_lower_score() -> None:
    """Prototype similarity tells more than the words: 0.9 with the own label, 0.6 with others."""
    similarities, labels = near_and_far(300)
    similarities += 0.35  # so that the nearest of other labels is often near
    near = torch.full((300, 6), 0.6)
    near[torch.arange(300), labels] = 0.9
    near += 0.05 * torch.randn(300, 6, generator=torch.Generator().manual_seed(1))
    plain = fit_calibration(similarities, labels, "val")
    fitted = fit_calibration(similarities, labels, "val", near)
    assert plain.prototype is None and fitted.prototype is not None
    slope, typical = fitted.prototype
    assert slope > 1 and typical == pytest.approx(0.9, abs=0.02)
    scores = fitted.scores(similarities, near)
    assert rejected(fitted, scores) == pytest.approx(REJECTED_SHARE, abs=0.01)
    strange = fitted.scores(similarities, near.clamp(max=0.6))
    assert rejected(fitted, strange) > 0.5
    assert (strange < scores).all() and (strange.argsort(1) == scores.argsort(1)).all()


def test_a_missing_prototype_similarity_changes_no_score() -> None:
    similarities, labels = near_and_far(60)
    near = torch.rand(60, 6, generator=torch.Generator().manual_seed(0))
    fitted = fit_calibration(similarities, labels, "val", near)
    assert fitted.prototype is not None
    without = fitted.scores(similarities)
    # No video; and a first label without a prototype, whatever the others look like.
    unknown = torch.full_like(near, torch.nan)
    assert torch.equal(fitted.scores(similarities, unknown), without)
    first = mean_similarity(similarities).argmax(1)
    low = torch.full_like(near, 0.1)
    low[torch.arange(60), first] = torch.nan
    assert torch.equal(fitted.scores(similarities, low), without)
    both = (fit_calibration(similarities, labels, "val", n) for n in (unknown, None))
    assert next(both) == next(both)


def test_the_nearest_prototype_is_typical_where_the_first_label_has_none() -> None:
    mean = torch.tensor([[0.9, 0.1], [0.1, 0.9], [0.9, 0.1]])
    near = torch.tensor([[0.3, 0.7], [0.3, torch.nan], [torch.nan, torch.nan]])
    assert nearest_prototype(near, mean, 0.8).tolist() == pytest.approx([0.7, 0.8, 0.8])


# -- few clips, few labels --------------------------------------------------------------------


@pytest.mark.parametrize("count", [2, 3])
def test_a_few_clips_without_a_mistake_can_be_fitted(count: int) -> None:
    similarities = torch.eye(count)[:, None].expand(count, 3, count) * 0.5
    for near in (None, 0.4 + 0.5 * torch.eye(count)):
        fitted = fit_calibration(similarities, list(range(count)), "val", near)
        assert fitted.platt is not None
        numbers = *fitted.platt, fitted.threshold, *(fitted.prototype or ())
        assert np.isfinite(numbers).all() and fitted.platt[0] > 0
        assert (fitted.prototype is None) == (near is None)
        scores = fitted.scores(similarities, near)
        assert 0.5 < float(scores.amax()) < 0.99
        # The other labels are not as likely, as they would be by the prototype alone.
        assert float(scores.amin()) < 0.5
        far = None if near is None else near[:1].clamp(max=0.4)
        assert rejected(fitted, fitted.scores(torch.zeros(1, 3, count), far)) == 1


def test_one_label_needs_no_fit() -> None:
    similarities = torch.rand(4, 3, 1)
    fitted = fit_calibration(similarities, [0] * 4, "val")
    assert (fitted.threshold, fitted.clips) == (0.0, 4)
    assert fitted.scores(similarities).isfinite().all()
