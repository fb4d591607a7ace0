"""The model's input and the outputs of its encoders: batches, label texts, features."""

from __future__ import annotations

from dataclasses import dataclass, fields

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class Batch:
    """N clips. One modality may be None: the model then uses the other only."""

    frames: Tensor | None  # (N, T, 3, H, W) uint8 RGB, or float in [0, 1]
    joints: Tensor | None  # (N, S, J, 3) x, y in [0, 1] of the view; 1 = visible
    has_video: Tensor | None = None  # (N,) bool; None: all clips have video
    # In place of frames: what the frozen network of the stem makes of them, each (N, …).
    observed: tuple[Tensor, ...] | None = None

    def to(self, device: torch.device | str) -> Batch:
        """The same batch on a device."""
        moved = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "observed"}
        observed = self.observed and tuple(part.to(device) for part in self.observed)
        return Batch(
            **{k: v if v is None else v.to(device) for k, v in moved.items()}, observed=observed
        )


@dataclass(frozen=True)
class Texts:
    """C encoded label texts, of unit length."""

    sentences: Tensor  # (C, e)
    words: Tensor  # (C, L, e)
    word_mask: Tensor  # (C, L) bool
    label: Tensor | None = None  # (C,) label index of each text; None: one text per label

    def __getitem__(self, index: Tensor) -> Texts:
        return Texts(self.sentences[index], self.words[index], self.word_mask[index])

    def to(self, device: torch.device | str) -> Texts:
        """The same texts on a device."""
        label = None if self.label is None else self.label.to(device)
        words, mask = self.words.to(device), self.word_mask.to(device)
        return Texts(self.sentences.to(device), words, mask, label)

    def by_label(self, similarity: Tensor) -> Tensor:
        """Mean over each label's texts: similarities with texts (N, C) -> (N, number of labels)."""
        if self.label is None:
            return similarity
        labels = int(self.label.max()) + 1
        share = F.one_hot(self.label, labels).to(similarity)
        return similarity @ (share / share.sum(0))


@dataclass(frozen=True)
class Features:
    """Features of N clips in the joint space; of unit length, except those before refinement."""

    video: Tensor | None  # V (N, e), after P2V
    pose: Tensor | None  # P (N, e), after V2P
    frames: Tensor | None  # F (N, S, e)
    seen: Tensor | None  # (N, S) bool: the frame shows at least one joint
    has_video: Tensor | None  # (N,) bool; None: all clips have video
    joined: Tensor | None  # (N, e), for the "concat" similarity
    video_before: Tensor | None  # z_v (N, e), before P2V
    pose_before: Tensor | None  # z_p (N, e), before V2P
