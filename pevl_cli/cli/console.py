"""What people see in a terminal: tables, progress and warnings. The only file that knows rich.

Results go to stdout, everything else to stderr.
"""

from __future__ import annotations

import shlex
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pevl_cli.errors import PevlError

if TYPE_CHECKING:
    import numpy as np
    from rich.console import Console

    from pevl_cli.evaluation.compare import Comparison
    from pevl_cli.evaluation.outcome import Outcome
    from pevl_cli.recognise import Answer
    from pevl_cli.training.plan import Plan
    from pevl_cli.training.settings import TrainSettings
    from pevl_cli.training.trainer import Event, Result
    from pevl_cli.weights import Entry


NONE = "none of these, or not sure"

# Set by --debug: show where an error came from.
debug = False


def warn_of_no_poses(count: int, source: Path | None) -> None:
    if count:
        warn(f"{count} clips have no poses in {source}; they are judged by their pictures alone")


def show_outcome(outcome: Outcome) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    got, sure = outcome.accuracy, outcome.intervals
    title = Text(f"{outcome.dataset}, split {outcome.split}")
    table = Table(title=title, title_justify="left")
    table.add_column("action")
    table.add_column("accuracy", justify="right")
    weakest = sorted(got.per_class.items(), key=lambda item: item[1])
    shown = weakest if len(weakest) <= 30 else weakest[:20]
    for label, value in shown:
        table.add_row(Text(label), f"{value:.1%}")
    Console().print(table)
    if len(shown) < len(weakest):
        print(f"the {len(shown)} weakest of {len(weakest)} actions; all are in the report")
    figures = Table(show_header=False, box=None, pad_edge=False)
    figures.add_column()
    figures.add_column(justify="right", style="bold")
    figures.add_column()
    for name, value, interval in (
        ("top-1", got.top1, sure["top1"]),
        ("mean class", got.mean_class, sure["mean_class"]),
    ):
        between = f"95 %: {interval.low:.1%} to {interval.high:.1%}"
        figures.add_row(name, f"{value:.1%}", between)
    figures.add_row("top-5", f"{got.top5:.1%}", f"{got.count:,} clips")
    error = outcome.reliability.error
    figures.add_row("calibration error", f"{error:.1%}", _fitted(outcome))
    if outcome.speed is not None:
        stages = {
            "decode": outcome.speed.decode_s,
            "pose": outcome.speed.pose_s,
            "model": outcome.speed.model_s,
        }
        told = ", ".join(f"{k} {v:.2f} s" for k, v in stages.items() if v is not None)
        figures.add_row("clips a second", f"{outcome.speed.clips_per_s:.2f}", f"{told} a clip")
    cost = outcome.cost
    figures.add_row(
        "GFLOPs a view",
        f"{cost.gflops['all']:.1f}",
        f"{cost.tunable['all'] / 1e6:.1f} M tunable of {cost.parameters['all'] / 1e6:.1f} M",
    )
    Console().print(figures)
    if outcome.incomplete:
        print(f"incomplete: {outcome.incomplete}")
    for clip in outcome.left_out[:5]:
        warn(f"left out: {clip.reason}")


def _fitted(outcome: Outcome) -> str:
    return (
        f"scores fitted on {outcome.calibrated_on}"
        if outcome.calibrated_on
        else "temperature as trained"
    )


def show_comparison(found: Comparison) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table()
    for column in found.HEAD:
        right = column not in found.HEAD[:2]
        table.add_column(column, justify="right" if right else "left", overflow="fold")
    for cells in found.rows():
        table.add_row(*(Text(cell) for cell in cells))
    console = Console()
    console.print(table)
    for line in found.sentences():
        console.print(line, highlight=False, markup=False, soft_wrap=True)


def show_missing(title: str, rows: Sequence[Sequence[int | str]]) -> None:
    """What of a data set is there: a row a split."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(title=Text(title), title_justify="left")
    table.add_column("split")
    for column in ("official", "listed", "own clip", "in a longer video", "poses", "missing"):
        table.add_column(column, justify="right")
    for split, *cells in rows:
        table.add_row(str(split), *(c if isinstance(c, str) else f"{c:,}" for c in cells))
    Console().print(table)


def show_picture(picture: np.ndarray, columns: int = 64) -> None:
    """A small RGB picture in half blocks, where the terminal has colours."""
    import cv2
    from rich.console import Console
    from rich.text import Text

    console = Console()
    if console.color_system is None:
        return
    rows = round(columns * picture.shape[0] / picture.shape[1] / 2) * 2
    small = cv2.resize(picture, (columns, rows), interpolation=cv2.INTER_AREA)
    text = Text()
    for upper, lower in zip(small[::2].tolist(), small[1::2].tolist(), strict=True):
        for above, below in zip(upper, lower, strict=True):
            text.append(
                "▀", f"rgb({','.join(map(str, above))}) on rgb({','.join(map(str, below))})"
            )
        text.append("\n")
    console.print(text)


def show_models(entries: Sequence[Entry]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table()
    for column in ("name", "what", "state", "MB", "licence"):
        table.add_column(
            column, justify="right" if column == "MB" else "left", no_wrap=column != "what"
        )
    for entry in entries:
        known = entry.known
        size = f"{known.megabytes:.0f}" if entry.place is not None else f"~{known.megabytes:.0f}"
        table.add_row(Text(known.name), known.about, entry.state, size, known.licence)
    Console().print(table)
    for entry in entries:
        if entry.place is not None:
            print(f"{entry.known.name}: {entry.place}")
    print("fetch one with: pevl models fetch NAME")


class ClipProgress:
    """A bar of clips done, with the time left."""

    def __init__(self, what: str) -> None:
        from rich.progress import Progress

        self.progress = Progress(*Progress.get_default_columns(), console=on_stderr())
        self.what = what
        self.task: Any = None

    def __enter__(self) -> Callable[[int, int], None]:
        self.progress.start()
        return self.show

    def __exit__(self, *_: object) -> None:
        self.progress.stop()

    def show(self, done: int, total: int) -> None:
        if self.task is None:
            self.task = self.progress.add_task(self.what, total=total)
        self.progress.update(self.task, completed=done)


class TrainingView:
    """Live progress: what is being done, loss, rate, accuracy, time left."""

    def __init__(self) -> None:
        from rich.progress import (
            BarColumn,
            Progress,
            TextColumn,
            TimeElapsedColumn,
            TimeRemainingColumn,
        )

        self.console = on_stderr()
        self.progress = Progress(
            TextColumn("{task.description:<11}"),  # all of it fits into 80 columns
            BarColumn(bar_width=10),
            TextColumn("{task.fields[facts]:<41}"),
            TimeElapsedColumn(),
            TimeRemainingColumn(compact=True),
            console=self.console,
        )
        self.stage = ""
        self.task: Any = None

    def __enter__(self) -> Callable[[Event], None]:
        self.progress.start()
        return self.show

    def __exit__(self, *_: object) -> None:
        self.progress.stop()

    def show(self, event: Event) -> None:
        if event.val is not None:
            self.progress.console.print(
                f"epoch {event.epoch:>3}: validation top-1 {event.val.top1:.1%}, "
                f"mean class {event.val.mean_class:.1%}"
            )
            return
        if event.stage != self.stage or self.task is None or event.done == 1:
            self.stage = event.stage
            if event.stage == "checking" and event.total == 0:
                return
            self.task = self.progress.add_task(event.stage, total=event.total, facts="")
        facts, what = f"{event.done} of {event.total} clips", event.stage
        if event.loss is not None:
            what = f"epoch {event.epoch}"
            facts = (
                f"loss {event.loss:.2f} rate {event.learning_rate:.0e} "
                f"top-1 {event.train_top1:.0%} waited {event.wait:.0%}"
            )
        self.progress.update(self.task, completed=event.done, description=what, facts=facts)


class AblationView(TrainingView):
    """The same for run after run, each with its name above it."""

    def __init__(self) -> None:
        super().__init__()
        self.run = ""

    def __enter__(self) -> Callable[[str, Event], None]:  # type: ignore[override]
        self.progress.start()
        return self.show_run

    def show_run(self, run: str, event: Event) -> None:
        if run != self.run:
            self.run = run
            if self.task is not None:
                self.progress.remove_task(self.task)
                self.task = None
            self.progress.console.print(run, highlight=False)
        self.show(event)


def show_result(result: Result, settings: TrainSettings) -> None:
    """What was learnt, what is still mixed up, and how to use it."""
    console = on_stderr()

    def tell(text: str, style: str = "") -> None:
        console.print(text, style=style, highlight=False, markup=False, soft_wrap=True)

    if result.left_out:
        for clip in result.left_out[:10]:
            tell(f"left out: {clip.reason}", "yellow")
        tell(
            f"{len(result.left_out)} clips were left out, all listed with the reason in "
            f"{result.folder / 'left_out.csv'}",
            "yellow",
        )
    if result.incomplete:
        tell(f"the data set is incomplete here: {result.incomplete}", "yellow")
    if result.interrupted:
        tell(
            f"stopped after {result.epochs} epochs; the checkpoints are usable, and the same "
            "command with --resume goes on."
        )
    if result.stopped_early:
        tell(f"stopped after {result.epochs} epochs, as it did not get better any more.")
    spent = (
        f"trained on {result.train_clips} clips in {result.seconds / 60:.1f} min, "
        f"{result.wait:.0%} of it waiting for clips"
    )
    if result.best is None:
        tell(f"{spent}; without validation clips nobody knows how good it is.")
    else:
        best = result.best
        tell(
            f"best epoch {result.best_epoch}: top-1 {best.top1:.1%}, mean class "
            f"{best.mean_class:.1%} on {best.count} validation clips; {spent}"
        )
        sure = sum(value == 1 for value in best.per_class.values())
        tell(f"named without a mistake: {sure} of {len(best.per_class)} actions")
        weak = sorted(best.per_class.items(), key=lambda item: item[1])[:3]
        if weak[0][1] < 1:
            tell("weakest: " + ", ".join(f"{n} {v:.0%}" for n, v in weak if v < 1))
        if best.confused:
            tell(
                "mixed up most: "
                + ", ".join(f"{t} taken for {g} ({n}x)" for t, g, n in best.confused[:3])
            )
    tell("use it:")
    line = ["pevl", "classify", "VIDEO", "--checkpoint", str(result.folder / "best")]
    if settings.model.base == "clip" and settings.clip is not None:
        line += ["--clip", settings.clip]
    if settings.run.pose_weights is not None:
        line += ["--pose-weights", str(settings.run.pose_weights)]
    print(shlex.join(line))


def show_plan(settings: TrainSettings, plan: Plan) -> None:
    import yaml
    from rich.console import Console
    from rich.table import Table

    print(yaml.safe_dump(settings.model_dump(mode="json"), sort_keys=False))
    table = Table(title="would train", title_justify="left", show_header=False)
    for name, value in plan.rows():
        table.add_row(name, value)
    Console().print(table)


def show_answer(answer: Answer) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console()
    table = Table(title=Text(answer.video), title_justify="left", title_style="bold")
    table.add_column("", justify="right")
    table.add_column("action")
    table.add_column("score", justify="right")
    table.add_column("similarity", justify="right")
    best = "bold green"
    if answer.none_of_these:
        best = ""
        cells = ("–", NONE, f"< {answer.threshold:.1%}", "")
        table.add_row(*(Text(c) for c in cells), style="bold yellow")
    for rank, p in enumerate(answer.predictions, 1):
        style = best if rank == 1 else ""
        cells = (str(rank), p.label, f"{p.score:.1%}", f"{p.similarity:.3f}")
        table.add_row(*(Text(c) for c in cells), style=style)
    console.print(table)
    if answer.person.box is not None:
        box = ", ".join(f"{v:.0f}" for v in answer.person.box)
        console.print(
            f"person in {answer.person.frames_seen} of {answer.person.frames} frames, "
            f"box {box} px; {answer.start_s:.2f} to {answer.end_s:.2f} s",
            highlight=False,
        )
    for warning in answer.warnings:
        warn(f"{answer.video}: {warning}")


def as_text(answers: list[Answer]) -> str:
    lines = []
    for answer in answers:
        lines.append(answer.video)
        if answer.none_of_these:
            lines.append(f"  {NONE}: all scores are below {answer.threshold:.1%}")
        lines += [f"  {p.score:7.1%}  {p.similarity:6.3f}  {p.label}" for p in answer.predictions]
        lines += [f"  warning: {w}" for w in answer.warnings]
    return "\n".join(lines) + "\n"


def on_stderr() -> Console:
    from rich.console import Console

    return Console(stderr=True)


def note(text: str) -> None:
    print(f"note: {text}", file=sys.stderr)


def warn(text: str) -> None:
    print(f"warning: {text}", file=sys.stderr)


def tell_error(error: PevlError) -> None:
    if debug:
        traceback.print_exception(error)
    print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
