"""Label texts -> token ids."""

from __future__ import annotations

import re
import zlib
from collections.abc import Sequence
from functools import cache, lru_cache
from typing import Any

import torch
from torch import Tensor

from pevl_cli.model.config import ModelConfig

KEPT_TEXTS = 1 << 14  # about 10 MB; training asks for the same prompts at each step


def tokenise(texts: Sequence[str], config: ModelConfig) -> Tensor:
    """Texts -> token ids (C, L) int64; L: length of the longest text; padded with 0.

    Tokeniser "clip" is CLIP's byte-pair vocabulary. "words", for a model trained from scratch, maps
    each word to one of ``vocab_size`` ids by its hash: it needs no file and no import, and works
    for any language. Longer texts are cut to ``context_length``.
    """
    if config.tokenizer == "clip":
        rows = [_clip_ids(text, config.context_length) for text in texts]
    else:
        rows = [_word_ids(text, config.context_length, config.vocab_size) for text in texts]
    ids = torch.stack(rows)
    longest = int((ids.argmax(-1) + 1).max())
    return ids[:, :longest].contiguous()


@lru_cache(KEPT_TEXTS)
def _clip_ids(text: str, length: int) -> Tensor:
    """Ids of one text, (length,), padded with 0."""
    return _byte_pairs()(text, context_length=length)[0]


@cache
def _byte_pairs() -> Any:
    """CLIP's byte-pair encoder; building it takes 0.1 s."""
    from open_clip.tokenizer import SimpleTokenizer

    return SimpleTokenizer()


@lru_cache(KEPT_TEXTS)
def _word_ids(text: str, length: int, vocab_size: int) -> Tensor:
    """Ids of one text, (length,): 1, the hash of each word, the highest id, then 0."""
    words = re.findall(r"\w+", text.lower())[: length - 2]
    codes = [2 + zlib.crc32(w.encode()) % (vocab_size - 3) for w in words]
    ids = torch.zeros(length, dtype=torch.long)
    ids[: len(words) + 2] = torch.tensor([1, *codes, vocab_size - 1])
    return ids
