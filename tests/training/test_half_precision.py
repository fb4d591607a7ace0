"""A training step in bfloat16 beside the same step in float32."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import LABELS, ON_CLIP, tiny_batch, tiny_model
from torch import Tensor

from pevl_cli.data.batches import BatchPlan
from pevl_cli.labels import LabelSet
from pevl_cli.model.adapters import Block
from pevl_cli.model.features import Batch
from pevl_cli.model.pevl import PeVL
from pevl_cli.training.settings import load_settings
from pevl_cli.training.trainer import Trainer


def trainer_of(tmp_path: Path, precision: str) -> Trainer:
    """A tiny model on a frozen tower whose adapters have learnt a little."""
    model = tiny_model(**ON_CLIP)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if ".up." in name or ".out." in name:
                parameter.mul_(0.1)
    given: dict[str, Any] = {
        "run.precision": precision,
        "run.tracker": "none",
        "run.device": "cpu",
        "data.dataset": tmp_path,
        "optim.batch_size": 3,
        "optim.clip_norm": 1e9,
    }
    settings = load_settings("mini", given, base=model.config)
    return Trainer(model, LabelSet(LABELS, LABELS), settings)


def step(trainer: Trainer) -> float:
    plan = BatchPlan([0, 1, 2], 3, 1, 1, 0.0, 0)
    return trainer.step(iter([tiny_batch(3)]), plan, 1, 0).loss


def test_a_step_in_bfloat16_is_the_step_in_float32(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    losses, gradients = {}, {}
    for precision in ("fp32", "bf16"):
        trainer = trainer_of(tmp_path, precision)
        model, kept = trainer.model, {}

        def keep(*_: object, model: PeVL = model, kept: dict[str, Tensor] = kept) -> None:
            kept.update({k: p.grad for k, p in model.named_parameters() if p.grad is not None})

        monkeypatch.setattr(Trainer, "_update_weights", keep)
        losses[precision] = step(trainer)
        gradients[precision] = kept
    assert losses["bf16"] == pytest.approx(losses["fp32"], rel=2e-3)
    assert gradients["bf16"].keys() == gradients["fp32"].keys()
    for name, exact in gradients["fp32"].items():
        rounded = gradients["bf16"][name]
        assert rounded.dtype == torch.float32
        if name.endswith("key.bias"):  # exactly 0 but for rounding
            continue
        error = (rounded - exact).norm() / exact.norm()
        assert error < 0.1, (name, float(error))


def test_stream_and_similarities_are_float32(tmp_path: Path) -> None:
    trainer = trainer_of(tmp_path, "bf16")
    streams: list[torch.dtype] = []
    for module in trainer.model.modules():
        if isinstance(module, Block):
            module.register_forward_hook(lambda _, __, output: streams.append(output.dtype))
    found: list[Tensor] = []
    similarities = trainer.model.similarities

    def spy(*arguments: Any) -> Any:
        values = similarities(*arguments)
        found.extend(values.values())
        return values

    trainer.model.similarities = spy  # type: ignore[method-assign]
    step(trainer)
    assert set(streams) == {torch.float32}
    assert len(found) == 3
    for value in found:
        assert value.dtype == torch.float32
        assert not torch.equal(value, value.bfloat16().float()), "rounded to bfloat16"


def test_a_small_update_of_an_adapter_is_not_rounded_away() -> None:
    """A thousandth of the stream arrives in it; a bfloat16 stream would swallow it."""
    model, frames = tiny_model(stirred=False, **ON_CLIP).cast(torch.bfloat16), tiny_batch(2).frames
    up = model.video_adapters[0]["mlp"].up  # type: ignore[index]
    after: list[Tensor] = []
    block = model.visual.transformer.blocks[0]
    block.register_forward_hook(lambda _, __, output: after.append(output))
    with torch.no_grad():
        model.encode(Batch(frames, None))
        up.bias.fill_(2e-3)
        model.encode(Batch(frames, None))
    torch.testing.assert_close(
        after[1] - after[0], torch.full_like(after[0], 1e-3), rtol=1e-2, atol=1e-6
    )
