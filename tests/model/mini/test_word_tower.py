"""The text tower of `mini`: bags of known words, padding, and words that nobody knows."""

from __future__ import annotations

import torch
from safetensors.torch import load_file
from tiny import near, tiny_model

from pevl_cli.model.mini.word_tower import WordTower
from pevl_cli.model.pevl import PeVL
from pevl_cli.model.tokeniser import tokenise
from pevl_cli.weights import WORD_PIECES, WORD_VECTORS


def words_model(stirred: bool = False) -> PeVL:
    model = tiny_model(tokenizer="pieces", text_adapters=False, stirred=stirred)
    assert isinstance(model.text, WordTower)
    return model


@torch.no_grad()
def test_at_first_the_order_of_words_does_not_matter_then_it_may() -> None:
    texts = ["the dog bites the man", "the man bites the dog"]
    new, stirred = words_model(), words_model(stirred=True)
    one, other = new.encode_text(texts).sentences
    assert near(one, other)
    one, other = stirred.encode_text(texts).sentences
    assert not near(one, other)


@torch.no_grad()
def test_a_text_is_the_same_beside_a_longer_one() -> None:
    model = words_model(stirred=True)
    alone = model.encode_text(["squat"])
    beside = model.encode_text(["squat", "lying on a bench and pushing a heavy weight up"])
    assert near(alone.sentences[0], beside.sentences[0])
    assert alone.word_mask.sum() == beside.word_mask[0].sum()


def test_words_that_mean_the_same_are_near_before_anything_is_learnt() -> None:
    with torch.no_grad():
        sentences = words_model().encode_text(["push-up", "press-up", "tennis serve"]).sentences
    vectors = words_model().text
    assert isinstance(vectors, WordTower)
    stored = load_file(WORD_VECTORS)
    assert vectors.vectors.shape == stored["vectors"].shape
    likeness = sentences @ sentences.T
    assert likeness[0, 1] > likeness[0, 2]


def test_pieces_and_vectors_belong_together() -> None:
    pieces = WORD_PIECES.read_text(encoding="utf-8").splitlines()
    vectors = load_file(WORD_VECTORS)["vectors"]
    assert len(pieces) == len(vectors) and not vectors[0].any()
    model = words_model()
    ids = tokenise(["Squatting, \u00e9l\u00e8ve", "", "日本"], model.config)
    assert [pieces[i] for i in ids[0] if i] == ["squat", "##ting", ",", "el", "##eve"]
    assert not ids[1:].any()  # nothing is known of these


@torch.no_grad()
def test_a_text_without_a_known_word_is_no_nan() -> None:
    texts = words_model(stirred=True).encode_text(["", "日本", "squat"])
    assert texts.sentences.isfinite().all() and texts.words.isfinite().all()


def test_vectors_are_neither_trained_nor_stored() -> None:
    model = words_model()
    assert not any("vectors" in name for name in model.state_dict())
    assert not any("vectors" in name for name, _ in model.named_parameters())
