"""Results as tables on stdout."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from pevl_cli.cli import console

if TYPE_CHECKING:
    import numpy as np
    from rich.table import Table

    from pevl_cli.evaluation.compare import Comparison
    from pevl_cli.evaluation.outcome import Outcome
    from pevl_cli.recognise import Answer
    from pevl_cli.weights import ModelEntry

NONE = "none of these, or not sure"
ALL_CLASSES = 30  # with more classes, only the weakest are shown
WEAKEST_CLASSES = 20


def show_answer(answer: Answer) -> None:
    """Print the ranked labels of one video, the actor's box, and the warnings (on stderr)."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    out = Console()
    table = Table(title=Text(answer.video), title_justify="left", title_style="bold")
    table.add_column("", justify="right")
    table.add_column("action")
    table.add_column("score", justify="right")
    table.add_column("similarity", justify="right")
    if answer.none_of_these:
        cells = ("–", NONE, f"< {answer.threshold:.1%}", "")
        table.add_row(*(Text(c) for c in cells), style="bold yellow")
    for rank, p in enumerate(answer.predictions, 1):
        style = "bold green" if rank == 1 and not answer.none_of_these else ""
        cells = (str(rank), p.label, f"{p.score:.1%}", f"{p.similarity:.3f}")
        table.add_row(*(Text(c) for c in cells), style=style)
    out.print(table)
    if answer.person.box is not None:
        box = ", ".join(f"{v:.0f}" for v in answer.person.box)
        out.print(
            f"person in {answer.person.frames_seen} of {answer.person.frames} frames, "
            f"box {box} px; {answer.start_s:.2f} to {answer.end_s:.2f} s",
            highlight=False,
        )
    for warning in answer.warnings:
        console.warn(f"{answer.video}: {warning}")


def answers_text(answers: Sequence[Answer]) -> str:
    """Answers as plain text, for a file."""
    lines = []
    for answer in answers:
        lines.append(answer.video)
        if answer.none_of_these:
            lines.append(f"  {NONE}: all scores are below {answer.threshold:.1%}")
        lines += [f"  {p.score:7.1%}  {p.similarity:6.3f}  {p.label}" for p in answer.predictions]
        lines += [f"  warning: {w}" for w in answer.warnings]
    return "\n".join(lines) + "\n"


def show_outcome(outcome: Outcome) -> None:
    """Print the results of `pevl benchmark`."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    title = Text(f"{outcome.dataset}, split {outcome.split}")
    table = Table(title=title, title_justify="left")
    table.add_column("action")
    table.add_column("accuracy", justify="right")
    ranked = sorted(outcome.accuracy.per_class.items(), key=lambda item: item[1])
    shown = ranked if len(ranked) <= ALL_CLASSES else ranked[:WEAKEST_CLASSES]
    for label, value in shown:
        table.add_row(Text(label), f"{value:.1%}")
    out = Console()
    out.print(table)
    if len(shown) < len(ranked):
        print(f"the {len(shown)} weakest of {len(ranked)} actions; the report lists all actions")
    out.print(_figures(outcome))
    if outcome.incomplete:
        print(f"incomplete data set: {outcome.incomplete}")
    for clip in outcome.left_out[:5]:
        console.warn(f"left out: {clip.reason}")


def _figures(outcome: Outcome) -> Table:
    from rich.table import Table

    accuracy, intervals, cost = outcome.accuracy, outcome.intervals, outcome.cost
    table = Table(show_header=False, box=None, pad_edge=False)
    table.add_column()
    table.add_column(justify="right", style="bold")
    table.add_column()
    for name, value, interval in (
        ("top-1", accuracy.top1, intervals["top1"]),
        ("mean class", accuracy.mean_class, intervals["mean_class"]),
    ):
        table.add_row(name, f"{value:.1%}", f"95 %: {interval.low:.1%} to {interval.high:.1%}")
    table.add_row("top-5", f"{accuracy.top5:.1%}", f"{accuracy.count:,} clips")
    clips = outcome.calibrated_on
    table.add_row(
        "calibration error",
        f"{outcome.reliability.error:.1%}",
        f"scores calibrated on {clips}" if clips else "temperature of training, not calibrated",
    )
    speed = outcome.speed
    if speed is not None:
        stages = {"decode": speed.decode_s, "pose": speed.pose_s, "model": speed.model_s}
        times = ", ".join(f"{k} {v:.2f} s" for k, v in stages.items() if v is not None)
        table.add_row("clips a second", f"{speed.clips_per_s:.2f}", f"{times} a clip")
    table.add_row(
        "GFLOPs a view",
        f"{cost.gflops['all']:.1f}",
        f"{cost.tunable['all'] / 1e6:.1f} M tunable of {cost.parameters['all'] / 1e6:.1f} M "
        "parameters",
    )
    return table


def show_comparison(comparison: Comparison) -> None:
    """Print the results side by side, and below them the differences as sentences."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table()
    for column in comparison.HEAD:
        right = column not in comparison.HEAD[:2]
        table.add_column(column, justify="right" if right else "left", overflow="fold")
    for cells in comparison.rows():
        table.add_row(*(Text(cell) for cell in cells))
    out = Console()
    out.print(table)
    for line in comparison.sentences():
        out.print(line, highlight=False, markup=False, soft_wrap=True)


def show_data_check(title: str, rows: Sequence[Sequence[int | str]]) -> None:
    """Print how many clips of each split are on disk: one row per split."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(title=Text(title), title_justify="left")
    table.add_column("split")
    for column in ("official", "listed", "clip files", "in longer videos", "poses", "missing"):
        table.add_column(column, justify="right")
    for split, *cells in rows:
        table.add_row(str(split), *(c if isinstance(c, str) else f"{c:,}" for c in cells))
    Console().print(table)


def show_models(entries: Sequence[ModelEntry]) -> None:
    """Print the models that pevl knows by name, and the paths of those on disk."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table()
    for column in ("name", "description", "state", "MB", "licence"):
        table.add_column(
            column, justify="right" if column == "MB" else "left", no_wrap=column != "description"
        )
    for entry in entries:
        known = entry.known
        size = f"{known.megabytes:.0f}" if entry.path is not None else f"~{known.megabytes:.0f}"
        table.add_row(Text(known.name), known.description, entry.state, size, known.licence)
    Console().print(table)
    for entry in entries:
        if entry.path is not None:
            print(f"{entry.known.name}: {entry.path}")
    print("download a model with: pevl models fetch NAME")


def show_image(image: np.ndarray, columns: int = 64) -> None:
    """Print a small RGB image (H, W, 3) as half blocks; nothing if the terminal has no colours."""
    import cv2
    from rich.console import Console
    from rich.text import Text

    out = Console()
    if out.color_system is None:
        return
    rows = round(columns * image.shape[0] / image.shape[1] / 2) * 2
    small = cv2.resize(image, (columns, rows), interpolation=cv2.INTER_AREA)
    text = Text()
    for upper, lower in zip(small[::2].tolist(), small[1::2].tolist(), strict=True):
        for above, below in zip(upper, lower, strict=True):
            text.append(
                "▀", f"rgb({','.join(map(str, above))}) on rgb({','.join(map(str, below))})"
            )
        text.append("\n")
    out.print(text)
