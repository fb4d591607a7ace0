"""The training loop: steps, schedule, early stopping, processes that share the work."""

from __future__ import annotations

import shutil
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from conftest import MOVES
from tiny import LABELS, ON_CLIP, tiny_batch, tiny_model
from tiny_runs import FAST, StopError, call, command, same, settings_of, stop_after, weights

from pevl_cli.data.batches import BatchPlan
from pevl_cli.data.clips import Clips
from pevl_cli.data.manifest import read_manifest
from pevl_cli.data.samples import view
from pevl_cli.errors import PevlError
from pevl_cli.labels import LabelSet
from pevl_cli.matching import encode_labels, normalise_prototypes, sum_video_features
from pevl_cli.metrics import Accuracy
from pevl_cli.model import checkpoint
from pevl_cli.model.features import Batch
from pevl_cli.model.pevl import PeVL
from pevl_cli.model.precision import MATRIX_LAYERS
from pevl_cli.training.progress import Event
from pevl_cli.training.settings import load_settings
from pevl_cli.training.train import train
from pevl_cli.training.trainer import Trainer


@pytest.mark.slow
@pytest.mark.parametrize("accumulate", [1, 2])
def test_continued_within_an_epoch(moves: Path, tmp_path: Path, accumulate: int) -> None:
    given = {"run__save_minutes": 0, "optim__accumulate": accumulate, "optim__batch_size": 2}
    train(settings_of(moves, tmp_path / "whole", **given))
    settings = settings_of(moves, tmp_path / "cut", **given)
    with pytest.raises(StopError):
        train(settings, stop_after(5))
    result = train(settings, resume=True)
    assert result.epochs == 4
    assert same(weights(tmp_path / "whole"), weights(tmp_path / "cut"))


@pytest.mark.slow
def test_two_processes_compute_what_one_computes(tmp_path: Path) -> None:
    """Loss and gradients of one step over the same eight clips, by gloo."""
    script = Path(__file__).with_name("two_processes.py")
    found = []
    for processes in (1, 2):
        target = tmp_path / f"{processes}.pt"
        done = call([sys.executable, str(script), str(processes), str(target)])
        assert done.returncode == 0, done.stderr
        found.append(torch.load(target, weights_only=True))
    one, two = found
    assert two["loss"] == pytest.approx(one["loss"], abs=1e-5)
    assert two["hits"] == one["hits"] == (one["hits"][0], 8)
    assert one["gradients"].keys() == two["gradients"].keys() and len(one["gradients"]) > 40
    for name, gradient in one["gradients"].items():
        torch.testing.assert_close(two["gradients"][name], gradient, atol=1e-5, rtol=0, msg=name)
    assert max(g.abs().max() for g in one["gradients"].values()) > 1e-2


@pytest.mark.slow
def test_two_processes_train_and_validate_together(moves: Path, tmp_path: Path) -> None:
    settings = settings_of(moves, tmp_path, optim__epochs=1, run__processes=2)
    done = call(command(settings, tmp_path / "run"))
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("pevl classify") == 1, "one of them tells"
    facts = checkpoint.read_facts(tmp_path / "run" / "best")
    assert facts.training["val_clips"] == 3 and facts.training["val_top1"] in {0, 0.3333, 0.6667, 1}
    # Each looked at its share of the clips.
    model, _ = checkpoint.load(tmp_path / "run" / "best")
    clips = Clips(read_manifest(moves).in_split("train"), facts.labels.names, model.config, None)
    assert model.prototypes is not None
    views = ((clips.labels[i], view(clips[i], model.config)) for i in clips.draw_examples(1, 0))
    expected = normalise_prototypes(sum_video_features(model, views, 3))
    torch.testing.assert_close(model.prototypes, expected, atol=2e-2, rtol=0)


@pytest.mark.slow
def test_two_processes_share_the_check_of_the_clips(moves: Path, tmp_path: Path) -> None:
    """Each detects in its part, once; and none is given up while another one works for long."""
    data = shutil.copytree(moves, tmp_path / "moves")
    for k in range(2):
        (data / "stay" / f"text{k}.mp4").write_text("not a video")
    script = Path(__file__).with_name("two_processes_check.py")
    done = call([sys.executable, str(script), str(data), str(tmp_path)])
    assert done.returncode == 0, done.stderr
    parts = []
    for rank in range(2):
        record = tmp_path / f"detected_by_{rank}.txt"
        parts.append([line.split()[0] for line in record.read_text().splitlines()])
        assert float((tmp_path / f"timeout_of_{rank}.txt").read_text()) >= 24 * 3600
    assert {len(part) for part in parts} <= {7, 8} and len({*parts[0], *parts[1]}) == 15
    facts = checkpoint.read_facts(tmp_path / "run" / "best").training
    assert (facts["train_clips"], facts["val_clips"]) == (12, 3)
    assert len((tmp_path / "run" / "left_out.csv").read_text().splitlines()) == 3


def test_coordinates_are_not_rounded_where_half_is_computed_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tiny_model(**ON_CLIP)
    given = {"run.precision": "bf16", "run.tracker": "none", "run.device": "cpu"}
    settings = load_settings(None, given | {"data.dataset": tmp_path}, base=model.config)
    trainer = Trainer(model, LabelSet(LABELS, LABELS), settings)
    seen = []
    encode = PeVL.encode

    def spy(self: PeVL, batch: Batch) -> object:
        seen.append(batch.joints)
        return encode(self, batch)

    monkeypatch.setattr(PeVL, "encode", spy)
    batch = tiny_batch(4)
    plan = BatchPlan([0, 1, 2, 0], 4, 1, 1, 0.0, 0)
    trainer.step(iter([batch]), plan, 1, 0)
    assert batch.joints is not None and torch.equal(seen[0], batch.joints)


def test_frozen_weights_are_held_in_half_where_half_is_computed_with(tmp_path: Path) -> None:
    losses = {}
    for precision in ("fp32", "bf16"):
        model = tiny_model(**ON_CLIP)
        given = {"run.precision": precision, "run.tracker": "none", "run.device": "cpu"}
        given |= {"data.dataset": tmp_path, "optim.batch_size": 3, "optim.lr": 0.1}
        settings = load_settings("mini", given, base=model.config)
        trainer = Trainer(model, LabelSet(LABELS, LABELS), settings)
        before = {k: p.detach().clone() for k, p in model.named_parameters()}
        plan = BatchPlan([0, 1, 2], 3, 1, 1, 0.0, 0)
        losses[precision] = trainer.step(iter([tiny_batch(3)]), plan, 1, 0).loss
        in_matrices = {
            id(p)
            for layer in model.modules()
            if isinstance(layer, MATRIX_LAYERS)
            for p in layer.parameters(recurse=False)
        }
        for name, p in model.named_parameters():
            half = precision == "bf16" and not p.requires_grad and id(p) in in_matrices
            assert p.dtype == (torch.bfloat16 if half else torch.float32), name
            assert torch.equal(p, before[name]) != p.requires_grad, name
        held = {id(p) for group in trainer.optimiser.param_groups for p in group["params"]}
        assert held == {id(p) for p in model.parameters() if p.requires_grad}
        with trainer.test_precision(), torch.inference_mode():
            assert model(tiny_batch(3), model.encode_text(LABELS)).isfinite().all()
    assert losses["bf16"] == pytest.approx(losses["fp32"], rel=0.02)
    assert losses["bf16"] != losses["fp32"]


@pytest.mark.slow
def test_loader_processes_change_nothing(moves: Path, tmp_path: Path) -> None:
    for workers in (0, 2):
        given = {"data__workers": workers, "optim__epochs": 2, "optim__min_steps": 4}
        train(settings_of(moves, tmp_path / str(workers), **given))
    assert same(weights(tmp_path / "0"), weights(tmp_path / "2"))


def test_early_stopping(moves: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The third check is the best; it stops two epochs later, and again when continued."""
    values = iter([0.1, 0.2, 0.9, 0.3, 0.9, 0.5, 0.6, 0.7])  # as good is not better
    given = {"optim__patience": 2, "optim__epochs": 90, "optim__min_steps": 90, **FAST}
    settings = settings_of(moves, tmp_path / "run", **given)

    def validate(*_: object) -> Accuracy:
        value = next(values)
        return Accuracy(value, 1.0, value, 3, {}, [])

    monkeypatch.setattr(Trainer, "validate", validate)
    result = train(settings)
    assert (result.stopped_early, result.best_epoch, result.epochs) == (True, 5, 5)
    again = train(settings, resume=True)
    assert (again.stopped_early, again.best_epoch, again.epochs) == (True, 5, 5)
    assert again.best is not None and again.best.top1 == 0.9


def test_patience_needs_something_to_judge_by(moves: Path, tmp_path: Path) -> None:
    manifest = read_manifest(moves)
    all_train = replace(
        manifest, items=tuple(replace(item, split="train") for item in manifest.items)
    )
    settings = settings_of(moves, tmp_path / "run", optim__patience=1, **FAST)
    with pytest.raises(PevlError, match="patience needs validation clips"):
        train(settings, manifest=all_train)
    result = train(settings_of(moves, tmp_path / "run", **FAST), manifest=all_train)
    assert result.best is None and result.train_clips == 15
    assert checkpoint.load(tmp_path / "run" / "best")


def test_one_phrasing_is_drawn_and_all_are_averaged(moves: Path, tmp_path: Path) -> None:
    lines = ["path,label,text"]
    for label in MOVES:
        lines += [f"{moves / label / f'{k}.mp4'},{label},{label} | so {label}" for k in range(5)]
    table = tmp_path / "moves.csv"
    table.write_text("\n".join(lines))
    seen: set[str] = set()
    encode = PeVL.encode_text

    def spy(self: PeVL, prompts: list[str]) -> object:
        if self.training:
            assert len(prompts) <= 3
            seen.update(prompts)
        return encode(self, prompts)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(PeVL, "encode_text", spy)
        train(settings_of(table, tmp_path / "run", **FAST))
    assert len(seen) == 6, "both phrasings of each"
    model, facts = checkpoint.load(tmp_path / "run" / "best")
    assert facts.labels.others == (("so run_on",), ("so run_back",), ("so stay",))
    texts = encode_labels(model, facts.label_set)
    assert texts.label is not None and texts.label.tolist() == [0, 0, 1, 1, 2, 2]


def test_the_learning_rate_rises_and_falls(moves: Path, tmp_path: Path) -> None:
    rates: list[float] = []

    def listener(event: Event) -> None:
        if event.learning_rate is not None:
            rates.append(event.learning_rate)

    given = {"optim__epochs": 10, "optim__min_steps": 40, "optim__warmup_epochs": 2, **FAST}
    train(settings_of(moves, tmp_path / "run", **given), listener)
    assert len(rates) == 40
    assert rates[:8] == sorted(rates[:8]) and rates[7] == pytest.approx(1e-3)
    assert rates[8:] == sorted(rates[8:], reverse=True) and rates[-1] == pytest.approx(0, abs=1e-9)
