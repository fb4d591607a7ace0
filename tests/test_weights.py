"""Models by name, and fetching them from a server of the test's own."""

from __future__ import annotations

import hashlib
import json
import logging
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from pevl_cli import weights as models
from pevl_cli.cache import cache_folder
from pevl_cli.cli.app import app
from pevl_cli.errors import PevlError, UsageError
from pevl_cli.weights import BUNDLED_WEIGHTS, find_weights

WEIGHTS = b"weights" * 100_000
NAME = "yolo11s-pose.pt"


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[dict[str, Any]]:
    """Answers as GitHub does; what it lists of the one asset can be changed."""
    asset = {
        "name": NAME,
        "size": len(WEIGHTS),
        "digest": "sha256:" + hashlib.sha256(WEIGHTS).hexdigest(),
    }
    state: dict[str, Any] = {"asset": asset, "asked": []}

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            state["asked"].append(self.path)
            body = WEIGHTS if self.path == "/file" else json.dumps({"assets": [asset]}).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body[: state.get("sent")] if self.path == "/file" else body)

        def log_message(self, *_: object) -> None:
            return

    served = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=served.serve_forever, daemon=True).start()
    address = f"http://127.0.0.1:{served.server_port}"
    asset["browser_download_url"] = f"{address}/file"
    monkeypatch.setattr(models, "RELEASE", f"{address}/release")
    monkeypatch.setenv("PEVL_CACHE", str(tmp_path / "cache"))
    yield state
    served.shutdown()


def test_weights_are_fetched_once_and_found(server: dict[str, Any]) -> None:
    progress: list[tuple[int, int]] = []
    place = models.fetch(NAME, lambda done, total: progress.append((done, total)))
    assert place.read_bytes() == WEIGHTS
    assert progress[-1] == (len(WEIGHTS), len(WEIGHTS)) and len(progress) > 1
    assert models.fetch(NAME) == place and server["asked"].count("/file") == 1
    entry = next(e for e in models.list_models() if e.known.name == NAME)
    assert (entry.state, entry.path) == ("downloaded", place)
    place.write_bytes(b"damaged")
    assert models.fetch(NAME).read_bytes() == WEIGHTS
    assert find_weights(place) == place


@pytest.mark.parametrize("change", [{"digest": "sha256:" + "0" * 64}, {"size": 5}])
def test_what_is_not_what_it_should_be_is_not_kept(
    server: dict[str, Any], change: dict[str, Any]
) -> None:
    server["asset"].update(change)
    with pytest.raises(PevlError, match="is not the one its publisher lists"):
        models.fetch(NAME)
    assert all(e.known.name != NAME for e in models.list_models() if e.path)


def test_without_a_network_it_is_said_what_to_do(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PEVL_CACHE", str(tmp_path))
    monkeypatch.setattr(models, "RELEASE", "http://127.0.0.1:9/nobody")
    result = CliRunner().invoke(app, ["models", "fetch", NAME])
    assert isinstance(result.exception, PevlError)
    assert "Is there a network?" in str(result.exception)
    assert not list(tmp_path.rglob("*.pt"))


def test_a_download_that_breaks_off_is_told(server: dict[str, Any]) -> None:
    server["sent"] = len(WEIGHTS) // 2
    with pytest.raises(PevlError, match="is not the one its publisher lists"):
        models.fetch(NAME)
    assert all(e.known.name != NAME for e in models.list_models() if e.path)


def test_one_that_is_here_and_cannot_be_checked_is_told(
    server: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    models.fetch(NAME)
    monkeypatch.setattr(models, "RELEASE", "http://127.0.0.1:9/nobody")
    with pytest.raises(PevlError, match=r"was downloaded before .*, but could not be checked"):
        models.fetch(NAME)


def test_a_tower_is_checked_by_the_hash_that_the_hub_keeps_it_under(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    blob = tmp_path / hashlib.sha256(b"tower").hexdigest()
    blob.write_bytes(b"tower")
    link = tmp_path / "open_clip_model.safetensors"
    link.symlink_to(blob)
    monkeypatch.setattr("huggingface_hub.hf_hub_download", lambda *_: str(link))
    assert models.fetch("ViT-B-16-quickgelu:openai") == link
    blob.write_bytes(b"tower, damaged")
    with pytest.raises(PevlError, match="is damaged"):
        models.fetch("ViT-B-16-quickgelu:openai")


def test_a_tower_brings_the_vocabulary_that_its_texts_need(
    monkeypatch: pytest.MonkeyPatch, weights: Path
) -> None:
    fetched: list[tuple[str, ...]] = []

    def download(*names: str) -> str:
        fetched.append(names)
        return str(weights)

    monkeypatch.setattr("huggingface_hub.hf_hub_download", download)
    for name in ("PE-Core-B-16:meta", "ViT-B-16-SigLIP2:webli"):
        models.fetch(name)
    assert [file for _, file in fetched] == [models.CLIP_FILES[0]] * 2 + ["tokenizer.json"]


def test_towers_come_from_where_open_clip_takes_them() -> None:
    from open_clip.pretrained import get_pretrained_cfg

    for known in models.CLIP:
        name, _, tag = known.name.partition(":")
        assert get_pretrained_cfg(name, tag)["hf_hub"].strip("/") == known.repository


def test_the_list_says_what_is_here() -> None:
    result = CliRunner().invoke(app, ["models"])
    assert result.exit_code == 0, result.output
    assert (
        "pevl-mini" in result.output and "bundled" in result.output and "yolo11x" in result.output
    )
    assert models.fetch("pevl-pose") == BUNDLED_WEIGHTS, "it is here already"
    with pytest.raises(
        UsageError, match="no model has this name; these can be downloaded: yolo11n"
    ):
        models.fetch("yolo99-pose.pt")


# -- which weights are used ------------------------------------------------------------------------


@pytest.fixture
def weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Some file; nothing is chosen, fetched, or in the working folder."""
    path = tmp_path / "weights.pt"
    path.write_bytes(b"weights")
    monkeypatch.delenv(models.WEIGHTS_VARIABLE, raising=False)
    monkeypatch.setenv("PEVL_CACHE", str(tmp_path / "cache"))
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    return path


def fetched(name: str) -> Path:
    file = cache_folder("weights") / name
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(b"fetched")
    return file


def test_weights_that_were_named_must_exist(
    weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    missing = tmp_path / "missing.pt"
    with pytest.raises(PevlError, match="--pose-weights") as caught:
        find_weights(missing)
    assert str(missing) in str(caught.value)
    monkeypatch.setenv(models.WEIGHTS_VARIABLE, str(missing))
    with pytest.raises(PevlError, match=models.WEIGHTS_VARIABLE):
        find_weights()
    assert find_weights(weights) == weights, "the option comes before the environment"
    monkeypatch.setenv(models.WEIGHTS_VARIABLE, str(weights))
    assert find_weights() == weights
    with pytest.raises(PevlError, match="no such pose weights file"):
        find_weights(tmp_path / "nowhere" / models.RECOMMENDED_WEIGHTS)


def test_the_bundled_network_is_used_until_another_is_fetched(weights: Path) -> None:
    assert find_weights() == find_weights("pevl-pose") == BUNDLED_WEIGHTS
    note = models.bundled_weights_note()
    assert note is not None and f"pevl models fetch {models.RECOMMENDED_WEIGHTS}" in note
    assert models.bundled_weights_note("pevl-pose") is None, "who chooses it knows"
    with pytest.raises(PevlError, match="no such pose weights file"):
        find_weights(models.RECOMMENDED_WEIGHTS)
    file = fetched(models.RECOMMENDED_WEIGHTS)
    assert find_weights() == find_weights(models.RECOMMENDED_WEIGHTS) == file
    assert models.bundled_weights_note() is None


def test_nothing_in_the_working_folder_is_used_unless_it_is_named(
    weights: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = models.RECOMMENDED_WEIGHTS
    Path(name).write_bytes(b"somebody's file")
    Path("pevl-pose").write_bytes(b"somebody's file")
    assert find_weights() == find_weights("pevl-pose") == BUNDLED_WEIGHTS
    assert find_weights(name) == find_weights(f"./{name}") == Path(name)
    monkeypatch.setenv(models.WEIGHTS_VARIABLE, name)
    assert find_weights() == Path(name)
    monkeypatch.delenv(models.WEIGHTS_VARIABLE)
    file = fetched(name)
    assert find_weights() == find_weights(name) == file, "a known name means the fetched model"
    assert find_weights(Path.cwd() / name) == Path.cwd() / name, "a path means its file"


def test_fetching_leaves_logging_alone(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, weights: Path
) -> None:
    levels: list[int] = []

    def download(*_: object) -> str:
        levels.append(logging.root.manager.disable)
        return str(weights)

    monkeypatch.setattr("huggingface_hub.hf_hub_download", download)
    models.fetch("ViT-B-16-quickgelu:openai")
    assert levels == [0]
