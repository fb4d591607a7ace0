"""Models by name, and fetching them from a server of the test's own."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from pevl_cli import weights as models
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
    told: list[tuple[int, int]] = []
    place = models.fetch(NAME, lambda done, total: told.append((done, total)))
    assert place.read_bytes() == WEIGHTS
    assert told[-1] == (len(WEIGHTS), len(WEIGHTS)) and len(told) > 1
    assert models.fetch(NAME) == place and server["asked"].count("/file") == 1
    entry = next(e for e in models.list_models() if e.known.name == NAME)
    assert (entry.state, entry.place) == ("fetched", place)
    place.write_bytes(b"damaged")
    assert models.fetch(NAME).read_bytes() == WEIGHTS
    assert find_weights(place) == place


@pytest.mark.parametrize("change", [{"digest": "sha256:" + "0" * 64}, {"size": 5}])
def test_what_is_not_what_it_should_be_is_not_kept(
    server: dict[str, Any], change: dict[str, Any]
) -> None:
    server["asset"].update(change)
    with pytest.raises(PevlError, match="is not what its publisher lists"):
        models.fetch(NAME)
    assert all(e.known.name != NAME for e in models.list_models() if e.place)


def test_without_a_network_it_is_said_what_to_do(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PEVL_CACHE", str(tmp_path))
    monkeypatch.setattr(models, "RELEASE", "http://127.0.0.1:9/nobody")
    said = CliRunner().invoke(app, ["models", "fetch", NAME])
    assert isinstance(said.exception, PevlError)
    assert "Is there a network?" in str(said.exception)
    assert not list(tmp_path.rglob("*.pt"))


def test_a_download_that_breaks_off_is_told(server: dict[str, Any]) -> None:
    server["sent"] = len(WEIGHTS) // 2
    with pytest.raises(PevlError, match="is not what its publisher lists"):
        models.fetch(NAME)
    assert all(e.known.name != NAME for e in models.list_models() if e.place)


def test_one_that_is_here_and_cannot_be_checked_is_told(
    server: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    place = models.fetch(NAME)
    monkeypatch.setattr(models, "RELEASE", "http://127.0.0.1:9/nobody")
    with pytest.raises(PevlError, match=f"lies in {place}, but could not be checked"):
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


def test_towers_come_from_where_open_clip_takes_them() -> None:
    from open_clip.pretrained import get_pretrained_cfg

    for known in models.CLIP:
        name, _, tag = known.name.partition(":")
        assert get_pretrained_cfg(name, tag)["hf_hub"].strip("/") == known.repository


def test_the_list_says_what_is_here() -> None:
    said = CliRunner().invoke(app, ["models"])
    assert said.exit_code == 0, said.output
    assert "pevl-mini" in said.output and "bundled" in said.output and "yolo11x" in said.output
    assert models.fetch("pevl-pose") == BUNDLED_WEIGHTS, "it is here already"
    with pytest.raises(UsageError, match="no model of this name can be fetched, but yolo11n"):
        models.fetch("yolo99-pose.pt")
