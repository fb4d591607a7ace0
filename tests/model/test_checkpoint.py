from __future__ import annotations

import json
import pickle
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny import LABELS, ON_CLIP, tiny_batch, tiny_model
from torch import Tensor

from pevl_cli import weights
from pevl_cli.errors import PevlError, UsageError
from pevl_cli.labels import LabelSet
from pevl_cli.model import checkpoint
from pevl_cli.model.clip_weights import ClipWeights
from pevl_cli.model.config import ModelConfig
from pevl_cli.model.pevl import PeVL
from pevl_cli.model.weights_file import state_digest

LABEL_SET = LabelSet(("J", "T", "S"), LABELS, "{text}, a video of gymnastic action")
BASE = ("visual.", "text.")


def answer(model: PeVL) -> Tensor:
    with torch.no_grad():
        similarity: Tensor = model(tiny_batch(), model.encode_text(LABEL_SET.prompts))
        return similarity


def write(folder: Path, model: PeVL, base: checkpoint.Base | None = None) -> Path:
    facts = checkpoint.make_facts(model.config, LABEL_SET, base, {"epochs_done": 3, "note": "é"})
    checkpoint.save(folder, model.state_dict(), facts)
    return folder


def one_sentence(error: pytest.ExceptionInfo[PevlError]) -> str:
    message = str(error.value)
    assert message.endswith(".")
    assert "\n" not in message
    assert error.value.exit_code == 1
    return message


def refused(folder: Path, *parts: str) -> None:
    with pytest.raises(PevlError) as error:
        checkpoint.load(folder)
    message = one_sentence(error)
    for part in (str(folder), *parts):
        assert part in message


@pytest.fixture(scope="module")
def mini() -> PeVL:
    model = tiny_model()
    model.train()
    with torch.no_grad():
        model.encode(tiny_batch(seed=5))  # its running averages are not fresh any more
        model.logit_scale.fill_(3.3)
    return model.eval()


@pytest.fixture
def saved(tmp_path: Path, mini: PeVL) -> Path:
    return write(tmp_path / "there" / "best", mini)


@pytest.fixture
def on_clip(monkeypatch: pytest.MonkeyPatch) -> PeVL:
    """A model on a base that `load_clip` gives without any download."""
    model = tiny_model(**ON_CLIP)
    base = {k: v.clone() for k, v in model.state_dict().items() if k.startswith(BASE)}

    def load_clip(source: str, config: ModelConfig, trained: bool) -> ClipWeights:
        assert config == model.config and trained
        scale = 2.0 if source == "other" else 1.0
        state = {k: v * scale for k, v in base.items()}
        return ClipWeights(state, config, 4.6, state_digest(state))

    monkeypatch.setattr(checkpoint, "load_clip", load_clip)
    return model


def base_of(model: PeVL, source: str = "mine") -> checkpoint.Base:
    state = {k: v for k, v in model.state_dict().items() if k.startswith(BASE)}
    return checkpoint.Base(source=source, digest=state_digest(state))


# --- there and back -------------------------------------------------------------------------------


def test_a_model_comes_back(saved: Path, mini: PeVL) -> None:
    torch.manual_seed(99)
    model, facts = checkpoint.load(saved)
    assert not model.training
    assert model.config == mini.config
    assert facts.label_set == LABEL_SET
    assert facts.training == {"epochs_done": 3, "note": "é"}
    assert facts.base is None
    assert torch.allclose(answer(model), answer(mini), atol=3e-3)
    for key, value in mini.state_dict().items():
        mine = model.state_dict()[key]
        assert mine.dtype == value.dtype, key
        assert torch.allclose(mine, value, rtol=1e-3, atol=1e-6), key
        if "running" in key:
            assert value.any()
            assert torch.equal(mine, value), key


def test_a_second_writing_changes_nothing(saved: Path, tmp_path: Path) -> None:
    model, _ = checkpoint.load(saved)
    again, _ = checkpoint.load(write(tmp_path / "again", model))
    assert torch.equal(answer(again), answer(model))


def test_a_model_from_scratch_is_stored_whole_at_half_precision(saved: Path, mini: PeVL) -> None:
    state = load_file(saved / "model.safetensors")
    assert state.keys() == mini.state_dict().keys()
    assert state["visual.proj"].dtype == torch.float16
    assert sorted(p.name for p in saved.iterdir()) == ["config.json", "model.safetensors"]


@pytest.mark.parametrize(
    "changes",
    [
        {"text": False, "classes": 3},
        {"video": False},
        {"pose": False},
        {"similarities": ("concat",), "p2v_layers": (0,)},
        {"video_adapters": False, "text_adapters": False},
    ],
)
def test_other_models_come_back(tmp_path: Path, changes: dict[str, Any]) -> None:
    before = tiny_model(**changes)
    after, _ = checkpoint.load(write(tmp_path, before))
    assert after.config == before.config
    assert torch.allclose(answer(after), answer(before), atol=3e-3)


def test_a_later_checkpoint_takes_the_place_of_an_earlier_one(saved: Path, mini: PeVL) -> None:
    other = tiny_model(seed=3)
    write(saved, other)
    model, _ = checkpoint.load(saved)
    assert torch.allclose(answer(model), answer(other), atol=3e-3)
    assert not torch.allclose(answer(model), answer(mini), atol=3e-2)


# --- on a base ------------------------------------------------------------------------------------


def test_only_what_differs_from_the_base_is_stored(tmp_path: Path, on_clip: PeVL) -> None:
    write(tmp_path, on_clip, base_of(on_clip))
    state = load_file(tmp_path / "model.safetensors")
    assert state
    assert not [key for key in state if key.startswith(BASE)]
    trained = {key for key, p in on_clip.named_parameters() if p.requires_grad}
    assert state.keys() == trained
    model, facts = checkpoint.load(tmp_path)
    assert facts.base == base_of(on_clip)
    assert torch.equal(answer(model), answer(on_clip))
    assert not any(p.requires_grad for k, p in model.named_parameters() if k.startswith(BASE))


def test_another_base_is_refused(tmp_path: Path, on_clip: PeVL) -> None:
    write(tmp_path, on_clip, base_of(on_clip, "other"))
    refused(tmp_path, "other", "--clip")
    model, _ = checkpoint.load(tmp_path, clip="mine")
    assert torch.equal(answer(model), answer(on_clip))


def test_a_base_that_is_not_there_is_told_with_the_way_out(tmp_path: Path, on_clip: PeVL) -> None:
    """Without naming the checkpoint, the message was of an option that nobody had typed."""
    write(tmp_path, on_clip, base_of(on_clip, "moved.pt"))

    def load_clip(source: str, config: ModelConfig, trained: bool) -> ClipWeights:
        raise PevlError(f"{source}: there is no such file.")

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(checkpoint, "load_clip", load_clip)
        refused(tmp_path, str(tmp_path), "moved.pt: there is no such file; hint", "--clip")
        with pytest.raises(PevlError, match=r"^mine: there is no such file\.$"):
            checkpoint.load(tmp_path, clip="mine")


def test_a_model_without_text_on_a_base_comes_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """CLIP has a text tower all the same."""
    base = {k: v for k, v in tiny_model(**ON_CLIP).state_dict().items() if k.startswith(BASE)}
    digest = state_digest(base)
    monkeypatch.setattr(
        *(checkpoint, "load_clip"), lambda _, config, trained: ClipWeights(base, config, 0, digest)
    )
    before = tiny_model(**ON_CLIP, text=False, classes=3)
    before.load_state_dict({k: v for k, v in base.items() if k.startswith("visual.")}, strict=False)
    write(tmp_path, before, checkpoint.Base(source="mine", digest=digest))
    after, _ = checkpoint.load(tmp_path)
    assert torch.equal(answer(after), answer(before))


def test_a_trained_base_is_stored_whole_and_needs_no_clip(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tiny_model(**ON_CLIP | {"train_base": True})
    write(tmp_path, model, base_of(model))
    assert load_file(tmp_path / "model.safetensors").keys() == model.state_dict().keys()
    monkeypatch.setattr(checkpoint, "load_clip", lambda *_: pytest.fail("CLIP was asked for"))
    after, facts = checkpoint.load(tmp_path)
    assert facts.base == base_of(model) and not facts.base_is_separate
    assert torch.allclose(answer(after), answer(model), atol=3e-3)
    assert all(p.requires_grad for k, p in after.named_parameters() if k.startswith(BASE))


def test_clip_weights_for_a_model_without_a_base_are_a_usage_error(saved: Path) -> None:
    with pytest.raises(UsageError, match=r"--clip mine: .* leave --clip out\.") as error:
        checkpoint.load(saved, clip="mine")
    assert error.value.exit_code == 2


# --- strictness -----------------------------------------------------------------------------------


def change_weights(folder: Path, change: Callable[[dict[str, Tensor]], object]) -> None:
    file = folder / "model.safetensors"
    state = load_file(file)
    change(state)
    save_file(state, file)


def change_config(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    file = folder / "config.json"
    config = json.loads(file.read_text(encoding="utf-8"))
    change(config)
    file.write_text(json.dumps(config), encoding="utf-8")


def test_a_missing_weight_is_refused(saved: Path) -> None:
    change_weights(saved, lambda state: state.pop("pose_adapters.0.time.up.bias"))
    refused(saved, "lacks", "pose_adapters.0.time.up.bias")


def test_an_unknown_weight_is_refused(saved: Path) -> None:
    change_weights(saved, lambda state: state.update(surplus=torch.zeros(2)))
    refused(saved, "unknown", "surplus")


def test_a_misshapen_weight_is_refused(saved: Path) -> None:
    change_weights(saved, lambda state: state.update({"visual.proj": state["visual.proj"][1:]}))
    refused(saved, "shape", "visual.proj")


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda c: c["model"].update(surplus=1), "model.surplus"),
        (lambda c: c["model"].pop("width"), "model.width"),
        (lambda c: c["model"].update(width="wide"), "model.width"),
        (lambda c: c["model"].update(stem="other"), "model.stem"),
        (lambda c: c["model"].update(video=False, pose=False), "video or pose"),
        (lambda c: c.update(surplus=1), "surplus"),
        (lambda c: c.pop("labels"), "labels"),
        (lambda c: c["labels"].update(names=7), "labels.names"),
        (lambda c: c["labels"].update(surplus=7), "labels.surplus"),
        (lambda c: c.update(base={"source": "mine"}), "base.digest"),
    ],
)
def test_a_config_that_does_not_fit_is_refused(
    saved: Path, change: Callable[[dict[str, Any]], object], named: str
) -> None:
    change_config(saved, change)
    refused(saved, "config.json", named)


def test_a_newer_format_says_so(saved: Path) -> None:
    change_config(saved, lambda c: c.update(format=c["format"] + 1, news={}))
    refused(saved, "newer")


@pytest.mark.parametrize("text", ["", "{", "[]", "null", '"text"', '{"format": "one"}', "\x00"])
def test_a_config_that_is_none_is_refused(saved: Path, text: str) -> None:
    (saved / "config.json").write_text(text, encoding="utf-8")
    refused(saved, "config.json")


def test_a_config_in_another_encoding_is_refused(saved: Path) -> None:
    (saved / "config.json").write_bytes(b"\xff\xfe{\x00}\x00")
    refused(saved, "config.json")


@pytest.mark.parametrize("keep", [0, 4, 100, -1])
def test_damaged_weights_are_refused(saved: Path, keep: int) -> None:
    file = saved / "model.safetensors"
    file.write_bytes(file.read_bytes()[:keep])
    refused(saved, "model.safetensors", "damaged")


def test_a_pickle_is_refused_and_not_opened(saved: Path, tmp_path: Path) -> None:
    """Opening it would run what it holds."""
    trace = tmp_path / "ran"

    class Evil:
        def __reduce__(self) -> tuple[Callable[..., object], tuple[object, ...]]:
            return Path.touch, (trace,)

    file = saved / "model.safetensors"
    file.write_bytes(pickle.dumps(Evil()))
    refused(saved, "model.safetensors")
    torch.save({"w": Evil()}, file)
    refused(saved, "model.safetensors")
    assert not trace.exists()


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_a_missing_file_is_named(saved: Path, name: str) -> None:
    (saved / name).unlink()
    refused(saved, name)
    with pytest.raises(PevlError) as error:
        checkpoint.find(saved)
    assert name in one_sentence(error)


def test_find(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for given in (saved, str(saved), saved / "config.json", saved / "model.safetensors"):
        assert checkpoint.find(given) == saved
    monkeypatch.setattr(weights, "BUNDLED", saved.parent)
    assert weights.bundled() == ["best"]
    assert checkpoint.find("best") == saved
    with pytest.raises(PevlError) as error:
        checkpoint.find(saved.parent / "nowhere")
    assert "nowhere" in one_sentence(error) and "best" in str(error.value)
    monkeypatch.setattr(weights, "BUNDLED", saved.parent / "nowhere")
    assert weights.bundled() == []


# --- writing --------------------------------------------------------------------------------------


@contextmanager
def little_space() -> Iterator[None]:
    """Files may have 4 kB, as on a disk that is nearly full."""
    resource = pytest.importorskip("resource")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def write_and_fail(folder: Path, model: PeVL) -> None:
    with pytest.raises(PevlError) as error, little_space():
        write(folder, model)
    assert str(folder) in one_sentence(error)


def test_a_failed_writing_leaves_nothing_half_written(tmp_path: Path, mini: PeVL) -> None:
    write_and_fail(tmp_path / "new", mini)
    assert list((tmp_path / "new").iterdir()) == []


def test_a_failed_writing_leaves_the_earlier_checkpoint(saved: Path) -> None:
    before = {p.name: p.read_bytes() for p in saved.iterdir()}
    write_and_fail(saved, tiny_model(seed=3))
    assert {p.name: p.read_bytes() for p in saved.iterdir()} == before


def test_a_folder_that_cannot_be_made_is_told(tmp_path: Path, mini: PeVL) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(PevlError) as error:
        write(tmp_path / "file", mini)
    assert str(tmp_path / "file") in one_sentence(error)
