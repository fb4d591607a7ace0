"""Progress bars on stderr while a command works."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from pevl_cli.cli import console

if TYPE_CHECKING:
    from pevl_cli.training.progress import Event


class ClipProgress:
    """A progress bar with the time left, for clips or bytes. Used as a context manager; it returns
    `show` as the listener.
    """

    def __init__(self, description: str) -> None:
        from rich.progress import Progress

        self.progress = Progress(*Progress.get_default_columns(), console=console.stderr())
        self.description = description
        self.task: Any = None

    def __enter__(self) -> Callable[[int, int], None]:
        self.progress.start()
        return self.show

    def __exit__(self, *_: object) -> None:
        self.progress.stop()

    def show(self, done: int, total: int) -> None:
        """Update the bar: ``done`` of ``total`` clips or bytes."""
        if self.task is None:
            self.task = self.progress.add_task(self.description, total=total)
        self.progress.update(self.task, completed=done)


class TrainingView:
    """Progress of a training run: stage, loss, learning rate, accuracy, time left."""

    def __init__(self) -> None:
        from rich.progress import (
            BarColumn,
            Progress,
            TextColumn,
            TimeElapsedColumn,
            TimeRemainingColumn,
        )

        self.progress = Progress(
            TextColumn("{task.description:<11}"),  # all columns together fit into 80 characters
            BarColumn(bar_width=10),
            TextColumn("{task.fields[facts]:<41}"),
            TimeElapsedColumn(),
            TimeRemainingColumn(compact=True),
            console=console.stderr(),
        )
        self.stage = ""
        self.task: Any = None

    def __enter__(self) -> Callable[[Event], None]:
        self.progress.start()
        return self.show

    def __exit__(self, *_: object) -> None:
        self.progress.stop()

    def show(self, event: Event) -> None:
        """Update the bars, or print the validation figures."""
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
        kind = "views" if event.stage == "preparing" else "clips"
        facts, description = f"{event.done} of {event.total} {kind}", event.stage
        if event.loss is not None:
            description = f"epoch {event.epoch}"
            facts = (
                f"loss {event.loss:.2f} rate {event.learning_rate:.0e} "
                f"top-1 {event.train_top1:.0%} waited {event.wait:.0%}"
            )
        self.progress.update(self.task, completed=event.done, description=description, facts=facts)


class AblationView:
    """A `TrainingView` for several runs, one after the other, each with its name above its bars."""

    def __init__(self) -> None:
        self.view = TrainingView()
        self.run = ""

    def __enter__(self) -> Callable[[str, Event], None]:
        self.view.__enter__()
        return self.show

    def __exit__(self, *exception: object) -> None:
        self.view.__exit__(*exception)

    def show(self, run: str, event: Event) -> None:
        """Update the bars of the run with the folder name ``run``."""
        if run != self.run:
            self.run = run
            if self.view.task is not None:
                self.view.progress.remove_task(self.view.task)
                self.view.task = None
            self.view.progress.console.print(run, highlight=False)
        self.view.show(event)
