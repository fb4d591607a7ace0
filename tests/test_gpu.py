"""What only a CUDA GPU can show; `benchmarks/gpu.sh` runs these tests first."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from command import Pevl
from tiny import LABELS, ON_CLIP, answer, tiny_batch, tiny_model
from tiny_runs import StopError, settings_of, stop_after, weights

from pevl_cli.data.batches import BatchPlan
from pevl_cli.labels import LabelSet
from pevl_cli.media.video import sample_clip
from pevl_cli.model.pevl import PeVL
from pevl_cli.output.demo_clip import draw_clip
from pevl_cli.pose.detector import PoseDetector
from pevl_cli.training.settings import load_settings
from pevl_cli.training.train import train
from pevl_cli.training.trainer import Trainer

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU"),
]


@pytest.fixture(autouse=True)
def _exact_products(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.cuda.matmul, "allow_tf32", False)
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)


def on_gpu(model: PeVL) -> torch.Tensor:
    batch = tiny_batch(4)
    with torch.no_grad():
        return model.cuda()(batch.to("cuda"), model.encode_text(LABELS)).cpu()


@pytest.mark.parametrize("changes", [{}, ON_CLIP])
def test_a_gpu_says_what_the_cpu_says(changes: dict[str, object]) -> None:
    expected = answer(tiny_model(**changes), tiny_batch(4))
    torch.testing.assert_close(on_gpu(tiny_model(**changes)), expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_on_a_gpu(dtype: torch.dtype) -> None:
    expected = answer(tiny_model(**ON_CLIP), tiny_batch(4))
    half = on_gpu(tiny_model(**ON_CLIP).cast(dtype))
    assert half.dtype == torch.float32
    torch.testing.assert_close(half, expected, atol=0.06, rtol=0)


def test_a_training_step_on_a_gpu(tmp_path: Path) -> None:
    losses = {}
    for device, precision in (("cpu", "fp32"), ("cuda", "fp32"), ("cuda", "bf16")):
        model = tiny_model(**ON_CLIP)
        given = {"run.device": device, "run.precision": precision, "run.tracker": "none"}
        given |= {"data.dataset": tmp_path, "optim.batch_size": 3}
        settings = load_settings("mini", given, base=model.config)
        trainer = Trainer(model, LabelSet(LABELS, LABELS), settings)
        plan = BatchPlan([0, 1, 2], 3, 1, 1, 0.0, 0)
        losses[device, precision] = trainer.step(iter([tiny_batch(3)]), plan, 1, 0).loss
    exact = losses["cpu", "fp32"]
    assert losses["cuda", "fp32"] == pytest.approx(exact, rel=1e-3)
    assert losses["cuda", "bf16"] == pytest.approx(exact, rel=0.02)


def test_a_run_stopped_after_two_steps_is_continued_in_bf16(moves: Path, tmp_path: Path) -> None:
    given = {
        "run__device": "cuda",
        "run__precision": "bf16",
        "run__save_minutes": 0.0,
        "optim__epochs": 1,
        "optim__min_steps": 4,
    }
    train(settings_of(moves, tmp_path / "whole", **given))
    settings = settings_of(moves, tmp_path / "stopped", **given)
    with pytest.raises(StopError):
        train(settings, stop_after(2))
    result = train(settings, resume=True)
    assert result.epochs == 1
    whole, continued = weights(tmp_path / "whole"), weights(tmp_path / "stopped")
    assert whole.keys() == continued.keys()
    for name, expected in whole.items():  # sums on a GPU have no fixed order
        torch.testing.assert_close(
            continued[name].float(), expected.float(), atol=5e-3, rtol=0.05, msg=name
        )


def test_the_detector_finds_the_same_joints(tmp_path: Path) -> None:
    clip = sample_clip(draw_clip(tmp_path / "demo.mp4"))
    cpu, gpu = (
        PoseDetector(None, device=device).actor(clip, use_cache=False) for device in ("cpu", "cuda")
    )
    assert np.array_equal(cpu.seen, gpu.seen)
    both = (cpu.joints[..., 2] > 0.5) & (gpu.joints[..., 2] > 0.5)
    distance_px = np.linalg.norm(cpu.joints[..., :2] - gpu.joints[..., :2], axis=-1)
    assert both.any() and float(np.median(distance_px[both])) < 1.0


def test_commands_use_the_gpu(pevl: Pevl, tmp_path: Path) -> None:
    film = draw_clip(tmp_path / "demo.mp4")
    answers = [
        pevl("classify", film, "--device", device, "--format", "json").records[0]
        for device in ("cpu", "cuda")
    ]
    first, second = (a["predictions"][0] for a in answers)
    assert first["label"] == second["label"]
    assert first["score"] == pytest.approx(second["score"], abs=0.02)
    folder = tmp_path / "films"
    for label in ("one", "two"):
        (folder / label).mkdir(parents=True)
        for number in range(2):
            (folder / label / f"{number}.mp4").write_bytes(film.read_bytes())
    store = tmp_path / "store.npz"
    done = pevl("pose", folder, "--store", store, "--device", "cuda", "--workers", 2)
    assert done.code == 0 and store.is_file()
