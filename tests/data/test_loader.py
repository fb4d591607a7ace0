"""The input pipeline: order, unreadable items, and loader processes that change nothing."""

from __future__ import annotations

import os
import signal
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import cv2
import numpy as np
import pytest
import torch

from pevl_cli.data import loader as loader_module
from pevl_cli.data.loader import Loader, Unreadable, worker_count
from pevl_cli.errors import PevlError


def square(item: int) -> np.ndarray:
    if item == 3:
        raise PevlError("three cannot be read")
    if item == 4:
        Path("no such file").stat()
    return np.array([item * item])


def with_process(item: int) -> tuple[Any, int, int, int]:
    return square(item).tolist(), os.getpid(), torch.get_num_threads(), cv2.getNumThreads()


def end_the_process(item: int) -> int:
    if item == 2:
        os.kill(os.getpid(), signal.SIGKILL)
    return item


def plain(results: list[Any]) -> list[Any]:
    return [r.reason if isinstance(r, Unreadable) else r.tolist() for r in results]


def with_gpu(reader: Any, item: int) -> tuple[int, str]:
    """As extraction: ``reader`` holds the detector that the loader knows."""
    return os.getpid(), reader.detector.device


if "FAKE_GPUS" in os.environ:  # also in loader processes, which import this file
    torch.cuda.device_count = lambda: int(os.environ["FAKE_GPUS"])


EXPECTED = [[0], [1], [4], "three cannot be read", "no such file: no such file or directory.", [25]]


def test_results_come_in_order_and_say_why_an_item_is_unreadable() -> None:
    loader = Loader(square, range(6))
    assert plain(list(loader)) == EXPECTED
    assert plain(list(loader)) == EXPECTED, "a second pass"
    assert list(Loader(square, [])) == []


@pytest.mark.slow
def test_loader_processes_give_the_same_and_stay_for_a_second_pass() -> None:
    loader = Loader(with_process, range(6), workers=2)
    passes = [list(loader), list(loader)]
    processes = []
    for results in passes:
        read = [r for r in results if not isinstance(r, Unreadable)]
        values = [r.reason if isinstance(r, Unreadable) else r[0] for r in results]
        assert values == EXPECTED
        assert all(r[2:] == (1, 1) for r in read), "one thread each"
        processes.append({r[1] for r in read})
    assert processes[0] == processes[1] and len(processes[0]) == 2
    assert os.getpid() not in processes[0]


@pytest.mark.slow
def test_other_items_are_read_by_the_same_processes() -> None:
    loader = Loader(with_process, workers=2)
    first = list(loader.over([0, 1, 2, 5]))
    _ = next(loader.over([7, 8, 9]))  # a pass that is not finished
    second = list(loader.over(range(6)))
    assert [r[0] for r in first if not isinstance(r, Unreadable)] == [[0], [1], [4], [25]]
    assert [r.reason if isinstance(r, Unreadable) else r[0] for r in second] == EXPECTED
    pids = [{r[1] for r in rows if not isinstance(r, Unreadable)} for rows in (first, second)]
    assert pids[0] == pids[1] and len(pids[0]) == 2


@pytest.mark.slow
def test_a_killed_loader_process_is_one_clear_error() -> None:
    with pytest.raises(PevlError, match=r"loader process ended .* try fewer --workers"):
        list(Loader(end_the_process, range(8), workers=1))


def test_what_is_not_the_users_to_mend_stays_an_error() -> None:
    def broken(_: int) -> int:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        list(Loader(broken, range(2)))


def test_reading_draws_nothing_from_the_global_random_numbers() -> None:
    torch.manual_seed(0)
    expected = torch.rand(1)
    torch.manual_seed(0)
    list(Loader(square, range(3)))
    assert torch.equal(torch.rand(1), expected)


@pytest.mark.parametrize(
    ("device", "expected_device", "expected_threads"),
    [("cuda", "cuda:1", 1), (None, "cuda:1", 1), ("cuda:0", "cuda:0", 1), ("cpu", "cpu", 4)],
)
def test_each_process_has_its_gpu_or_its_share_of_the_cores(
    device: str | None, expected_device: str, expected_threads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    detector = SimpleNamespace(device=device)
    worker = SimpleNamespace(dataset=SimpleNamespace(detector=detector), num_workers=4)
    threads: list[int] = []
    monkeypatch.setattr(loader_module, "get_worker_info", lambda: worker)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(os, "cpu_count", lambda: 16)
    monkeypatch.setattr(torch, "set_num_threads", threads.append)
    monkeypatch.setattr(cv2, "setNumThreads", lambda count: None)
    loader_module._begin_worker(3)
    assert (detector.device, threads) == (expected_device, [expected_threads])


@pytest.mark.slow
@pytest.mark.parametrize(("device", "expected"), [("cuda", {0, 1}), ("cuda:1", {1})])
def test_a_process_uses_one_gpu(
    device: str, expected: set[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FAKE_GPUS", "2")
    detector: Any = SimpleNamespace(device=device)
    read = partial(with_gpu, SimpleNamespace(detector=detector))
    used = list(Loader(read, range(12), workers=2, detector=detector))
    assert len({pid for pid, _ in used}) == 2 == len(set(used)), "one GPU for each process"
    assert {name for _, name in used} == {f"cuda:{number}" for number in expected}
    assert detector.device == device, "unchanged in this process"


def test_the_number_of_processes_is_by_the_machine_unless_it_is_given(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(os, "cpu_count", lambda: 4)
    assert [worker_count(None, device) for device in ("cpu", "cuda", "cuda:1")] == [0, 4, 4]
    monkeypatch.setattr(os, "cpu_count", lambda: 64)
    assert worker_count(None, "cuda") == 8
    assert [worker_count(None, "cuda", ranks) for ranks in (2, 16, 100)] == [8, 4, 1]
    assert worker_count(3, "cuda", 16) == 3, "of each process"
    assert worker_count(3, "cpu") == 3 and worker_count(0, "cuda") == 0
