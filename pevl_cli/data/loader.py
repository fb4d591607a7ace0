"""The input pipeline: read items in their order, in this process or by loader processes.

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

MAX_WORKERS = 8  # default number of loader processes, at most
PREFETCH = 4  # number of items that each loader process reads ahead


@dataclass(frozen=True)
class Unreadable:
    """Takes the place of an item that cannot be read; gives the reason."""

    reason: str


def error_reason(error: PevlError | OSError) -> str:
    """The reason why a file cannot be read, as one sentence with the file's name."""
    if isinstance(error, OSError) and error.strerror and error.filename:
        return f"{error.filename}: {error.strerror.lower()}."
    return str(error)


def worker_count(workers: int | None, device: str, processes: int = 1) -> int:
    """The number of loader processes; 0: items are read in this process.

    ``workers`` if it is not None. Else it depends on ``device``, the device of the model: 0 on a
    CPU, whose cores compute the model; up to MAX_WORKERS with a GPU, but not more than this
    process's share of the cores. ``processes``: number of processes of the run on this machine.
    """
    if workers is not None:
        return workers
    if device.startswith("cpu"):
        return 0
    return min(MAX_WORKERS, max((os.cpu_count() or 1) // processes, 1))


class _Reader(Dataset[Any], Generic[T, R]):
    """The data set of a `Loader`, indexed by the items themselves.

    So each loader process gets only the items that it reads, not the whole list.
    """

    def __init__(self, read: Callable[[T], R], detector: PoseDetector | None) -> None:
        self.read, self.detector = read, detector

    def __getitem__(self, item: T) -> R | Unreadable:
        try:
            return self.read(item)
        except (PevlError, OSError) as error:
            return Unreadable(error_reason(error))


class _Order:
    """The items of the next pass of a `Loader`; can be replaced between two passes."""

    def __init__(self, items: Iterable[Any]) -> None:
        self.items = items

    def __iter__(self) -> Iterator[Any]:
        return iter(self.items)


class Loader(Generic[T, R]):
    """``read(item)`` for each item, in the items' order.

    With ``workers`` = 0 the items are read in this process, otherwise by this number of processes,
    which read ahead and exist until the loader is deleted. They are spawned, because a process with
    OpenMP or OpenCV threads can hang after a fork. So a script with ``workers`` > 0 needs ``if
    __name__ == "__main__"``, and ``read`` and the items must be picklable.

    ``detector``: the detector that ``read`` uses, or None. If its device is "cuda" without a
    number, the processes are spread over all GPUs, one GPU for each process; otherwise all use the
    detector's device. Results do not depend on ``workers``.
    """

    def __init__(
        self,
        read: Callable[[T], R],
        items: Iterable[T] = (),
        workers: int = 0,
        detector: PoseDetector | None = None,
    ) -> None:
        self._order = _Order(items)
        self._loader: DataLoader[Any] = DataLoader(
            _Reader(read, detector),
            sampler=self._order,
            batch_size=None,
            collate_fn=_identity,
            num_workers=workers,
            worker_init_fn=_begin_worker,
            multiprocessing_context="spawn" if workers else None,
            persistent_workers=workers > 0,
            prefetch_factor=PREFETCH if workers else None,
            generator=torch.Generator(),  # so that torch's global generator is not used
        )

    def __iter__(self) -> Iterator[R | Unreadable]:
        """Yield the result of each item. PevlError when a loader process is killed."""
        with worker_errors():
            yield from self._loader

    def over(self, items: Iterable[T]) -> Iterator[R | Unreadable]:
        """The results of other ``items``, by the same processes. Must not overlap another pass."""
        self._order.items = items
        return iter(self)


@contextmanager
def worker_errors() -> Iterator[None]:
    """Raise PevlError when a loader process is killed inside this block.

    torch can raise its error anywhere in the main process, so the block must also contain the code
    that uses the results.
    """
    try:
        yield
    except RuntimeError as error:
        if not str(error).startswith("DataLoader worker"):
            raise
        raise PevlError(
            "a loader process ended unexpectedly, perhaps because memory is too small; hint: try "
            'fewer --workers. (A script with workers needs `if __name__ == "__main__":`.)'
        ) from error


def _identity(result: R) -> R:
    return result


def _begin_worker(number: int) -> None:
    """Set the number of threads and the GPU of a new loader process.

    One thread for decoding; for a detector on the CPU, this process's share of the cores.
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
