"""Texts of a label set, and batches."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from tiny import (
    LABELS,
    SWITCHES,
    answer,
    near,
    tiny_batch,
    tiny_model,
)


def test_a_label_s_similarity_is_the_mean_over_its_phrasings() -> None:
    model = tiny_model()
    texts = model.encode_text([*LABELS, "leap"])
    batch = tiny_batch()
    each = model(batch, texts)
    several = replace(texts, label=torch.tensor([0, 1, 2, 1]))
    actual = model(batch, several)
    wanted = torch.stack([each[:, 0], (each[:, 1] + each[:, 3]) / 2, each[:, 2]], 1)
    torch.testing.assert_close(actual, wanted)


@pytest.mark.parametrize("name", ["mini", "on clip"])
def test_a_texts_similarity_does_not_depend_on_the_other_texts(name: str) -> None:
    changes, _ = SWITCHES[name]
    model, batch = tiny_model(**changes), tiny_batch()
    together = answer(model, batch)
    assert not near(together[:, 0], together[:, 1])
    for i, label in enumerate(LABELS):
        assert near(answer(model, batch, (label,))[:, 0], together[:, i])
    chosen = torch.tensor([2, 0])
    with torch.no_grad():
        some = model(batch, model.encode_text(LABELS)[chosen])
    assert near(some, together[:, chosen])


def test_bytes_and_fractions_are_the_same_picture() -> None:
    model, batch = tiny_model(), tiny_batch()
    assert batch.frames is not None
    fractions = replace(batch, frames=batch.frames.float() / 255)
    assert torch.equal(answer(model, fractions), answer(model, batch))
