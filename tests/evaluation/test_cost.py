"""Parameters and multiply-adds by part."""

from __future__ import annotations

import pytest
import torch

from pevl_cli.evaluation.cost import compute_cost
from pevl_cli.labels import read_labels
from pevl_cli.model.config import CONFIGS
from pevl_cli.model.pevl import PeVL


@pytest.mark.slow
def test_the_papers_model_costs_what_its_table_7_says() -> None:
    cost = compute_cost(CONFIGS["vit-b-16"], read_labels("diving48"))
    tunable = {part: count / 1e6 for part, count in cost.tunable.items()}
    assert tunable["video"] == pytest.approx(7, abs=0.5)
    assert tunable["pose"] == pytest.approx(11, abs=0.5)
    assert tunable["text"] == pytest.approx(6, abs=0.5)
    assert tunable["refinement"] == pytest.approx(5, abs=0.5)
    assert cost.gflops["pose"] == pytest.approx(108, abs=1)
    assert cost.gflops["all"] == pytest.approx(510, rel=0.1)
    with torch.device("meta"):
        model = PeVL(CONFIGS["vit-b-16"])
    assert cost.parameters["all"] == sum(p.numel() for p in model.parameters())
    assert sum(v for k, v in cost.gflops.items() if k != "all") == cost.gflops["all"]


def test_heatmaps_cost_what_the_papers_table_9_says() -> None:
    alone = {"video": False, "text": False, "classes": 48, "similarities": ("ps",)}
    config = CONFIGS["vit-b-16"].model_copy(update=alone | {"pose_features": "heatmap"})
    assert compute_cost(config, read_labels("diving48")).gflops["all"] == pytest.approx(
        311, rel=0.05
    )
