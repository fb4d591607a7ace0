"""Label texts -> token ids."""

from __future__ import annotations

import re
import zlib
from collections.abc import Sequence
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pevl_cli.errors import PevlError
from pevl_cli.labels import DEFAULT_PROMPT
from pevl_cli.model.config import ModelConfig
from pevl_cli.weights import WORD_PIECES, find_tokenizer

GEMMA_PADDING, GEMMA_END = 0, 1
GEMMA_SPECIAL = {GEMMA_PADDING, GEMMA_END, 2}  # 2: start
KEPT_TEXTS = 1 << 14  # about 10 MB; training asks for the same prompts at each step


def tokenise(texts: Sequence[str], config: ModelConfig) -> Tensor:
    """Texts -> token ids (C, L) int64; L: length of the longest text; padded with 0.

    Tokeniser "clip" is CLIP's byte-pair vocabulary. "words", for a model trained from scratch, maps
    each word to one of ``vocab_size`` ids by its hash: it needs no file and no import, and works
    for any language. Longer texts are cut to ``context_length``. "gemma" is SigLIP 2's vocabulary,
    from a file; its texts are padded to ``context_length``. PevlError if the file is missing.
    "pieces" are the English word pieces with bundled vectors; what is no piece is left out.
    """
    if config.tokenizer == "gemma":
        file = find_tokenizer()
        return torch.stack([_gemma_ids(text, config.context_length, file) for text in texts])
    if config.tokenizer == "clip":
        rows = [_clip_ids(text, config.context_length) for text in texts]
    elif config.tokenizer == "pieces":
        rows = [_piece_ids(text, config.context_length) for text in texts]
        longest = max(int((row > 0).sum()) for row in rows)
        return torch.stack(rows)[:, : max(longest, 1)].contiguous()
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
def _gemma_ids(text: str, length: int, file: Path) -> Tensor:
    """Ids of one text as in SigLIP 2's training, (length,): lower case without punctuation, an end
    token, then padding.
    """
    from open_clip.tokenizer import get_clean_fn

    clean = get_clean_fn("canonicalize")(text)
    codes = _gemma(file).encode(clean, add_special_tokens=False).ids[: length - 1]
    ids = torch.full((length,), GEMMA_PADDING)
    ids[: len(codes) + 1] = torch.tensor([*codes, GEMMA_END])
    return ids


@cache
def _gemma(file: Path) -> Any:
    from tokenizers import Tokenizer

    try:
        return Tokenizer.from_file(str(file))
    except Exception as error:  # tokenizers raises bare exceptions
        raise PevlError(f"{file}: not a tokenizer.json, or damaged ({error}).") from error


@lru_cache(KEPT_TEXTS)
def _word_ids(text: str, length: int, vocab_size: int) -> Tensor:
    """Ids of one text, (length,): 1, the hash of each word, the highest id, then 0."""
    words = re.findall(r"\w+", text.lower())[: length - 2]
    codes = [2 + zlib.crc32(w.encode()) % (vocab_size - 3) for w in words]
    ids = torch.zeros(length, dtype=torch.long)
    ids[: len(words) + 2] = torch.tensor([1, *codes, vocab_size - 1])
    return ids


@lru_cache(KEPT_TEXTS)
def _piece_ids(text: str, length: int) -> Tensor:
    """Ids of one text, (length,): the number of each known word piece, then 0.

    Without the words of the default prompt, which are the same in all texts.
    """
    before, after = DEFAULT_PROMPT.split("{text}")
    text = text.removeprefix(before).removesuffix(after)
    codes = [i for i in _pieces().encode(text.replace("_", " ")).ids if i][:length]
    ids = torch.zeros(length, dtype=torch.long)
    ids[: len(codes)] = torch.tensor(codes, dtype=torch.long)
    return ids


@cache
def _pieces() -> Any:
    """The word-piece tokenizer of the bundled list; piece 0 stands for an unknown word."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers

    pieces = WORD_PIECES.read_text(encoding="utf-8").splitlines()
    model = models.WordPiece({p: i for i, p in enumerate(pieces)}, unk_token=pieces[0])
    tokenizer = Tokenizer(model)
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    return tokenizer
