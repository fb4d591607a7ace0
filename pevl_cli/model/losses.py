"""The paper's losses: refinement (Eq. 3) and semantic guidance (Eq. 5 and 6)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def nt_xent(
    a: Tensor, b: Tensor, temperature: float | Tensor, clips: Tensor | None = None
) -> Tensor:
    """NT-Xent: move each a_i closer to b_i than to the other b_j. a, b (N, e) -> scalar.

    ``clips`` (N,) int: rows with the same number are of one clip and are no negatives of each
    other; None: all rows are different clips.

    Source: PeVL Eq. (3). Differs: batch mean instead of the sum, so that the loss does not grow
    with the batch size; both directions averaged ("symmetric similarities", Sec. 3.2.3); a clip
    that occurs twice in a batch is not its own negative.
    """
    logits = F.normalize(a, dim=-1) @ F.normalize(b, dim=-1).T / temperature
    target = torch.arange(len(a), device=a.device)
    if clips is not None:
        same = clips[:, None] == clips[None]
        same.fill_diagonal_(False)
        logits = logits.masked_fill(same, -torch.inf)
    return (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2


def semantic_guided_loss(
    similarity: Tensor, text_similarity: Tensor, labels: Tensor, temperature: float | Tensor
) -> Tensor:
    """Contrast clips with texts; negatives with less similar texts have larger weights.

    similarity (N, N) clip × text of clip, text_similarity (N, N) cosines of the texts, labels
    (N,) int -> scalar.

    Source: PeVL Eq. (5) and (6). Differs: a batch may repeat a label, so the target is uniform
    over all clips of the same label; with distinct labels this is the paper's formula, whose
    second numerator lacks the temperature (a misprint). And Eq. (6) prints KL(p, q), which is
    infinite where the true q is 0; here it is KL(q ‖ p), as in ActionCLIP.
    """
    positive = labels[:, None] == labels[None]
    weights = pair_weights(text_similarity, positive)
    forward = _kl(similarity / temperature, weights, positive)
    backward = _kl(similarity.T / temperature, weights, positive)
    return (forward + backward) / 2


def label_contrast_loss(
    similarity: Tensor, text_similarity: Tensor, labels: Tensor, temperature: float | Tensor
) -> Tensor:
    """Contrast clips with the texts of all labels, also of labels without a clip in the batch.

    similarity (N, C) clip × label, text_similarity (C, C) cosines of the labels' texts, labels
    (N,) into C -> scalar.

    Source: PeVL Eq. (5) and (6). Differs: from clips to texts, the negatives are all other labels,
    not only those of the batch: 16 clips have only a third of 40 labels. From texts to clips, the
    negatives are those of the batch, as in the paper.
    """
    positive = F.one_hot(labels, similarity.shape[1]).bool()
    weights = pair_weights(text_similarity[labels], positive)
    forward = _kl(similarity / temperature, weights, positive)
    positive = labels[:, None] == labels[None]
    weights = pair_weights(text_similarity[labels][:, labels], positive)
    backward = _kl(similarity[:, labels].T / temperature, weights, positive)
    return (forward + backward) / 2


def pair_weights(text_similarity: Tensor, positive: Tensor) -> Tensor:
    """Weight of each term in Eq. (5)'s denominator: 1 for positives, n·s_ij for negatives.

    text_similarity (N, C), positive (N, C) bool -> (N, C), >= 0. s_ij = (1 − sim(t_i, t_j)) / Σ
    over the n negatives j. If the texts of all negatives equal the true text, all weights are 1.

    Source: PeVL Eq. (6).
    """
    distance = (1 - text_similarity).clamp_min(0).masked_fill(positive, 0)
    total = distance.sum(1, keepdim=True)
    count = (~positive).sum(1, keepdim=True)
    scaled = torch.where(total > 0, count * distance / total.clamp_min(1e-12), 1.0)
    return torch.where(positive, torch.ones_like(scaled), scaled)


def _kl(logits: Tensor, weights: Tensor, positive: Tensor) -> Tensor:
    """KL(uniform over positives ‖ weighted softmax) of (N, C) each, mean over rows -> scalar."""
    weighted = weights > 0
    log_weights = torch.where(weighted, weights, 1.0).log().masked_fill(~weighted, float("-inf"))
    log_p = F.log_softmax(logits + log_weights, dim=1)
    target = positive.to(logits.dtype) / positive.sum(1, keepdim=True)
    # 0·log 0 = 0: only the positives contribute.
    terms = torch.where(positive, target * (target.clamp_min(1e-12).log() - log_p), 0.0)
    return terms.sum(1).mean()
