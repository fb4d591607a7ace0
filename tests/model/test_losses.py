from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from pevl_cli.model.losses import label_contrast_loss, nt_xent, pair_weights, semantic_guided_loss


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def rand(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64)


def cosines(vectors: Tensor) -> Tensor:
    unit = F.normalize(vectors, dim=-1)
    return unit @ unit.T


# --- Eq. (3) --------------------------------------------------------------------------------------


def slow_nt_xent(a: list[list[float]], b: list[list[float]], temperature: float) -> float:
    """Eq. (3), the mean over the batch in place of its sum."""

    def sim(x: list[float], y: list[float]) -> float:
        return sum(p * q for p, q in zip(x, y, strict=True)) / (math.hypot(*x) * math.hypot(*y))

    total = 0.0
    for i, x in enumerate(a):
        terms = [math.exp(sim(x, y) / temperature) for y in b]
        total -= math.log(terms[i] / sum(terms))
    return total / len(a)


@pytest.mark.parametrize("temperature", [0.07, 0.5])
def test_nt_xent_against_loops(temperature: float) -> None:
    a, b = rand(5, 4), rand(5, 4)
    there = slow_nt_xent(a.tolist(), b.tolist(), temperature)
    back = slow_nt_xent(b.tolist(), a.tolist(), temperature)
    assert there != pytest.approx(back, rel=1e-3)  # so that a one-sided loss would be seen
    assert nt_xent(a, b, temperature).item() == pytest.approx((there + back) / 2)


def test_nt_xent_takes_a_learned_temperature() -> None:
    a, b = rand(4, 3), rand(4, 3)
    temperature = torch.tensor(0.3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(nt_xent, (a.requires_grad_(), b.requires_grad_(), temperature))
    assert nt_xent(a, b, temperature).item() == pytest.approx(nt_xent(a, b, 0.3).item())


def test_nt_xent_of_one_clip_is_zero() -> None:
    assert nt_xent(rand(1, 4), rand(1, 4), 0.1).item() == 0


def test_nt_xent_is_smaller_for_pairs_that_fit() -> None:
    a = rand(6, 8)
    near, crossed = a + 0.1 * rand(6, 8), a.roll(1, 0)
    assert nt_xent(a, near, 0.1) < nt_xent(a, rand(6, 8), 0.1) < nt_xent(a, crossed, 0.1)


def test_nt_xent_of_zero_vectors_has_finite_gradients() -> None:
    a = torch.zeros(3, 4, requires_grad=True)
    loss = nt_xent(a, torch.randn(3, 4), 0.07)
    loss.backward()
    assert loss.item() == pytest.approx(math.log(3), rel=1e-5)
    assert a.grad is not None
    assert a.grad.isfinite().all()


# --- Eq. (5) and (6) ------------------------------------------------------------------------------


def slow_pair_weights(text_similarity: list[float], own: set[int]) -> list[float]:
    """n·s_ij of one row: 1 for the positives, and negatives by how much else their texts say."""
    others = [j for j in range(len(text_similarity)) if j not in own]
    total = sum(1 - text_similarity[j] for j in others)
    return [
        1.0 if j in own else len(others) * (1 - text_similarity[j]) / total
        for j in range(len(text_similarity))
    ]


def eq_5_and_6(similarity: Tensor, text_similarity: Tensor, temperature: float) -> float:
    """The paper's formula for a batch of distinct labels, with the second numerator's /τ back."""
    s, count = similarity.tolist(), len(similarity)

    def e(value: float) -> float:
        return math.exp(value / temperature)

    total = 0.0
    for i in range(count):
        others = [j for j in range(count) if j != i]
        distance = {j: 1 - float(text_similarity[i, j]) for j in others}
        norm = sum(distance.values())
        clip_to_text = e(s[i][i]) + (count - 1) * sum(
            distance[j] / norm * e(s[i][j]) for j in others
        )
        text_to_clip = e(s[i][i]) + (count - 1) * sum(
            distance[j] / norm * e(s[j][i]) for j in others
        )
        # KL of a one-hot truth: minus the logarithm of what the true one gets.
        total -= math.log(e(s[i][i]) / clip_to_text) + math.log(e(s[i][i]) / text_to_clip)
    return total / count / 2


def slow_semantic_guided_loss(
    similarity: Tensor, text_similarity: Tensor, labels: list[int], temperature: float
) -> float:
    count, total = len(labels), 0.0
    for matrix in (similarity.tolist(), similarity.T.tolist()):
        for i in range(count):
            own = {j for j in range(count) if labels[j] == labels[i]}
            weights = slow_pair_weights(text_similarity[i].tolist(), own)
            terms = [w * math.exp(x / temperature) for w, x in zip(weights, matrix[i], strict=True)]
            target = 1 / len(own)
            total += sum(target * math.log(target / (terms[j] / sum(terms))) for j in own)
    return total / count / 2


@pytest.mark.parametrize("temperature", [0.05, 1.0])
def test_distinct_labels_are_the_papers_equation(temperature: float) -> None:
    similarity, texts = torch.rand(5, 5, dtype=torch.float64), cosines(rand(5, 4))
    labels = torch.tensor([3, 0, 4, 1, 2])
    actual = semantic_guided_loss(similarity, texts, labels, temperature)
    assert actual.item() == pytest.approx(eq_5_and_6(similarity, texts, temperature))


@pytest.mark.parametrize("labels", [[0, 1, 0, 2, 1, 0], [1, 1, 1, 1, 1, 0], [5, 4, 3, 2, 1, 0]])
def test_repeated_labels_against_loops(labels: list[int]) -> None:
    similarity = torch.rand(6, 6, dtype=torch.float64) * 2 - 1
    texts = cosines(rand(6, 4))[labels][:, labels]
    actual = semantic_guided_loss(similarity, texts, torch.tensor(labels), 0.2)
    assert actual.item() == pytest.approx(slow_semantic_guided_loss(similarity, texts, labels, 0.2))


def test_order_of_the_batch_does_not_matter() -> None:
    labels, order = torch.tensor([0, 1, 0, 2, 1]), torch.randperm(5)
    similarity, texts = rand(5, 5), cosines(rand(3, 4))[labels][:, labels]
    before = semantic_guided_loss(similarity, texts, labels, 0.2)
    moved = similarity[order][:, order], texts[order][:, order], labels[order]
    torch.testing.assert_close(semantic_guided_loss(*moved, 0.2), before)


def test_texts_equally_far_are_the_vanilla_contrast() -> None:
    similarity, labels = rand(4, 4), torch.arange(4)
    texts = torch.full((4, 4), 0.3, dtype=torch.float64).fill_diagonal_(1)
    vanilla = F.cross_entropy(similarity / 0.1, labels) + F.cross_entropy(
        similarity.T / 0.1, labels
    )
    actual = semantic_guided_loss(similarity, texts, labels, 0.1)
    torch.testing.assert_close(actual, vanilla / 2)


@pytest.mark.parametrize("labels", [[0, 1, 2], [0, 0, 1]])
def test_all_texts_equal_are_the_vanilla_contrast(labels: list[int]) -> None:
    """The pair_weightss would be 0/0."""
    similarity = rand(3, 3).requires_grad_()
    number = torch.tensor(labels)
    same = semantic_guided_loss(similarity, torch.ones(3, 3).double(), number, 0.1)
    far = semantic_guided_loss(similarity, torch.zeros(3, 3).double(), number, 0.1)
    torch.testing.assert_close(same, far)
    same.backward()
    assert similarity.grad is not None
    assert similarity.grad.isfinite().all()


def test_a_negative_with_the_true_text_is_not_pushed_at_all() -> None:
    """s_ij = 0 takes it out of Eq. (5), however alike clip and text are."""
    similarity = torch.tensor(
        [[0.1, 0.9, 0.2], [0.3, 0.4, 0.1], [0.2, 0.1, 0.6]], dtype=torch.float64
    )
    texts = torch.tensor([[1, 1, 0.2], [1, 1, 0.4], [0.2, 0.4, 1]], dtype=torch.float64)
    actual = semantic_guided_loss(similarity, texts, torch.arange(3), 0.01)
    assert actual.item() == pytest.approx(eq_5_and_6(similarity, texts, 0.01))


def test_one_label_in_the_batch() -> None:
    """No negatives: zero when all clips fit all texts alike, KL to uniform otherwise."""
    labels, texts = torch.zeros(3, dtype=torch.long), torch.ones(3, 3).double()
    even = torch.full((3, 3), 0.4, dtype=torch.float64)
    assert semantic_guided_loss(even, texts, labels, 0.1).item() == pytest.approx(0, abs=1e-7)
    uneven = rand(3, 3).requires_grad_()
    actual = semantic_guided_loss(uneven, texts, labels, 0.1)
    columns = [torch.log_softmax(m.detach() / 0.1, 1) for m in (uneven, uneven.T)]
    expected = sum(math.log(1 / 3) - c.mean() for c in columns) / 2
    assert actual.item() == pytest.approx(float(expected))
    actual.backward()
    assert uneven.grad is not None
    assert uneven.grad.isfinite().all()


def test_double_precision_is_kept() -> None:
    similarity, labels = torch.rand(4, 4, dtype=torch.float64), [0, 0, 0, 1]
    texts = cosines(rand(2, 4))[labels][:, labels]
    actual = semantic_guided_loss(similarity, texts, torch.tensor(labels), 1.0)
    expected = slow_semantic_guided_loss(similarity, texts, labels, 1.0)
    assert actual.item() == pytest.approx(expected, rel=1e-12)


def test_one_clip() -> None:
    one = torch.rand(1, 1, requires_grad=True)
    loss = semantic_guided_loss(one, torch.ones(1, 1), torch.tensor([7]), 0.01)
    loss.backward()
    assert loss.item() == pytest.approx(0, abs=1e-6)
    assert one.grad is not None
    assert one.grad.isfinite().all()


def test_a_right_and_sure_batch_costs_nothing() -> None:
    labels = torch.tensor([0, 1, 0])
    fits = (labels[:, None] == labels).double()
    texts = torch.eye(2).double()[labels][:, labels]
    assert semantic_guided_loss(fits, texts, labels, 0.01).item() == pytest.approx(0, abs=1e-7)
    assert semantic_guided_loss(1 - fits, texts, labels, 0.01).item() > 50


def test_texts_that_say_more_else_are_pushed_harder() -> None:
    similarity = torch.zeros(3, 3, dtype=torch.float64, requires_grad=True)
    texts = torch.tensor([[1, 0.9, 0.1], [0.9, 1, 0.5], [0.1, 0.5, 1]], dtype=torch.float64)
    semantic_guided_loss(similarity, texts, torch.arange(3), 0.5).backward()
    push = similarity.grad
    assert push is not None
    assert push[0, 2] > 3 * push[0, 1] > 0
    assert push[0, 0] < 0


def test_semantic_loss_gradient() -> None:
    labels = torch.tensor([0, 1, 0, 2])
    texts = cosines(rand(3, 4))[labels][:, labels]
    temperature = torch.tensor(0.3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(
        lambda s, t: semantic_guided_loss(s, texts, labels, t),
        (rand(4, 4).requires_grad_(), temperature),
    )


# --- pair weights ------------------------------------------------------------------------


def test_pair_weights_against_loops() -> None:
    labels = torch.tensor([0, 1, 0, 2, 3])
    positive = labels[:, None] == labels
    texts = cosines(rand(4, 3))[labels][:, labels]
    actual = pair_weights(texts, positive)
    expected = [
        slow_pair_weights(row, {j for j in range(5) if labels[j] == labels[i]})
        for i, row in enumerate(texts.tolist())
    ]
    torch.testing.assert_close(actual, torch.tensor(expected, dtype=torch.float64))
    negatives = (~positive).sum(1).double()
    torch.testing.assert_close((actual * ~positive).sum(1), negatives)
    assert (actual[positive] == 1).all()


def test_pair_weights_where_there_is_nothing_to_weigh_by() -> None:
    all_same = pair_weights(torch.ones(3, 3), torch.eye(3, dtype=torch.bool))
    no_negatives = pair_weights(torch.rand(3, 3), torch.ones(3, 3, dtype=torch.bool))
    assert torch.equal(all_same, torch.ones(3, 3))
    assert torch.equal(no_negatives, torch.ones(3, 3))


def test_pair_weights_of_cosines_a_little_over_one() -> None:
    """Rounding gives 1.0000001 for equal texts; no weight may become negative."""
    texts = torch.tensor([[1, 1.0000002, 0.5], [1.0000002, 1, 0.5], [0.5, 0.5, 1]])
    actual = pair_weights(texts, torch.eye(3, dtype=torch.bool))
    assert (actual >= 0).all()
    assert actual[0].tolist() == [1, 0, 2]


# --- all labels as negatives ----------------------------------------------------------------------


def test_a_batch_of_every_label_once_is_contrasted_as_in_the_paper() -> None:
    similarity, texts = rand(6, 6), cosines(rand(6, 4))
    order = torch.randperm(6)
    there = label_contrast_loss(similarity, texts, order, 0.2)
    theirs = semantic_guided_loss(similarity[:, order], texts[order][:, order], order, 0.2)
    assert there.item() == pytest.approx(theirs.item())


def test_labels_that_the_batch_does_not_show_are_negatives_too() -> None:
    """With texts all equally far: the cross-entropy over all labels, and back over the batch."""
    similarity = rand(4, 7).requires_grad_()
    labels, texts = torch.tensor([2, 5, 2, 0]), torch.eye(7, dtype=torch.float64)
    loss = label_contrast_loss(similarity, texts, labels, 0.5)
    forward = F.cross_entropy(similarity / 0.5, labels)
    backward = 0.0
    for label in labels.tolist():
        column = (similarity[:, label] / 0.5).log_softmax(0)
        own = labels == label
        backward -= (column[own] + own.sum().log()).mean() / 4
    torch.testing.assert_close(loss, (forward + backward) / 2)
    loss.backward()
    assert similarity.grad is not None and similarity.grad[:, [1, 3, 4, 6]].abs().min() > 0


def test_a_clip_that_occurs_twice_is_not_its_own_negative() -> None:
    """As if each of its rows were contrasted without the other."""
    torch.manual_seed(0)
    a, b = torch.randn(4, 6), torch.randn(4, 6)
    clips = torch.tensor([7, 2, 7, 5])
    terms = []
    for x, y in ((a, b), (b, a)):
        for i in range(4):
            others = [j for j in range(4) if j == i or clips[j] != clips[i]]
            logits = F.cosine_similarity(x[i : i + 1], y[others], dim=-1) / 0.3
            terms.append(-logits.log_softmax(0)[others.index(i)])
    torch.testing.assert_close(nt_xent(a, b, 0.3, clips), torch.stack(terms).mean())
    assert not torch.isclose(nt_xent(a, b, 0.3, clips), nt_xent(a, b, 0.3))
    torch.testing.assert_close(nt_xent(a, b, 0.3, torch.arange(4)), nt_xent(a, b, 0.3))
