"""The stem of `mini`: which layers it takes, and what of it learns."""

from __future__ import annotations

import copy
from dataclasses import replace

import torch
from tiny import (
    GRID,
    LABELS,
    POSE_STEM,
    T,
    tiny_batch,
    tiny_model,
)

from pevl_cli.model.mini.stem import PoseStem
from pevl_cli.pose.detector import pose_network_layers
from pevl_cli.weights import BUNDLED_WEIGHTS


def test_pose_stem_takes_the_networks_layers_of_the_picture_as_it_was() -> None:
    """In [0, 1], whatever the tower normalises by, with a patch's place where it is seen."""
    stem = tiny_model(**POSE_STEM).visual.conv1
    assert isinstance(stem, PoseStem)
    network = pose_network_layers(BUNDLED_WEIGHTS)
    stem.layers.load_state_dict(network.state_dict())
    stem.mix = torch.nn.Identity()
    picture = torch.full((1, 3, 1, 96, 96), 0.5)
    picture[..., 8:24, 72:88] = 1.0  # upper right
    mean, std = (v[:, None] for v in (stem.mean, stem.std))
    with torch.no_grad():
        tokens, maps = stem(stem.observe((picture - mean) / std))
        last = picture[:, :, 0]
        for layer in network:
            last = layer(last)
        assert tokens.shape == (1, sum([64, 128, 128, 128, 256]), 1, GRID, GRID)
        torch.testing.assert_close(tokens[0, -256:, 0], last[0], atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(maps[-1], last, atol=1e-4, rtol=1e-4)
        grey = torch.full_like(picture, 0.5)
        moved = tokens - stem(stem.observe((grey - mean) / std))[0]
    near = moved[0, :64, 0].norm(dim=0)  # the first layer that is used sees 20 pixels around
    assert near.flatten().argmax() == 2 and near[2, 0] < 1e-3 * near[0, 2]


def test_pose_stem_keeps_its_layers_and_learns_the_rest() -> None:
    model = tiny_model(**POSE_STEM)
    stem = model.visual.conv1
    assert isinstance(stem, PoseStem)
    before = copy.deepcopy(stem.layers.state_dict())
    model.train()
    batch = replace(tiny_batch(), frames=torch.rand(3, T, 3, 96, 96))
    texts = model.encode_text(LABELS)
    model.loss(batch, texts, torch.tensor([0, 1, 1]))[0].backward()
    assert all(p.grad is None for p in stem.layers.parameters())
    assert all(p.grad is not None and p.grad.any() for p in stem.mix.parameters())
    for name, value in stem.layers.state_dict().items():
        torch.testing.assert_close(value, before[name], rtol=0, atol=0)
