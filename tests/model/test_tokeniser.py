"""Label texts to token ids: CLIP's vocabulary, and words by their hash."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch
from conftest import REPOSITORY
from open_clip_models import TEXTS, clip_config
from tiny import tiny_config
from torch import Tensor

from pevl_cli.errors import PevlError
from pevl_cli.model.config import CONFIGS, ModelConfig
from pevl_cli.model.pevl import PeVL
from pevl_cli.model.tokeniser import tokenise
from pevl_cli.weights import TOKENIZER_VARIABLE


def test_clip_tokens_are_open_clips_cut_to_the_longest() -> None:
    theirs = open_clip.get_tokenizer("ViT-B-16")(TEXTS)
    longest = int((theirs != 0).sum(1).max())
    ours = tokenise(TEXTS, clip_config())
    assert torch.equal(ours, theirs[:, :longest])
    assert theirs[:, longest:].sum() == 0


def test_over_long_clip_text_keeps_its_end() -> None:
    long = "somersault with a twist and " * 40
    ours = tokenise([long, "turn"], clip_config())
    assert torch.equal(ours, open_clip.get_tokenizer("ViT-B-16")([long, "turn"]))
    assert ours[0, -1] == 49407


def words_of(texts: list[str], **changes: Any) -> Tensor:
    return tokenise(texts, tiny_config(**changes))


def test_words_tokens_end_with_the_highest_id() -> None:
    texts = ["jump over the beam", "turn", "", "!?", "a " * 100]
    ids = words_of(texts)
    assert ids.shape == (5, 16)
    assert ids.max() == 399 and ids.min() >= 0
    assert ((ids == 399).sum(1) == 1).all()
    ends = ids.argmax(1)
    assert ends.tolist() == [5, 2, 1, 1, 15]  # start, words, end; the long one is cut to 14 words
    for row, end in zip(ids.tolist(), ends.tolist(), strict=True):
        assert 0 not in row[:end]
        assert not any(row[end + 1 :])


def test_words_tokens_are_cut_to_the_longest_text() -> None:
    assert words_of(["jump over", "turn"]).shape == (2, 4)


def test_words_tokens_say_which_words() -> None:
    ids = words_of(["Split LEAP, split", "leap: split leap", "Überschlag rückwärts", "跳 馬"])
    split, leap = ids[0, 1], ids[0, 2]
    assert split != leap
    assert ids[0, 1:4].tolist() == [split, leap, split]
    assert ids[1, 1:4].tolist() == [leap, split, leap]
    assert ids.argmax(1).tolist() == [4, 4, 3, 3]
    assert torch.equal(words_of(["überschlag RÜCKWÄRTS"])[0], ids[2, :4])


@pytest.mark.slow
def test_words_tokens_are_the_same_in_every_process() -> None:
    """Python's own hash() is not."""
    code = (
        "from pevl_cli.model.tokeniser import tokenise; from pevl_cli.model.config import CONFIGS;"
        "print(tokenise(['jump over the beam'], CONFIGS['mini']).tolist())"
    )
    root = str(REPOSITORY)
    run = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=root
    )
    here = tokenise(["jump over the beam"], CONFIGS["mini"])
    assert json.loads(run.stdout) == here.tolist()


def test_word_mask_and_texts_without_words() -> None:
    torch.manual_seed(0)
    model = PeVL(tiny_config()).eval()
    texts = model.encode_text(["jump over the beam", "turn", "!?", "a " * 100])
    assert texts.word_mask.sum(1).tolist() == [4, 1, 0, 14]
    assert texts.sentences.isfinite().all() and texts.words.isfinite().all()
    norms = texts.sentences.norm(dim=-1)
    torch.testing.assert_close(norms, torch.ones_like(norms))


@pytest.mark.parametrize("vocabulary", ["clip", "words"])
def test_texts_are_encoded_once(monkeypatch: pytest.MonkeyPatch, vocabulary: str) -> None:
    """The vocabulary takes 0.1 s to read, and training asks for the same texts at each step."""
    config = clip_config() if vocabulary == "clip" else tiny_config()
    before = tokenise(TEXTS, config)

    def never(*_: object, **__: object) -> None:
        raise AssertionError("encoded again")

    monkeypatch.setattr("open_clip.tokenizer.SimpleTokenizer.__init__", never)
    monkeypatch.setattr("open_clip.tokenizer.SimpleTokenizer.encode", never)
    monkeypatch.setattr("zlib.crc32", never)
    again = tokenise(TEXTS, config)
    assert torch.equal(again, before)
    again.zero_()
    assert torch.equal(tokenise(TEXTS, config), before), "what is kept is not given away"
    with pytest.raises(AssertionError, match="encoded again"):
        tokenise(["another text"], config)


def test_kept_ids_belong_to_a_context_length() -> None:
    long = ["a b c d e f g h i j k l m n o p q r s t"]
    lengths = [clip_config(context_length=n) for n in (77, 8, 77)]
    assert [tokenise(long, config).shape[1] for config in lengths] == [22, 8, 22]


# -- SigLIP 2's vocabulary -------------------------------------------------------------------------


def gemma_config(**changes: Any) -> ModelConfig:
    return clip_config(tokenizer="gemma", context_length=8, **changes)


@pytest.fixture
def vocabulary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A small tokenizer.json with Gemma's special tokens."""
    tokenizers = pytest.importorskip("tokenizers")
    names = ("<pad>", "<eos>", "<bos>", "<unk>", "jump", "over", "turn")
    ids = {name: i for i, name in enumerate(names)}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel(ids, unk_token="<unk>"))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    monkeypatch.setenv(TOKENIZER_VARIABLE, str(tmp_path))
    return tmp_path / "tokenizer.json"


@pytest.mark.usefixtures("vocabulary")
def test_siglip_texts_have_an_end_and_all_of_the_length() -> None:
    ids = tokenise(["Jump, over!", "turn", "", "jump " * 20], gemma_config())
    assert ids.tolist() == [
        [4, 5, 1, 0, 0, 0, 0, 0],
        [6, 1, 0, 0, 0, 0, 0, 0],
        [1, 0, 0, 0, 0, 0, 0, 0],
        [4, 4, 4, 4, 4, 4, 4, 1],
    ]


@pytest.mark.usefixtures("vocabulary")
def test_siglip_words_are_neither_padding_nor_end() -> None:
    config = gemma_config(tower="siglip", embed_dim=32, quick_gelu=False)
    texts = PeVL(config).eval().encode_text(["jump over", "turn", ""])
    assert texts.word_mask.sum(1).tolist() == [2, 1, 0]
    assert texts.words.shape == (3, 8, 32) and texts.sentences.isfinite().all()


def test_siglip_without_its_vocabulary_says_what_is_missing(
    vocabulary: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    config = gemma_config()
    monkeypatch.setenv(TOKENIZER_VARIABLE, str(tmp_path / "nowhere"))
    with pytest.raises(PevlError, match=r"nowhere: no such tokenizer file .*PEVL_TOKENIZER\)"):
        tokenise(["turn"], config)
    monkeypatch.delenv(TOKENIZER_VARIABLE)
    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", lambda *_: None)
    with pytest.raises(PevlError, match="hint: `pevl models fetch ViT-B-16-SigLIP2:webli`"):
        tokenise(["turn"], config)
    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", lambda *_: str(vocabulary))
    assert tokenise(["turn"], config)[0, 0] == 6
    vocabulary.rename(tmp_path / "damaged.json").write_text("{}")
    monkeypatch.setenv(TOKENIZER_VARIABLE, str(tmp_path / "damaged.json"))
    with pytest.raises(PevlError, match=r"damaged.json: not a tokenizer.json, or damaged"):
        tokenise(["turn"], config)
