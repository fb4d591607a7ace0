"""Train and measure the variants of the paper's Tables 4 to 9; list the paper's results beside.

A variant is the config with some fields changed; all variants have the same schedule. Results are
those of the last epoch, so that no epoch is chosen on the measured clips.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import ValidationError

from pevl_cli import recognise
from pevl_cli.cache import atomic_write
from pevl_cli.data.manifest import Manifest
from pevl_cli.errors import PevlError, UsageError
from pevl_cli.evaluation.benchmark import benchmark
from pevl_cli.evaluation.cost import Cost, compute_cost
from pevl_cli.model.config import ModelConfig
from pevl_cli.pose.files import PoseStore
from pevl_cli.training.progress import Event
from pevl_cli.training.run_folder import data_hash, has_state
from pevl_cli.training.settings import TrainSettings
from pevl_cli.training.train import adapt_settings, train

# Without the SGMC module: concatenated features, vanilla contrast.
ONE_LEVEL: dict[str, Any] = {
    "similarities": ("concat",),
    "semantic_loss": False,
}
NO_UCMR: dict[str, Any] = {"p2v": False, "v2p": False, "refinement_loss": False}
NO_ADAPTERS: dict[str, Any] = {
    "video_adapters": False,
    "pose_adapters": False,
    "text_adapters": False,
}
# Name of a variant (part of its folder's name) -> changes of the config. Tables share variants.
VARIANTS: dict[str, dict[str, Any]] = {
    "pevl": {},
    "baseline": ONE_LEVEL | NO_UCMR | NO_ADAPTERS | {"pose": False},
    "frozen-encoders": ONE_LEVEL | NO_UCMR | NO_ADAPTERS,
    "v-p-t": ONE_LEVEL | NO_UCMR,
    "ucmr": ONE_LEVEL,
    "without-ucmr": NO_UCMR,
    "without-p2v": {"p2v": False},
    "without-v2p": {"v2p": False},
    "without-refinement-loss": {"refinement_loss": False},
    "ps": {"similarities": ("ps",)},
    "vs": {"similarities": ("vs",)},
    "fw": {"similarities": ("fw",)},
    "vs-fw": {"similarities": ("vs", "fw")},
    "ps-vs": {"similarities": ("ps", "vs")},
    "ps-fw": {"similarities": ("ps", "fw")},
    "vanilla-loss": {"semantic_loss": False},
    "semantic-loss": {"semantic_loss": True},
    "v": NO_UCMR | {"similarities": ("vs",), "semantic_loss": False, "pose": False, "text": False},
    "p": NO_UCMR | {"similarities": ("ps",), "semantic_loss": False, "video": False, "text": False},
    "v-p": ONE_LEVEL | NO_UCMR | {"text": False},
    "v-t": NO_UCMR | {"similarities": ("vs",), "semantic_loss": False, "pose": False},
    "p-t": NO_UCMR | {"similarities": ("ps",), "semantic_loss": False, "video": False},
    "no-adapters": NO_ADAPTERS,
    "video-adapters": NO_ADAPTERS | {"video_adapters": True},
    "pose-adapters": NO_ADAPTERS | {"pose_adapters": True},
    "text-adapters": NO_ADAPTERS | {"text_adapters": True},
    "video-pose-adapters": {"text_adapters": False},
}
VARIANTS["p-coordinates"] = VARIANTS["p"] | {"pose_features": "xy"}
VARIANTS["p-heatmaps"] = VARIANTS["p"] | {"pose_features": "heatmap"}


@dataclass(frozen=True)
class Row:
    """A row of one of the paper's tables."""

    title: str
    variant: str  # key of VARIANTS
    paper_top1: float | None = None  # in %, on Diving48, ViT-B/16
    paper_top5: float | None = None


@dataclass(frozen=True)
class Ablation:
    """One of the paper's tables."""

    table: int  # number in the paper
    title: str
    rows: tuple[Row, ...]
    costs: bool = False  # whether the paper's table has GFLOPs and tunable parameters


FULL = Row("PeVL", "pevl", 91.9, 99.6)
ABLATIONS: dict[str, Ablation] = {
    "components": Ablation(
        4,
        "proposed components, one after the other",
        (
            Row("Baseline (v, t)", "baseline", 60.2, 79.0),
            Row("+ Pose", "frozen-encoders", 80.3, 93.5),
            Row("+ Adapters", "v-p-t", 87.3, 97.8),
            Row("+ UCMR Block", "ucmr", 90.6, 99.3),
            Row("+ SGMC Module", "pevl", 91.9, 99.6),
        ),
    ),
    "ucmr": Ablation(
        5,
        "P2V and V2P in the UCMR block",
        (
            FULL,
            Row("w/o UCMR Block", "without-ucmr", 88.9, 98.9),
            Row("w/o P2V", "without-p2v", 91.1, 99.3),
            Row("w/o V2P", "without-v2p", 90.4, 99.2),
            Row("w/o Refinement Supervision", "without-refinement-loss", 91.0, 99.0),
        ),
    ),
    "similarities": Ablation(
        6,
        "contrastive learning methods",
        (
            Row("S_PS", "ps", 91.0),
            Row("S_VS", "vs", 90.9),
            Row("S_FW", "fw", 90.9),
            Row("S_VS, S_FW", "vs-fw", 91.4),
            Row("S_PS, S_VS", "ps-vs", 91.3),
            Row("S_PS, S_FW", "ps-fw", 91.4),
            Row("all three, vanilla contrast (Sec. 4.3.3)", "vanilla-loss", 91.4),
            Row("all three, Eq. 5", "semantic-loss", 91.9),
        ),
    ),
    "modalities": Ablation(
        7,
        "modalities",
        (
            Row("V encoder", "v", 62.9),
            Row("P encoder", "p", 82.6),
            Row("V+P encoders", "v-p", 86.2),
            Row("V+T encoders", "v-t", 65.1),
            Row("P+T encoders", "p-t", 83.8),
            Row("V+P+T encoders", "v-p-t", 87.3),
            Row("PeVL", "pevl", 91.9),
        ),
        costs=True,
    ),
    "adapters": Ablation(
        8,
        "adapters in the video, pose and text encoder",
        (
            Row("none", "no-adapters", 84.9, 96.6),
            Row("video", "video-adapters", 85.5, 96.9),
            Row("pose", "pose-adapters", 86.4, 97.4),
            Row("text", "text-adapters", 86.2, 97.2),
            Row("video, pose", "video-pose-adapters", 87.8, 98.0),
            Row("video, pose, text", "pevl", 91.9, 99.6),
        ),
    ),
    "pose-input": Ablation(
        9,
        "forms of pose input, P encoder alone",
        (
            Row("Heatmaps", "p-heatmaps", 80.1, 96.0),
            Row("Coordinates", "p-coordinates", 82.6, 96.7),
        ),
        costs=True,
    ),
}


@dataclass
class RowFigures:
    """The results of a row, in [0, 1], one per seed."""

    row: Row
    config: ModelConfig
    top1: list[float] = field(default_factory=list)
    top5: list[float] = field(default_factory=list)
    mean_class: list[float] = field(default_factory=list)
    cost: Cost | None = None  # None if the paper's table does not have it


Listener = Callable[[str, Event], None]  # folder name of the run, event


def ablate(
    name: str,
    settings: TrainSettings,
    manifest: Manifest,
    poses: PoseStore | None,
    seeds: Sequence[int],
    listener: Listener = lambda variant, event: None,
) -> list[RowFigures]:
    """Train and measure every variant of one of the paper's tables, with each seed.

    ``name``: a key of ABLATIONS. Each variant and seed has a folder inside the settings' folder. A
    second call reads finished runs and continues interrupted runs.

    UsageError when a variant does not fit the config, or a folder contains a run with other
    settings; PevlError as in `train`. After a KeyboardInterrupt all runs so far are kept.
    """
    # Adapt only the joints to the data; other pose-only settings are variants of the table.
    adapted = adapt_settings(settings, manifest, poses).model
    joints = {"layout": adapted.layout, "joints": adapted.joints}
    settings = settings.model_copy(update={"model": settings.model.model_copy(update=joints)})
    if not adapted.video and name != "pose-input":
        raise UsageError(
            f"pevl ablate {name}: needs videos, and {manifest.source} has none; hint: pevl ablate "
            "pose-input needs poses only."
        )
    table = []
    for row in ABLATIONS[name].rows:
        variant = _first_equal_variant(row.variant, settings.model)
        figures = RowFigures(row, _config(settings.model, VARIANTS[variant]))
        for seed in seeds:
            folder = settings.folder / f"{variant}-seed{seed}"
            run = _run_settings(settings, figures.config, folder, seed)
            result = _measure(run, manifest, poses, listener)
            figures.top1.append(result["top1"])
            figures.top5.append(result["top5"])
            figures.mean_class.append(result["mean_class"])
        if ABLATIONS[name].costs:
            config = figures.config.model_copy(update={"classes": len(manifest.labels)})
            figures.cost = compute_cost(config, manifest.labels)
        table.append(figures)
    return table


def _config(config: ModelConfig, changes: Mapping[str, Any]) -> ModelConfig:
    """The config with ``changes``. UsageError when they do not fit."""
    try:
        # Training sets the number of classes.
        return ModelConfig.model_validate(config.model_dump() | {"classes": 1} | dict(changes))
    except ValidationError as error:
        reason = error.errors()[0]["msg"].removeprefix("Value error, ")
        raise UsageError(
            f"pevl ablate: {changes} does not fit these settings: {reason}."
        ) from error


def _first_equal_variant(variant: str, config: ModelConfig) -> str:
    """The first variant with the same model config: in `mini`, two variants are equal."""
    target = _config(config, VARIANTS[variant])
    return next(v for v, changes in VARIANTS.items() if _config(config, changes) == target)


def _run_settings(
    settings: TrainSettings, config: ModelConfig, folder: Path, seed: int
) -> TrainSettings:
    run = settings.run.model_copy(update={"out": folder, "seed": seed})
    return settings.model_copy(update={"model": config, "run": run})


def _measure(
    settings: TrainSettings, manifest: Manifest, poses: PoseStore | None, listener: Listener
) -> dict[str, Any]:
    """The results of one run; trains it unless it is finished."""
    folder = settings.folder
    file = folder / "figures.json"
    # Everything except the seed that must be the same in all runs of a table.
    made_by = settings.model_dump(
        mode="json", exclude={"run": True, "data": {"workers", "cache_gb"}}
    )
    made_by |= {
        "data set": data_hash(manifest),
        "poses": None if poses is None else poses.digest(),
        "precision": settings.run.precision,
    }
    if file.exists():
        return _read_figures(file, made_by)
    result = train(
        settings,
        lambda event: listener(folder.name, event),
        resume=has_state(folder),
        manifest=manifest,
        poses=poses,
    )
    if result.interrupted:
        raise KeyboardInterrupt
    recogniser = recognise.load(
        folder / "last",
        settings.clip,
        settings.run.pose_weights,
        use_pose=poses is None,
        device=settings.run.device,
    )
    outcome = benchmark(manifest, recogniser, str(folder / "last"), poses)
    figures = {
        "top1": outcome.accuracy.top1,
        "top5": outcome.accuracy.top5,
        "mean_class": outcome.accuracy.mean_class,
        "split": outcome.split,
        "clips": outcome.accuracy.count,
        "minutes": round(result.seconds / 60, 2),
        "made_by": made_by,
    }
    with atomic_write(file) as temporary:
        temporary.write_text(json.dumps(figures, indent=1), encoding="utf-8")
    for state in ("state.pt", "state.older.pt"):  # large, and the run is finished
        (folder / state).unlink(missing_ok=True)
    shutil.rmtree(folder / "best", ignore_errors=True)
    return figures


def _read_figures(file: Path, made_by: Mapping[str, Any]) -> dict[str, Any]:
    """Read the results of a finished run. PevlError when damaged, UsageError for other settings."""
    try:
        figures: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        stored = figures["made_by"]
        float(figures["top1"] + figures["top5"] + figures["mean_class"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise PevlError(f"{file}: is damaged ({error!r}); remove the file.") from error
    for part, value in made_by.items():
        if stored.get(part) != value:
            raise UsageError(
                f"{file.parent}: was made with another '{part}', but all rows of a table need the "
                "same; hint: choose another folder with --out, or remove this one."
            )
    return figures


def table_title(settings: TrainSettings, manifest: Manifest) -> str:
    """The common facts of all rows: data set, config, frames, schedule."""
    optim, config = settings.optim, settings.model
    return (
        f"{manifest.title}, `{config.name}`, {config.video_frames} + {config.pose_frames} frames, "
        f"{config.image_size} px, {optim.epochs} epochs of batches of {optim.batch_size}"
    )


def markdown(name: str, table: Sequence[RowFigures], title: str) -> str:
    """The table as Markdown with our results and the paper's; ``title`` from `table_title`."""
    ablation = ABLATIONS[name]
    seeds = len(table[0].top1)
    lines = [
        f"### Table {ablation.table}: {ablation.title}",
        "",
        f"{title}; {seeds} seed{'s' if seeds != 1 else ''}, mean ± standard deviation, in %. "
        "Paper: Diving48, ViT-B/16.",
        "",
    ]
    head = ["variant", "top-1", "top-5", "mean class", "paper's top-1", "paper's top-5"]
    if ablation.costs:
        head += ["GFLOPs", "tunable (M)"]
    lines += ["| " + " | ".join(head) + " |", "|---" + "|---:" * (len(head) - 1) + "|"]
    for figures in table:
        row = figures.row
        measured = (figures.top1, figures.top5, figures.mean_class)
        cells = [row.title, *(_mean_and_deviation(values) for values in measured)]
        cells += ["" if v is None else f"{v:.1f}" for v in (row.paper_top1, row.paper_top5)]
        if figures.cost is not None:
            cost = figures.cost
            cells += [f"{cost.gflops['all']:.2f}", f"{cost.tunable['all'] / 1e6:.2f}"]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def _mean_and_deviation(values: Sequence[float]) -> str:
    deviation = np.std(values, ddof=1) if len(values) > 1 else 0.0
    return f"{100 * np.mean(values):.1f} ± {100 * deviation:.1f}"
