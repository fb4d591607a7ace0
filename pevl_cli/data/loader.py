"""The one input pipeline: items are read in their order, here or by loader processes.

Training, validation, the check before training, `pevl benchmark` and `pevl pose --store` all read
through `Loader`, which is `torch.utils.data.DataLoader` with a function in place of a data set.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import cv2
import torch
from torch.utils.data import DataLoader, Dataset, get_worker_info

from pevl_cli.errors import PevlError

if TYPE_CHECKING:
    from pevl_cli.pose.detector import PoseDetector

T = TypeVar("T")
R = TypeVar("R")

MAX_WORKERS = 8  # that are started unless another number is asked for
PREFETCH = 4  # items that each loader process reads ahead


@dataclass(frozen=True)
class Unreadable:
    """In place of an item that cannot be read: why."""

    reason: str


def reason_of(error: PevlError | OSError) -> str:
    """Why something cannot be read, as one sentence that names the file."""
    if isinstance(error, OSError) and error.strerror and error.filename:
        return f"{error.filename}: {error.strerror.lower()}."
    return str(error)


def worker_count(workers: int | None, device: str) -> int:
    """The number of loader processes; 0 means that items are read in this process.

    ``workers`` if it is a number. None decides by the machine: a CPU that computes the model has
    no core to spare, a GPU has to be kept busy. ``device`` is the one the model computes on.
    """
    if workers is not None:
        return workers
    return 0 if device.startswith("cpu") else min(MAX_WORKERS, os.cpu_count() or 1)


class _Reader(Dataset[Any], Generic[T, R]):
    """The data set of a `Loader`: its items are their own indices, so that each loader process
    gets the items that it reads and not the whole list."""

    def __init__(self, read: Callable[[T], R], detector: PoseDetector | None) -> None:
        self.read, self.detector = read, detector

    def __getitem__(self, item: T) -> R | Unreadable:
        try:
            return self.read(item)
        except (PevlError, OSError) as error:
            return Unreadable(reason_of(error))


class Loader(Generic[T, R]):
    """``read(item)`` for each item, in the items' order.

    With ``workers`` = 0 the items are read in this process. Otherwise so many processes read ahead,
    and stay for a second pass over the items until the loader is deleted. They are spawned: a fork
    of a process whose OpenMP or OpenCV threads have run may never return. So a script that uses
    them needs ``if __name__ == "__main__"``, and ``read`` and the items must be picklable.

    ``detector`` is the one that ``read`` uses, if any: with several GPUs each process has its own.
    Results do not depend on ``workers``.
    """

    def __init__(
        self,
        read: Callable[[T], R],
        items: Iterable[T],
        workers: int = 0,
        detector: PoseDetector | None = None,
    ) -> None:
        self._loader: DataLoader[Any] = DataLoader(
            _Reader(read, detector),
            sampler=items,
            batch_size=None,
            collate_fn=_unchanged,
            num_workers=workers,
            worker_init_fn=_begin_worker,
            multiprocessing_context="spawn" if workers else None,
            persistent_workers=workers > 0,
            prefetch_factor=PREFETCH if workers else None,
            generator=torch.Generator(),  # the model's random numbers stay as they are
        )

    def __iter__(self) -> Iterator[R | Unreadable]:
        """The results. PevlError where a loader process ends before its time."""
        with worker_errors():
            yield from self._loader


@contextmanager
def worker_errors() -> Iterator[None]:
    """PevlError for a loader process that was killed.

    torch reports it wherever the main process happens to be, so this belongs around everything
    that is done with the results, too.
    """
    try:
        yield
    except RuntimeError as error:
        if not str(error).startswith("DataLoader worker"):
            raise
        raise PevlError(
            "a loader process ended before its time, perhaps for want of memory; hint: try fewer "
            '--workers. (A script that asks for workers needs `if __name__ == "__main__":`.)'
        ) from error


def _unchanged(result: R) -> R:
    return result


def _begin_worker(number: int) -> None:
    """In a new loader process: its threads, and its GPU where there are several.

    One thread is enough to decode; a detector on the CPU gets this process's share of the cores.
    """
    worker = get_worker_info()
    assert worker is not None
    threads, detector = 1, worker.dataset.detector  # type: ignore[attr-defined]
    if detector is not None:
        gpus = torch.cuda.device_count()
        if detector.device in (None, "cuda") and gpus:
            detector.device = f"cuda:{number % gpus}"
        elif detector.device == "cpu":
            threads = max((os.cpu_count() or 1) // worker.num_workers, 1)
    torch.set_num_threads(threads)
    cv2.setNumThreads(1)
