"""The report's page: nothing from outside, nothing that labels could break."""

from __future__ import annotations

import re
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pytest
import torch

from pevl_cli.evaluation.cost import Cost
from pevl_cli.evaluation.outcome import ClipResult, Outcome
from pevl_cli.evaluation.report_page import PUBLISHED, cluster_order, html, markdown, worst_mistakes
from pevl_cli.metrics import Interval, accuracy, reliability
from pevl_cli.model.calibration import Calibration

EVIL = "</script><img src=x onerror=alert(1)>"


def outcome(labels: tuple[str, ...], dataset: str = "own", clips: int = 40) -> Outcome:
    generator = torch.Generator().manual_seed(0)
    similarity = torch.rand(clips, len(labels), generator=generator)
    true = [i % len(labels) for i in range(clips)]
    scores = similarity.softmax(1)
    first = similarity.argmax(1).tolist()
    count = {"video": 1, "all": 1}
    return Outcome(
        dataset=dataset,
        split="test",
        checkpoint="runs/own-mini/best",
        accuracy=accuracy(similarity[:, None], true, labels),
        intervals={"top1": Interval(0.1, 0.2), "mean_class": Interval(0.1, 0.3)},
        groups=0,
        calibration=Calibration(temperature=1.0, split="val", clips=12),
        reliability=reliability(scores, true),
        error_as_trained=0.1,
        labels=list(labels),
        left_out=[],
        incomplete="",
        views=1,
        cost=Cost(count, count, {"video": 1.0, "all": 1.0}),
        speed=None,
        provenance={
            "pevl": "1",
            "torch": "2",
            "machine": "m",
            "device": "cpu",
            "precision": "fp32",
            "pose_weights": None,
            "poses": None,
            "data_hash": "x",
            "config": "mini",
            "training": {"data": "own", "seed": 0, "epochs_done": 1},
        },
        clips=[
            ClipResult(
                f"clip {i}",
                labels[t],
                "",
                1 if first[i] == t else 2,
                float(scores[i, t]),
                [(labels[first[i]], float(scores[i, first[i]]))],
            )
            for i, t in enumerate(true)
        ],
    )


class Tags(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))


def test_a_page_loads_nothing_and_runs_nothing_that_a_label_says() -> None:
    evil = outcome((EVIL, "b & c", "d"))
    tags = Tags()
    tags.feed(html(evil, {evil.clips[0].clip: b"jpeg", evil.clips[1].clip: b"jpeg"}))
    for tag, attributes in tags.found:
        assert tag not in {"link", "iframe"}
        if source := attributes.get("src"):
            assert source.startswith("data:image/jpeg;base64,"), tag
    assert [tag for tag, _ in tags.found].count("script") == 2
    assert all("onerror" not in attributes for _, attributes in tags.found)


def test_a_page_of_many_labels_is_no_larger_than_its_cells() -> None:
    labels = tuple(f"action {i}" for i in range(288))
    page = html(outcome(labels, clips=600), {})
    assert len(page) < 7_000_000  # of which 4.8 are the plotting program
    assert '"showticklabels":false' in page


def test_labels_that_look_like_numbers_or_dates_stay_labels() -> None:
    for labels in (("0", "1", "2"), ("2000-01-01", "b", "c")):
        page = html(outcome(labels), {})
        # Of the bars, and both of the matrix.
        assert page.count('"type":"category"') == 3


def test_long_labels_are_cut_beside_the_chart_and_whole_in_it() -> None:
    long = "a salto " * 20
    page = html(outcome((long, "b")), {})
    assert f'"{long[:39]}\\u2026"' in page and f'"{long}"' in page


def test_the_table_stands_beside_the_papers_rows() -> None:
    haa500 = outcome(("a", "b", "c"), "haa500")
    text = markdown(haa500)
    assert "| PeVL ViT-L/14 (paper) | 84.7 |" in text
    assert f"**{100 * haa500.accuracy.top1:.1f}** (10.0–20.0)" in text
    assert "calibrated on val, 12 clips, calibration error" in text
    assert "PeVL" not in markdown(outcome(("a", "b"), "own"))
    some = replace(haa500, incomplete="test 1 of 2 clips")
    assert "incomplete: test 1 of 2 clips" in markdown(some)


def test_the_papers_own_rows_are_there_for_each_of_its_data_sets() -> None:
    assert set(PUBLISHED) == {"diving48", "gym99", "gym288", "haa500", "smarthome-cs"}
    for rows in PUBLISHED.values():
        assert [row.method for row in rows[-2:]] == ["PeVL ViT-B/16", "PeVL ViT-L/14"]


def test_mistakes_made_most_surely_come_first() -> None:
    clips = outcome(("a", "b", "c")).clips
    worst = worst_mistakes(clips)
    assert worst and not any(c.correct for c in worst)
    lead = [c.predictions[0][1] - c.score for c in worst]
    assert lead == sorted(lead, reverse=True)


@pytest.mark.parametrize("classes", [1, 2, 12])
def test_labels_that_are_mixed_up_stand_together(classes: int) -> None:
    confusion = np.eye(classes, dtype=int) * 5
    for a, b in ((0, 7), (3, 9), (2, 11)):
        if classes > b:
            confusion[a, b] = confusion[b, a] = 5
    order = cluster_order(confusion).tolist()
    assert sorted(order) == list(range(classes))
    if classes == 12:
        for a, b in ((0, 7), (3, 9), (2, 11)):
            assert abs(order.index(a) - order.index(b)) == 1


def test_the_page_follows_the_readers_light_or_dark() -> None:
    page = html(outcome(("a", "b")), {})
    assert re.search(r"@media \(prefers-color-scheme: dark\)", page)
