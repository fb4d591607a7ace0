"""Tests for benchmarks/make_mini.py: the labels of a new `pevl-mini`, what of a run ships."""

import runpy
import sys
from typing import Any

import pytest
import torch
from conftest import REPOSITORY

from pevl_cli.labels import read_labels

RECIPE = REPOSITORY / "benchmarks" / "make_mini.py"


@pytest.fixture(scope="module")
def recipe() -> dict[str, Any]:
    sys.path.insert(0, str(RECIPE.parent))  # as Python does for a script
    try:
        return runpy.run_path(str(RECIPE), run_name="make_mini")
    finally:
        sys.path.remove(str(RECIPE.parent))


def test_every_renamed_label_is_one_of_the_label_file(recipe: dict[str, Any]) -> None:
    names = read_labels(REPOSITORY / "benchmarks" / "mini.txt").names
    other = read_labels(REPOSITORY / "benchmarks" / "other_words.txt")
    assert sorted(names) == sorted(other.names)
    for renamed in recipe["SAME"].values():
        assert {name for name in renamed.values() if name is not None} <= set(names)


def test_no_other_phrasing_is_one_that_is_learnt() -> None:
    learnt = read_labels(REPOSITORY / "benchmarks" / "mini.txt")
    other = read_labels(REPOSITORY / "benchmarks" / "other_words.txt")
    assert all(learnt.find(text) is None for text in other.texts)


def test_whole_sources_are_dealt_and_no_label_is_all_in_one_fold(recipe: dict[str, Any]) -> None:
    sources = [f"source{i}" for i in range(12) for _ in range(6)]
    labels = [("squat", "lunge", "plank")[i % 3] for i in range(72)]
    folds = recipe["deal_sources"](labels, sources, 4)
    assert all(
        len({f for f, s in zip(folds, sources, strict=True) if s == n}) == 1 for n in sources
    )
    for label in set(labels):
        assert {f for f, name in zip(folds, labels, strict=True) if name == label} == {0, 1, 2, 3}
    assert sorted(folds.count(k) for k in range(4)) == [18] * 4


def test_weights_are_averaged_and_counts_are_kept(recipe: dict[str, Any]) -> None:
    states = [
        {"weight": torch.tensor([1.0, 2.0]), "batches": torch.tensor(7)},
        {"weight": torch.tensor([3.0, 2.0]), "batches": torch.tensor(9)},
    ]
    mean = recipe["averaged"](states)
    assert mean["weight"].tolist() == [2.0, 2.0] and mean["batches"] == 7
