"""Results side by side."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from pevl_cli.errors import PevlError, UsageError
from pevl_cli.evaluation.compare import compare, markdown, read_result
from pevl_cli.evaluation.outcome import FORMAT


def write(folder: Path, right: str, split: str = "test", first: int = 0) -> Path:
    """A result of clips ``first``, ...: 1 = named rightly, 0 = not."""
    share = right.count("1") / len(right)
    facts: dict[str, Any] = {
        "format": FORMAT,
        "dataset": "own",
        "split": split,
        "accuracy": {"top1": share, "top5": 1.0, "mean_class": share},
        "intervals": {"top1": {"low": 0.0, "high": 1.0}},
        "reliability": {"error": 0.1},
        "clips": [
            {
                "clip": f"c{first + i}",
                "label": "squat" if i % 2 else "lunge",
                "group": "",
                "predictions": [["squat" if (i % 2) == int(hit) else "lunge", 0.9]],
            }
            for i, hit in enumerate(right)
        ],
    }
    folder.mkdir()
    (folder / "result.json").write_text(json.dumps(facts))
    return folder


def test_two_runs_are_compared_clip_by_clip(tmp_path: Path) -> None:
    folders = [write(tmp_path / "one", "11110000"), write(tmp_path / "two", "01111110")]
    comparison = compare([read_result(f) for f in folders])
    (difference,) = comparison.differences
    assert difference.paired is not None
    assert difference.clips == 8
    assert (difference.paired.only_first, difference.paired.only_second) == (1, 3)
    assert difference.only_first == ["c0"] and difference.only_this == ["c4", "c5", "c6"]
    assert {label: (lost, won) for label, lost, won in difference.labels} == {
        "lunge": (1, 2),
        "squat": (0, 1),
    }
    text = markdown(comparison)
    assert "| one | own test | 8 | 50.0 (0.0–100.0) |" in text and "+25.0 points" in text
    assert comparison.rows()[-1][:4] == ["mean of 2", "", "", "62.5 ± 17.7"]


def test_several_splits_have_a_mean_and_no_test(tmp_path: Path) -> None:
    folders = [write(tmp_path / "one", "11"), write(tmp_path / "two", "10", "val", first=50)]
    comparison = compare([read_result(f) for f in folders])
    assert comparison.differences[0].paired is None
    assert "no clip in common" in comparison.sentences()[0]
    assert comparison.rows()[-1][3] == "75.0 ± 35.4"


def test_what_is_no_result_is_refused(tmp_path: Path) -> None:
    with pytest.raises(PevlError, match="does not exist"):
        read_result(tmp_path / "nowhere")
    (tmp_path / "other.json").write_text(json.dumps({"format": FORMAT}))
    with pytest.raises(PevlError, match="not a result of `pevl benchmark`"):
        read_result(tmp_path / "other.json")
    (tmp_path / "text.json").write_text("hello")
    with pytest.raises(PevlError, match="cannot be read as a result"):
        read_result(tmp_path / "text.json")
    for number, age in ((FORMAT - 1, "an older pevl"), (FORMAT + 1, "a newer pevl")):
        (tmp_path / "aged.json").write_text(json.dumps({"format": number}))
        with pytest.raises(PevlError, match=age):
            read_result(tmp_path / "aged.json")
    one = read_result(write(tmp_path / "one", "1"))
    with pytest.raises(UsageError, match="two or more"):
        compare([one])
    with pytest.raises(UsageError, match="given twice"):
        compare([one, one])


def test_results_of_one_name_are_told_apart_by_their_paths(tmp_path: Path) -> None:
    for place in ("a", "b"):
        (tmp_path / place).mkdir()
    files = [write(tmp_path / place / "run", "10") / "result.json" for place in ("a", "b")]
    assert read_result(files[0]).name == "run"
    assert [r.name for r in compare([read_result(f) for f in files]).results] == [*map(str, files)]
