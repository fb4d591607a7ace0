"""The report of a benchmark: a Markdown table with the paper's rows, and an HTML page.

The page loads no other files: it contains the charts, images and the plotting library.
"""

from __future__ import annotations

import base64
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import plotly.graph_objects as go
from jinja2 import Environment
from plotly.offline import get_plotlyjs
from scipy.cluster.hierarchy import leaves_list, linkage, optimal_leaf_ordering
from scipy.spatial.distance import squareform

from pevl_cli.cache import atomic_write
from pevl_cli.data.manifest import Manifest
from pevl_cli.errors import PevlError
from pevl_cli.evaluation.benchmark import clip_names
from pevl_cli.evaluation.outcome import ClipResult, Outcome
from pevl_cli.media.video import sample_clip
from pevl_cli.metrics import Interval
from pevl_cli.output.draw import filmstrip, stored_filmstrip
from pevl_cli.pose.files import PoseStore
from pevl_cli.recognise import Recogniser

TEMPLATE = Path(__file__).parents[1] / "assets" / "report_page.html"
MISTAKES = 24  # maximum number of wrong answers that are shown with frames
PAIRS = 20  # maximum number of pairs of confused labels that are listed
TICKED_CLASSES = 60  # with more classes, the confusion matrix shows labels only after zooming
LABEL_LENGTH = 40  # maximum number of characters of a label in a chart
PERCENT = 100


@dataclass(frozen=True)
class Published:
    """A published result, in %."""

    method: str
    top1: float | None
    mean_class: float | None = None


# From the paper's Tables 1 to 3; the paper's own models last.
PUBLISHED: dict[str, tuple[Published, ...]] = {
    "diving48": (
        Published("ORViT TimeSformer", 88.0),
        Published("AIM ViT-B/16", 88.9),
        Published("AIM ViT-L/14", 90.6),
        Published("PeVL ViT-B/16", 91.9),
        Published("PeVL ViT-L/14", 92.5),
    ),
    "gym99": (
        Published("TQN", 93.8, 90.6),
        Published("VT CE", 94.6, 91.4),
        Published("RGBPose-Conv3D", 95.6),
        Published("PeVL ViT-B/16", 96.5, 91.6),
        Published("PeVL ViT-L/14", 97.0, 91.8),
    ),
    "gym288": (
        Published("TQN", 89.6, 61.9),
        Published("VT CE", 90.1, 62.6),
        Published("PeVL ViT-B/16", 90.5, 63.9),
        Published("PeVL ViT-L/14", 91.8, 64.0),
    ),
    "haa500": (
        Published("CLIP", 63.3),
        Published("P2S + EVL", 79.8),
        Published("DC-TBAC-CSN", 83.7),
        Published("PeVL ViT-B/16", 84.3),
        Published("PeVL ViT-L/14", 84.7),
    ),
    "smarthome-cs": (
        Published("VPN++", None, 71.0),
        Published("PAAT", None, 72.5),
        Published("PeVL ViT-B/16", None, 73.3),
        Published("PeVL ViT-L/14", None, 73.8),
    ),
}


def write_report(
    folder: Path,
    outcome: Outcome,
    manifest: Manifest,
    recogniser: Recogniser,
    poses: PoseStore | None,
) -> None:
    """Write `result.json`, `table.md` and `report.html`, each atomically.

    The manifest, recogniser and poses must be those of the outcome; they give the frames of wrong
    answers. PevlError when the folder cannot be written.
    """
    strips = mistake_strips(outcome, manifest, recogniser, poses)
    texts = {
        "result.json": json.dumps(outcome.as_dict(), indent=1, ensure_ascii=False),
        "table.md": markdown(outcome),
        "report.html": html(outcome, strips),
    }
    for name, text in texts.items():
        with atomic_write(folder / name) as temporary:
            temporary.write_text(text, encoding="utf-8")


# -- Markdown -----------------------------------------------------------------------------------


def markdown(outcome: Outcome) -> str:
    """A table with the paper's rows for this data set and our row; below it, the `facts`."""
    head = "| method | top-1 | top-5 | mean class |\n|---|---:|---:|---:|"
    rows = [
        f"| {p.method} (paper) | {_percent(p.top1)} | | {_percent(p.mean_class)} |"
        for p in PUBLISHED.get(outcome.dataset, ())
    ]
    accuracy, intervals = outcome.accuracy, outcome.intervals
    cells = (
        f"**{PERCENT * accuracy.top1:.1f}** ({_range(intervals['top1'])})",
        f"{PERCENT * accuracy.top5:.1f}",
        f"**{PERCENT * accuracy.mean_class:.1f}** ({_range(intervals['mean_class'])})",
    )
    name = outcome.checkpoint.replace("|", "\\|")
    rows.append(f"| {name} | " + " | ".join(cells) + " |")
    points = [f"- {line}" for line in facts(outcome)]
    return "\n".join([f"### {outcome.dataset}", "", head, *rows, "", *points]) + "\n"


def facts(outcome: Outcome) -> list[str]:
    """The facts that are needed to judge and repeat the results, one per line."""
    provenance = outcome.provenance
    training = provenance["training"]
    units = f"over {outcome.groups} groups" if outcome.groups else "over clips"
    views = "one view" if outcome.views == 1 else f"{outcome.views} crops, one clip"
    lines = [
        f"split {outcome.split}, {outcome.accuracy.count:,} clips, {views}; "
        + (f"incomplete: {outcome.incomplete}" if outcome.incomplete else "all clips present"),
        f"in %; 95 % intervals in brackets, by bootstrap {units}",
        f"checkpoint `{outcome.checkpoint}`: config {provenance['config']}, trained on "
        f"{training['data'] or 'unknown data'}, seed {training['seed']}, "
        f"{training['epochs_done']} epochs",
        f"scores: {score_source(outcome)}, "
        f"calibration error {PERCENT * outcome.reliability.error:.1f} %",
        f"poses: {_pose_source(provenance)}",
        f"pevl {provenance['pevl']}, torch {provenance['torch']}, {provenance['device']}, "
        f"{provenance['precision']}; {provenance['machine']}; data hash {provenance['data_hash']}",
    ]
    if outcome.left_out:
        lines.insert(1, f"{len(outcome.left_out)} clips could not be read and are left out")
    return lines


def score_source(outcome: Outcome) -> str:
    """How scores are computed from similarities, as text."""
    clips = outcome.calibrated_on
    return f"calibrated on {clips}" if clips else "temperature as trained"


def _pose_source(provenance: Mapping[str, Any]) -> str:
    if provenance["poses"]:
        return f"stored, hash {provenance['poses'][:8]}"
    if provenance["pose_weights"]:
        return f"detected, hash of the weights {provenance['pose_weights'][:8]}"
    return "none"


def _percent(value: float | None) -> str:
    return "" if value is None else f"{value:.1f}"


def _range(interval: Interval) -> str:
    return f"{PERCENT * interval.low:.1f}–{PERCENT * interval.high:.1f}"


# -- HTML page ----------------------------------------------------------------------------------


def html(outcome: Outcome, strips: Mapping[str, bytes]) -> str:
    """The HTML page; ``strips``: the result of `mistake_strips`."""
    charts = {"classes": _class_chart(outcome), "confusion": _confusion_chart(outcome)}
    charts["reliability"] = _reliability_chart(outcome)
    worst = [
        {"clip": clip, "image": base64.b64encode(strips[clip.clip]).decode()}
        for clip in worst_mistakes(outcome.clips)
        if clip.clip in strips
    ]
    speed, cost = outcome.speed, outcome.cost
    stages = {}
    if speed is not None:
        stages = {"decode": speed.decode_s, "pose": speed.pose_s, "model": speed.model_s}
    environment = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    environment.filters["percent"] = lambda value: f"{PERCENT * value:.1f} %"
    environment.filters["range"] = _range
    return environment.from_string(TEMPLATE.read_text(encoding="utf-8")).render(
        outcome=outcome,
        facts=facts(outcome),
        score_source=score_source(outcome),
        published=PUBLISHED.get(outcome.dataset, ()),
        worst=worst,
        pairs=outcome.accuracy.confused[:PAIRS],
        parts=[p for p in cost.parameters if p != "all"] + ["all"],
        stages={k: v for k, v in stages.items() if v is not None},
        # A label must not end the script element that contains it.
        charts={k: v.to_json().replace("<", "\\u003c") for k, v in charts.items()},
        plotly=get_plotlyjs(),
        ticked=TICKED_CLASSES,
    )


def worst_mistakes(clips: Sequence[ClipResult]) -> list[ClipResult]:
    """The wrong answers with the largest score difference to the true label, largest first."""
    wrong = [c for c in clips if not c.correct]
    return sorted(wrong, key=lambda c: c.score - c.predictions[0][1])[:MISTAKES]


def mistake_strips(
    outcome: Outcome, manifest: Manifest, recogniser: Recogniser, poses: PoseStore | None
) -> dict[str, bytes]:
    """Filmstrips with joints of the worst mistakes: clip name -> bytes of a JPEG file.

    Without clips that cannot be read.
    """
    names = clip_names(manifest.items)
    items = {names[id(item)]: item for item in manifest.items}
    count = recogniser.model.config.pose_frames
    strips = {}
    for result in worst_mistakes(outcome.clips):
        item = items[result.clip]
        stored = None if poses is None else poses.get(item.name)
        try:
            if item.on_disk:
                clip = sample_clip(item.path, count, item.start_s, item.end_s)
                actor = None
                if stored is not None:
                    actor = stored.actor_in(clip)
                elif recogniser.detector is not None:
                    actor = recogniser.detector.actor(clip)
                strips[result.clip] = filmstrip(clip, actor)
            elif stored is not None:
                strips[result.clip] = stored_filmstrip(stored)
        except (PevlError, OSError):
            continue
    return strips


def _class_chart(outcome: Outcome) -> go.Figure:
    """One bar per class, the weakest on top."""
    count = Counter(c.label for c in outcome.clips)
    weakest = sorted(outcome.accuracy.per_class.items(), key=lambda pair: (-pair[1], pair[0]))
    names, values = [n for n, _ in weakest], [v for _, v in weakest]
    figure = go.Figure(
        go.Bar(
            x=[PERCENT * v for v in values],
            y=names,
            orientation="h",
            text=[f"{round(v * count[n])} of {count[n]}" for n, v in weakest],
            textposition="auto",
            customdata=names,
            hovertemplate="%{customdata}: %{x:.1f} % (%{text})<extra></extra>",
        )
    )
    figure.update_layout(height=90 + 24 * len(names), bargap=0.25)
    figure.update_xaxes(range=[0, 101], dtick=25, title="correct clips, %", side="top")
    figure.update_yaxes(automargin=True, **_categories(names))
    return figure


def _categories(names: Sequence[str]) -> dict[str, Any]:
    """Settings of an axis of labels, not of numbers or dates; long labels are shortened."""
    short = [n if len(n) <= LABEL_LENGTH else f"{n[: LABEL_LENGTH - 1]}…" for n in names]
    return {"type": "category", "tickvals": list(names), "ticktext": short}


def cluster_order(confusion: np.ndarray) -> np.ndarray:
    """An order of the classes that puts confused classes side by side.

    confusion (C, C) int, true label × answer -> (C,) class indices.
    """
    if len(confusion) < 3:
        return np.arange(len(confusion))
    share = confusion / np.maximum(confusion.sum(1, keepdims=True), 1)
    distance = 1 - np.clip((share + share.T) / 2, 0, 1)
    np.fill_diagonal(distance, 0)
    condensed = squareform(distance, checks=False)
    tree = linkage(condensed, "average")
    order: np.ndarray = leaves_list(optimal_leaf_ordering(tree, condensed))
    return order


def _confusion_chart(outcome: Outcome) -> go.Figure:
    """True label × answer, in % of the true label's clips; classes in `cluster_order`."""
    used = {c.label for c in outcome.clips} | {c.predictions[0][0] for c in outcome.clips}
    names = [name for name in outcome.labels if name in used]
    index = {name: i for i, name in enumerate(names)}
    counts = np.zeros((len(names), len(names)), int)
    for clip in outcome.clips:
        counts[index[clip.label], index[clip.predictions[0][0]]] += 1
    order = cluster_order(counts)
    names, counts = [names[i] for i in order], counts[np.ix_(order, order)]
    share = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    figure = go.Figure(
        go.Heatmap(
            z=[[float(v) if v else None for v in row] for row in np.round(PERCENT * share, 1)],
            x=names,
            y=names,
            customdata=counts.tolist(),
            zmin=0,
            zmax=100,
            xgap=1 if len(names) <= TICKED_CLASSES else 0,
            ygap=1 if len(names) <= TICKED_CLASSES else 0,
            colorbar={"title": {"text": "% of the row"}, "thickness": 12},
            hovertemplate="%{y}<br>named %{x}<br>%{customdata} clips, %{z:.0f} %<extra></extra>",
        )
    )
    show_labels = len(names) <= TICKED_CLASSES
    figure.update_layout(height=max(460, min(900, 140 + 26 * len(names))), dragmode="zoom")
    axis = {"showticklabels": show_labels, "ticks": "", "automargin": True, "showgrid": False}
    axis |= _categories(names)
    figure.update_xaxes(title={"text": "answer", "standoff": 12}, tickangle=-60, **axis)
    figure.update_yaxes(title={"text": "true label", "standoff": 12}, autorange="reversed", **axis)
    return figure


def _reliability_chart(outcome: Outcome) -> go.Figure:
    reliability = outcome.reliability
    figure = go.Figure(
        [
            go.Scatter(
                x=[0, 100], y=[0, 100], mode="lines", line={"dash": "dot"}, hoverinfo="skip"
            ),
            go.Scatter(
                x=[PERCENT * v for v in reliability.score],
                y=[PERCENT * v for v in reliability.right],
                mode="lines+markers",
                hovertemplate="score %{x:.0f} %: correct in %{y:.0f} %<extra></extra>",
            ),
        ]
    )
    figure.update_layout(height=320, showlegend=False)
    title = {"text": "correct answers, %", "standoff": 12}
    figure.update_xaxes(range=[0, 102], dtick=25, title="score of the answer, %")
    figure.update_yaxes(range=[0, 102], dtick=25, title=title, automargin=True)
    return figure
