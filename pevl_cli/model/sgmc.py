"""Matching frames with words, the sub-action side of the SGMC module (Sec. 3.3.1), and what several
similarities together say of a label."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class Matches:
    """How N clips match C labels, and what they look like."""

    similarities: Tensor  # (N, B, C) in [-1, 1]; NaN where one has nothing to go by
    video: Tensor | None = None  # V (N, e), the mean of what was looked at; NaN without a video

    def each(self) -> list[Matches]:
        """One by one."""
        ones = self.similarities.split(1)
        videos = [None] * len(ones) if self.video is None else self.video.split(1)
        return [Matches(one, video) for one, video in zip(ones, videos, strict=True)]

    @staticmethod
    def joined(parts: Sequence[Matches]) -> Matches:
        """One after the other; either all parts have videos, or none."""
        videos = [part.video for part in parts if part.video is not None]
        assert len(videos) in (0, len(parts))
        together = torch.cat([part.similarities for part in parts])
        return Matches(together, torch.cat(videos) if videos else None)

    def familiar(self, prototypes: Tensor | None) -> Tensor | None:
        """Cosines of each clip's video with the labels' ``prototypes`` (C, e): (N, C), NaN where
        there is no video, or no prototype; None without any."""
        if self.video is None or prototypes is None:
            return None
        return self.video @ prototypes.T


def fine_similarity(
    frames: Tensor,
    words: Tensor,
    frame_mask: Tensor | None = None,
    word_mask: Tensor | None = None,
    temperature: float = 0.01,
) -> Tensor:
    """S_FW: how well the frames of each clip and the words of each text fit, in [-1, 1].

    frames (N, S, e), words (C, L, e), masks (N, S) and (C, L) with True = use -> (N, C).
    0 for a clip without any frame, or a text without any word, to use.

    Source: PeVL Sec. 3.3.1, "attention operations on the matrix twice" as in X-CLIP (Ma et al.
    2022). Differs: padded words and unseen frames are masked; the learned square matrices, which
    start as the identity, are left out, as the number of words is free.
    """
    clips, frame_count, _ = frames.shape
    texts, word_count, _ = words.shape
    if frame_mask is None:
        frame_mask = frames.new_ones(clips, frame_count, dtype=torch.bool)
    if word_mask is None:
        word_mask = words.new_ones(texts, word_count, dtype=torch.bool)
    matrix = torch.einsum("nse,cle->ncsl", F.normalize(frames, dim=-1), F.normalize(words, dim=-1))
    use_f = frame_mask[:, None, :, None].expand(matrix.shape)
    use_w = word_mask[None, :, None, :].expand(matrix.shape)
    per_frame = _attend(matrix, use_w, -1, temperature)  # (N, C, S)
    per_word = _attend(matrix, use_f, -2, temperature)  # (N, C, L)
    over_frames = _attend(per_frame, use_f[..., 0], -1, temperature)
    over_words = _attend(per_word, use_w[..., 0, :], -1, temperature)
    return (over_frames + over_words) / 2


def _attend(values: Tensor, use: Tensor, dim: int, temperature: float) -> Tensor:
    """Mean of values along dim, weighted by their own softmax; 0 where none may be used."""
    logits = (values / temperature).masked_fill(~use, torch.finfo(values.dtype).min)
    weights = logits.softmax(dim).masked_fill(~use, 0)
    return (weights * values).sum(dim)


def mean_of(similarities: Tensor) -> Tensor:
    """S of Eq. (4): B similarities (N, B, C) -> their mean (N, C), without those that are NaN."""
    return similarities.nanmean(1).nan_to_num(0)


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
    `Matches.familiar`; both and S (N, C) -> (N,), float64.

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
