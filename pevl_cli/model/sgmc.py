"""Similarities of clips with labels, and of frames with words: the fine-grained part of the SGMC
module (Sec. 3.3.1).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from pevl_cli.model.config import Similarity
from pevl_cli.model.features import Features


@dataclass(frozen=True)
class Similarities:
    """B similarities of N clips with C labels, and the video features of the clips."""

    values: Tensor  # (N, B, C) in [-1, 1]; NaN = no modality
    video_features: Tensor | None = None  # V (N, e); NaN for a clip without video

    def split(self) -> list[Similarities]:
        """N `Similarities`, one per clip, of shape (1, B, C)."""
        values = self.values.split(1)
        features = self.video_features
        videos = [None] * len(values) if features is None else features.split(1)
        return [Similarities(v, f) for v, f in zip(values, videos, strict=True)]

    @staticmethod
    def concatenate(parts: Sequence[Similarities]) -> Similarities:
        """Concatenate along N: (N, B, C). Video features must be in all parts, or in none."""
        videos = [part.video_features for part in parts if part.video_features is not None]
        assert len(videos) in (0, len(parts))
        values = torch.cat([part.values for part in parts])
        return Similarities(values, torch.cat(videos) if videos else None)

    def prototype_similarity(self, prototypes: Tensor | None) -> Tensor | None:
        """Cosines of each clip's V with the labels' ``prototypes`` (C, e): (N, C).

        NaN for a clip without video and a label without prototype; None without video features or
        prototypes.
        """
        if self.video_features is None or prototypes is None:
            return None
        return self.video_features @ prototypes.T


def fine_similarity(
    frames: Tensor,
    words: Tensor,
    frame_mask: Tensor | None = None,
    word_mask: Tensor | None = None,
    temperature: float = 0.01,
) -> Tensor:
    """S_FW: similarity of the frames of each clip with the words of each text, in [-1, 1].

    frames (N, S, e), words (C, L, e), masks (N, S) and (C, L) with True = use -> (N, C).
    0 for a clip without a used frame, or a text without a used word.

    Source: PeVL Sec. 3.3.1, "attention operations on the matrix twice" as in X-CLIP (Ma et al.
    2022). Differs: padded words and unseen frames are masked; the learned square matrices, which
    start as the identity, are left out, because the number of words varies.
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
    """Mean of values along dim, weighted by the softmax of the values; 0 if no value is used."""
    logits = (values / temperature).masked_fill(~use, torch.finfo(values.dtype).min)
    weights = logits.softmax(dim).masked_fill(~use, 0)
    return (weights * values).sum(dim)


def mean_similarity(similarities: Tensor) -> Tensor:
    """S of Eq. (4): B similarities (N, B, C) -> mean (N, C) without NaN; 0 if all are NaN."""
    return similarities.nanmean(1).nan_to_num(0)


def combine(similarities: Mapping[Similarity, Tensor], features: Features) -> Tensor:
    """S of Eq. (4): for each clip, the mean of the similarities whose modality it has.

    Similarities (N, C) each -> (N, C). Clips without a visible joint use the video only, clips
    without video the pose only; 0 without both. ValueError when there is no similarity.
    """
    total: Tensor | None = None
    count: Tensor | None = None
    for kind, value in similarities.items():
        use = has_modality(kind, features, value)[:, None].to(value)
        total = value * use if total is None else total + value * use
        count = use if count is None else count + use
    if total is None or count is None:
        raise ValueError("the batch has none of the modalities that the similarities need")
    return total / count.clamp_min(1)


def has_modality(kind: Similarity, features: Features, value: Tensor) -> Tensor:
    """Whether each clip has the modality of a similarity ``value`` (N, C): (N,) bool."""
    if kind == "vs" and features.has_video is not None:
        return features.has_video
    if kind in {"ps", "fw"} and features.seen is not None:
        return features.seen.any(1)
    return torch.ones(len(value), dtype=torch.bool, device=value.device)
