"""The library's face: scores of a clip, mirrored or not, and of labels."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from command import LABELS
from conftest import MakeVideo, picture
from tiny import ON_CLIP, tiny_config, tiny_model

from pevl_cli import recognise
from pevl_cli.data.samples import view
from pevl_cli.labels import LabelSet
from pevl_cli.model import checkpoint
from pevl_cli.model.calibration import Calibration
from pevl_cli.model.clip_weights import ClipWeights
from pevl_cli.model.sgmc import Similarities


def test_a_clip_is_mirrored_at_test_unless_a_label_names_a_side(
    tmp_path: Path, tiny_checkpoint: Path, make_video: MakeVideo
) -> None:
    folder = tmp_path / "flip_at_test"
    shutil.copytree(tiny_checkpoint, folder)
    config = json.loads((folder / "config.json").read_text())
    config["model"]["flip_at_test"] = True
    (folder / "config.json").write_text(json.dumps(config))
    recogniser = recognise.load(folder, use_pose=False, device="cpu")
    halves = [np.concatenate([picture(i) // 4, picture(i + 100)], 1) for i in range(20)]
    sample = recogniser.read(make_video(frames=halves))
    for names, ways in (("jump", "turn"), (False, True)), (("left jump", "turn"), (False,)):
        labels = LabelSet(names, names)
        assert labels.mentions_left_or_right == (len(ways) == 1)
        texts = recogniser.encode(labels)
        with torch.inference_mode():
            each = [
                recogniser.model.match(view(sample, recogniser.model.config, None, way), texts)
                for way in (False, True)
            ]
            each = [one.values for one in each]
            matches = recogniser.match([sample], labels).values
        assert (each[0] - each[1]).nan_to_num().abs().max() > 1e-4
        mean = torch.stack(each[: len(ways)]).mean(0)
        torch.testing.assert_close(matches, mean, equal_nan=True, atol=1e-6, rtol=0)


def test_prototype_similarity_is_that_of_the_given_labels(
    tiny_checkpoint: Path, tmp_path: Path
) -> None:
    model, facts = checkpoint.load(tiny_checkpoint)
    model.prototypes = torch.eye(len(LABELS), model.config.embed_dim)
    calibration = Calibration(
        temperature=1.0, platt=(5.0, 0.0), prototype=(3.0, 0.5), split="val", clips=9
    )
    stored = facts.model_copy(update={"calibration": calibration})
    checkpoint.save(tmp_path / "prototypes", model.state_dict(), stored)
    recogniser = recognise.load(tmp_path / "prototypes", use_pose=False, device="cpu")
    first, second, *_ = LABELS.names
    looks_like_the_second = 0.9 * torch.eye(model.config.embed_dim)[1:2]
    similarities = torch.tensor([[[0.3, 0.1]]])

    def score(*names: str) -> float:
        matches = Similarities(similarities, looks_like_the_second)
        scores = recogniser.scores(matches, LabelSet(names, names))
        assert scores.shape == (1, 2)
        return float(scores[0, 0])

    def expected(nearest: float) -> float:
        return float(torch.sigmoid(torch.tensor(5.0 * 0.3 + 3.0 * (nearest - 0.5))))

    assert score(first, second) == score(second, first) == pytest.approx(expected(0.9), abs=1e-3)
    assert score(first, "juggling") == pytest.approx(expected(0.0), abs=1e-3)
    assert score("juggling", second) == pytest.approx(expected(0.5), abs=1e-3), "not trained on"


def test_a_cache_that_cannot_be_written_is_no_error(
    tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A read-only cache, say of another user: the texts are encoded again each time."""
    (tmp_path / "file").touch()
    monkeypatch.setenv("PEVL_CACHE", str(tmp_path / "file"))
    recogniser = recognise.load(tiny_checkpoint, use_pose=False, device="cpu")
    assert len(recogniser.encode(LABELS).sentences) == len(LABELS)


def test_plain_clip_has_its_own_temperature_and_its_own_texts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With another activation, the same weights give other features for the same texts."""
    monkeypatch.setenv("PEVL_CACHE", str(tmp_path))
    state = {
        name: value
        for name, value in tiny_model(seed=3, **ON_CLIP).state_dict().items()
        if name.startswith(checkpoint.BASE_PREFIXES)
    }
    labels = LabelSet(("jump", "turn"), ("jump", "turn"))
    texts = []
    for quick_gelu in (False, True):
        config = tiny_config(**ON_CLIP, quick_gelu=quick_gelu)
        weights = ClipWeights(state, config, 3.25, "digest")
        monkeypatch.setattr(recognise, "load_clip", lambda source, w=weights: w)
        recogniser = recognise.load(clip="ViT-L-14.pt", device="cpu", precision="fp32")
        assert recogniser.model.logit_scale.item() == 3.25
        assert recogniser.model.config.quick_gelu is quick_gelu
        texts.append(recogniser.encode(labels).sentences)
    assert not torch.allclose(texts[0], texts[1])


@pytest.mark.parametrize(
    ("fitted_views", "views", "warned"), [(1, 3, True), (3, 1, True), (3, None, False)]
)
def test_scores_fitted_with_other_crops_are_told(
    tiny_checkpoint: Path,
    tmp_path: Path,
    make_video: MakeVideo,
    fitted_views: int,
    views: int | None,
    warned: bool,
) -> None:
    folder = tmp_path / "fitted"
    shutil.copytree(tiny_checkpoint, folder)
    config = json.loads((folder / "config.json").read_text())
    config["model"]["views_at_test"] = fitted_views
    config["calibration"] = {"temperature": 0.1, "split": "val", "clips": 3}
    (folder / "config.json").write_text(json.dumps(config))
    recogniser = recognise.load(folder, use_pose=False, device="cpu")
    answer = recogniser.classify(make_video(), ["jump", "turn"], views=views)
    assert any(f"--views {fitted_views}" in warning for warning in answer.warnings) == warned
