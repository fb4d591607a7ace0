from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from pevl_cli.model.sgmc import fine_similarity


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def rand(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64)


def attended(values: list[float], temperature: float) -> float:
    top = max(values)
    weights = [math.exp((v - top) / temperature) for v in values]
    return sum(w * v for w, v in zip(weights, values, strict=True)) / sum(weights)


def slow_fine_similarity(frames: Tensor, words: Tensor, temperature: float) -> float:
    """One clip and one text, of which everything counts: attention over the matrix twice."""

    def cosine(a: list[float], b: list[float]) -> float:
        dot = sum(x * y for x, y in zip(a, b, strict=True))
        return dot / (math.hypot(*a) * math.hypot(*b))

    m = [[cosine(f, w) for w in words.tolist()] for f in frames.tolist()]
    if not m or not m[0]:
        return 0.0
    per_frame = [attended(row, temperature) for row in m]
    per_word = [attended(list(column), temperature) for column in zip(*m, strict=True)]
    return (attended(per_frame, temperature) + attended(per_word, temperature)) / 2


def slow_table(
    frames: Tensor, words: Tensor, frame_mask: Tensor, word_mask: Tensor, temperature: float
) -> Tensor:
    return torch.tensor(
        [
            [
                slow_fine_similarity(f[use_f], w[use_w], temperature)
                for w, use_w in zip(words, word_mask, strict=True)
            ]
            for f, use_f in zip(frames, frame_mask, strict=True)
        ],
        dtype=torch.float64,
    )


@pytest.mark.parametrize("temperature", [0.01, 0.1, 1.0])
def test_against_loops(temperature: float) -> None:
    frames, words = rand(3, 4, 6), rand(2, 5, 6)
    everything = torch.ones(3, 4, dtype=torch.bool), torch.ones(2, 5, dtype=torch.bool)
    actual = fine_similarity(frames, words, temperature=temperature)
    torch.testing.assert_close(actual, slow_table(frames, words, *everything, temperature))


@pytest.mark.parametrize("temperature", [0.01, 0.1])
def test_masked_frames_and_words_count_as_absent(temperature: float) -> None:
    frames, words = rand(4, 4, 6), rand(3, 5, 6)
    frame_mask, word_mask = torch.rand(4, 4) > 0.4, torch.rand(3, 5) > 0.4
    frame_mask[0] = False
    frame_mask[0, 2] = True
    word_mask[2] = True
    assert frame_mask.any(1).all() and word_mask.any(1).all()
    expected = slow_table(frames, words, frame_mask, word_mask, temperature)
    actual = fine_similarity(frames, words, frame_mask, word_mask, temperature)
    torch.testing.assert_close(actual, expected)
    only_frames = fine_similarity(frames, words, frame_mask, None, temperature)
    torch.testing.assert_close(only_frames[:, 2], expected[:, 2])
    # What stands under the mask does not matter.
    frames[~frame_mask], words[~word_mask] = 100.0, -100.0
    again = fine_similarity(frames, words, frame_mask, word_mask, temperature)
    torch.testing.assert_close(again, expected)


def test_default_temperature() -> None:
    frames, words = rand(1, 4, 6), rand(1, 5, 6)
    expected = slow_fine_similarity(frames[0], words[0], 0.01)
    assert fine_similarity(frames, words).item() == pytest.approx(expected, abs=1e-12)


def test_one_frame_and_one_word_give_their_cosine() -> None:
    frames, words = rand(3, 1, 6), rand(2, 1, 6)
    cosine = torch.nn.functional.cosine_similarity(frames, words[:, 0][None], dim=-1)
    torch.testing.assert_close(fine_similarity(frames, words), cosine)


def test_only_directions_matter() -> None:
    frames, words = rand(3, 4, 6), rand(2, 5, 6)
    longer = frames * (0.1 + 9 * torch.rand(3, 4, 1)), words * 7
    torch.testing.assert_close(fine_similarity(*longer), fine_similarity(frames, words))


def test_order_of_frames_and_words_does_not_matter() -> None:
    frames, words = rand(3, 4, 6), rand(2, 5, 6)
    shuffled = frames[:, torch.randperm(4)], words[:, torch.randperm(5)]
    torch.testing.assert_close(fine_similarity(*shuffled), fine_similarity(frames, words))


def test_range() -> None:
    same = rand(6).expand(1, 4, 6)
    assert fine_similarity(same, same[:, :2]).item() == pytest.approx(1)
    assert fine_similarity(same, -same).item() == pytest.approx(-1)
    actual = fine_similarity(torch.randn(9, 16, 3), torch.randn(9, 7, 3))
    assert actual.dtype == torch.float32
    assert (actual.abs() <= 1 + 1e-6).all()


def test_low_temperature_takes_the_best_pair_high_temperature_the_mean() -> None:
    frames, words = rand(1, 4, 6), rand(1, 5, 6)
    unit = torch.nn.functional.normalize
    matrix = unit(frames[0], dim=-1) @ unit(words[0], dim=-1).T
    best = fine_similarity(frames, words, temperature=1e-5)
    mean = fine_similarity(frames, words, temperature=1e5)
    assert best.item() == pytest.approx(matrix.max().item(), abs=1e-4)
    assert mean.item() == pytest.approx(matrix.mean().item(), abs=1e-4)


def test_nothing_to_use_is_zero_without_nan() -> None:
    frames = torch.randn(2, 3, 4, requires_grad=True)
    words = torch.randn(2, 5, 4, requires_grad=True)
    frame_mask = torch.tensor([[False] * 3, [True] * 3])
    word_mask = torch.tensor([[True] * 5, [False] * 5])
    actual = fine_similarity(frames, words, frame_mask, word_mask)
    assert actual[0].tolist() == [0, 0]
    assert actual[1, 1].item() == 0
    assert actual[1, 0].item() != 0
    actual.sum().backward()
    for part in (frames, words):
        assert part.grad is not None
        assert part.grad.isfinite().all()


def test_zero_vectors_do_not_make_nan() -> None:
    frames = torch.zeros(1, 3, 4, requires_grad=True)
    actual = fine_similarity(frames, torch.randn(1, 5, 4))
    actual.sum().backward()
    assert actual.item() == 0
    assert frames.grad is not None
    assert frames.grad.isfinite().all()


def test_gradient() -> None:
    frames, words = rand(2, 2, 3).requires_grad_(), rand(1, 3, 3).requires_grad_()
    mask = torch.tensor([[True, True], [True, False]])
    assert torch.autograd.gradcheck(
        lambda f, w: fine_similarity(f, w, mask, None, 0.5), (frames, words)
    )
