"""The input pipeline: order, unreadable items, and loader processes that change nothing."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch

from pevl_cli.data.loader import Loader, Unreadable, worker_count
from pevl_cli.errors import PevlError
from pevl_cli.pose.detector import PoseDetector


def square(item: int) -> np.ndarray:
    if item == 3:
        raise PevlError("three cannot be read")
    if item == 4:
        Path("no such file").stat()
    return np.array([item * item])


def threads(_: int) -> tuple[int, int, int]:
    return os.getpid(), torch.get_num_threads(), cv2.getNumThreads()


def end_the_process(item: int) -> int:
    if item == 2:
        os.kill(os.getpid(), signal.SIGKILL)
    return item


def device_of(detector: PoseDetector, _: int) -> Any:
    return detector.device


def plain(results: list[Any]) -> list[Any]:
    return [r.reason if isinstance(r, Unreadable) else r.tolist() for r in results]


EXPECTED = [[0], [1], [4], "three cannot be read", "no such file: no such file or directory.", [25]]


def test_results_come_in_order_and_say_why_an_item_is_unreadable() -> None:
    loader = Loader(square, range(6))
    assert plain(list(loader)) == EXPECTED
    assert plain(list(loader)) == EXPECTED, "a second pass"
    assert list(Loader(square, [])) == []


@pytest.mark.slow
def test_loader_processes_give_the_same_and_stay_for_a_second_pass() -> None:
    loader = Loader(square, range(6), workers=2)
    assert plain(list(loader)) == EXPECTED
    assert plain(list(loader)) == EXPECTED
    inside = Loader(threads, range(8), workers=2)
    first, second = list(inside), list(inside)
    assert {r[0] for r in first} == {r[0] for r in second} and len({r[0] for r in first}) == 2
    assert os.getpid() not in {r[0] for r in first}
    assert all(r[1:] == (1, 1) for r in first)


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


def test_the_number_of_processes_is_by_the_machine_unless_it_is_given(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(os, "cpu_count", lambda: 4)
    assert [worker_count(None, device) for device in ("cpu", "cuda", "cuda:1")] == [0, 4, 4]
    monkeypatch.setattr(os, "cpu_count", lambda: 64)
    assert worker_count(None, "cuda") == 8
    assert worker_count(3, "cpu") == 3 and worker_count(0, "cuda") == 0
