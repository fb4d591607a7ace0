"""Weights from files of each format; damaged ones, and ones that hold more than weights."""

from __future__ import annotations

import argparse
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor
from torchscript import save_torchscript

from pevl_cli.errors import PevlError
from pevl_cli.model.weights_file import read_weights, state_digest

STATE = {"visual.proj": torch.randn(3, 2), "visual.conv1.weight": torch.randn(2, 2).half()}


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(
        a[k].dtype == b[k].dtype and torch.equal(a[k], b[k]) for k in a
    )


@pytest.mark.parametrize("name", ["weights", "weights.bin", "weights.safetensors"])
def test_the_content_decides_the_format_not_the_name(tmp_path: Path, name: str) -> None:
    file = tmp_path / name
    torch.save(STATE, file)
    assert same(read_weights(file), STATE)
    torch.save(STATE, file, _use_new_zipfile_serialization=False)
    assert same(read_weights(file), STATE)
    file.unlink()
    save_file(STATE, file)
    assert same(read_weights(file), STATE)
    save_torchscript(STATE, file)
    assert same(read_weights(file), STATE)


def test_a_training_checkpoint_gives_its_state_dict(tmp_path: Path) -> None:
    file = tmp_path / "epoch_3.pt"
    inside = {f"module.{name}": value for name, value in STATE.items()}
    torch.save({"epoch": 3, "name": "mine", "state_dict": inside, "optimizer": {"lr": 1.0}}, file)
    assert same(read_weights(file), STATE)


def test_a_file_that_could_run_a_program_is_not_read(tmp_path: Path) -> None:
    file = tmp_path / "more.pt"
    torch.save({"state_dict": STATE, "args": argparse.Namespace(lr=1)}, file)
    with pytest.raises(PevlError, match=r"more.pt: contains argparse.Namespace, not only weights"):
        read_weights(file)


@pytest.mark.parametrize("content", ["empty", "text", "cut", "cut safetensors", "cut archive"])
def test_a_damaged_file_is_told_in_one_sentence(tmp_path: Path, content: str) -> None:
    file = tmp_path / "weights.pt"
    if content == "cut":
        torch.save(STATE, file)
    elif content == "cut safetensors":
        save_file(STATE, file)
    elif content == "cut archive":
        save_torchscript(STATE, file)
    else:
        file.write_bytes(b"hello" * 99 if content == "text" else b"")
    file.write_bytes(file.read_bytes()[: file.stat().st_size * 2 // 3])
    with pytest.raises(PevlError, match=r"weights.pt: not a weights file, or damaged") as error:
        read_weights(file)
    assert "\n" not in str(error.value) and str(error.value).endswith(".")


@pytest.mark.parametrize(
    ("content", "message"),
    [({}, "contains no weights"), ([1], "no weights"), ({"a": 1}, "entry 'a' is not a tensor")],
)
def test_a_file_of_something_else_is_refused(tmp_path: Path, content: object, message: str) -> None:
    torch.save(content, tmp_path / "other.pt")
    with pytest.raises(PevlError, match=message):
        read_weights(tmp_path / "other.pt")
    with pytest.raises(PevlError, match="cannot be read"):
        read_weights(tmp_path)


@pytest.mark.parametrize("value", [torch.zeros(2, 2).to_sparse(), torch.zeros(2, 2, device="meta")])
def test_an_entry_that_is_no_plain_tensor_is_refused(tmp_path: Path, value: Tensor) -> None:
    torch.save({"a": torch.zeros(1), "b": value}, tmp_path / "other.pt")
    with pytest.raises(PevlError, match="entry 'b' is sparse, quantised, or has no data"):
        read_weights(tmp_path / "other.pt")


def test_the_digest_is_of_names_and_values(tmp_path: Path) -> None:
    # Computed by the code before this file existed: digests in checkpoints stay valid.
    state = {"b": torch.arange(6.0).reshape(2, 3), "a": torch.tensor([0.5]).half()}
    assert state_digest(state) == "ce98b18b57efff54e2bd64e91e935942"
    assert state_digest({**state, "a": torch.tensor([0.25])}) != state_digest(state)
    assert state_digest({"b": state["b"], "c": state["a"]}) != state_digest(state)
