"""Fixtures for all tests: an own cache, few threads, and videos that say which frame is which."""

from __future__ import annotations

import os
import struct
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from unittest import mock

import av
import numpy as np
import pytest
import torch
from command import LABELS, SIZES, Done, Pevl
from tiny import tiny_model

from pevl_cli.cli import app as cli
from pevl_cli.cli import console
from pevl_cli.model import checkpoint
from pevl_cli.pose.detector import PoseDetector

REPOSITORY = Path(__file__).parents[1]
SHARED = REPOSITORY.parent / "shared"  # real clips and weights, not part of the repository
CELL_PX, COLUMNS, ROWS = 8, 20, 16  # a film's square stands in one of these cells
WIDTH, HEIGHT = COLUMNS * CELL_PX, ROWS * CELL_PX
CODECS = {
    **dict.fromkeys((".mp4", ".mov", ".mkv", ".ts", ".m2ts", ".flv"), "libx264"),
    ".avi": "mpeg4",
    ".gif": "gif",
    ".webm": "libvpx-vp9",
    ".mpg": "mpeg2video",
    ".wmv": "wmv2",
}
MOVES = {"run_on": 1, "run_back": -1, "stay": 0}  # labels of the fixture `moves`
MakeVideo = Callable[..., Path]


@pytest.fixture(scope="session", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A cache of this run's own: nothing is read from, or left in, the user's."""
    folder = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PEVL_CACHE", str(folder))
        yield folder


@pytest.fixture(scope="session", autouse=True)
def _few_threads() -> None:
    torch.set_num_threads(1)


def need_shared(*parts: str) -> Path:
    """A file or folder below ../shared; the test is skipped, with the reason, without it."""
    path = SHARED.joinpath(*parts)
    if not path.exists():
        pytest.skip(f"needs ../shared/{'/'.join(parts)}, which is not here")
    return path


@pytest.fixture(scope="session")
def shared() -> Path:
    """Real clips, kept beside the repository and not part of it."""
    return need_shared("data").parent


@pytest.fixture(scope="session")
def pose_weights() -> Path:
    """YOLO11n-pose."""
    return need_shared("weights", "yolo11n-pose.pt")


@pytest.fixture
def pevl(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Pevl:
    """Run the command in this process: pevl("classify", path) gives code, stdout and stderr."""

    def run(*arguments: object) -> Done:
        monkeypatch.setattr(sys, "argv", ["pevl", *map(str, arguments)])
        console.show_tracebacks(False)
        capfd.readouterr()
        with mock.patch.dict(os.environ):  # what the command sets for its process
            try:
                cli.main()
                code: object = 0
            except SystemExit as end:
                code = end.code or 0
        out, err = capfd.readouterr()
        assert isinstance(code, int)
        return Done(code, out, err)

    return run


@pytest.fixture(scope="session")
def tiny_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a tiny model with random weights that knows `command.LABELS`."""
    folder = tmp_path_factory.mktemp("checkpoints") / "tiny"
    model = tiny_model(seed=3, **SIZES)
    state = model.state_dict()
    checkpoint.save(folder, state, checkpoint.make_facts(model.config, LABELS, None, {}))
    return folder


@pytest.fixture
def weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A detector that sees one person, whose box is 60 x 100 px, walk to the right."""
    path = tmp_path / "weights.pt"
    path.write_bytes(b"weights")

    def detect(
        self: PoseDetector, frames: Iterable[tuple[int, np.ndarray]], image_size_px: int
    ) -> Iterator[tuple[int, np.ndarray, np.ndarray, np.ndarray]]:
        for i, frame in frames:
            left = 10 + i
            box = np.array([[left, 14, left + 60, 114, 0.9]])
            joints = np.full((1, 17, 3), 0.8)
            joints[0, :, 0], joints[0, :, 1] = left + 30, np.linspace(20, 110, 17)
            yield i, frame, box, joints

    monkeypatch.setattr(PoseDetector, "detect", detect)
    return path


@pytest.fixture
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache for this test alone."""
    monkeypatch.setenv("PEVL_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def make_video(tmp_path: Path) -> MakeVideo:
    """`write_video` into this test's folder: make_video("a.mp4", frames=60) gives the path."""

    def make(name: str = "film.mp4", frames: int = 60, **settings: object) -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        return write_video(path, frames, **settings)  # type: ignore[arg-type]

    return make


@pytest.fixture(scope="session")
def moves(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data set of three classes of five clips: a square that runs on, back, or stays."""
    root = tmp_path_factory.mktemp("data") / "moves"
    for label, way in MOVES.items():
        (root / label).mkdir(parents=True)
        for k in range(5):
            frames = [picture(100 + way * 3 * i + 7 * k) for i in range(16)]
            write_video(root / label / f"{k}.mp4", frames)
    return root


def picture(number: int, size: int = 1) -> np.ndarray:
    """A grey picture with a red square whose place tells its number, up to 319."""
    frame = np.full((HEIGHT, WIDTH, 3), 110, np.uint8)
    row, column = divmod(number % (ROWS * COLUMNS), COLUMNS)
    frame[row * CELL_PX :, column * CELL_PX :][:CELL_PX, :CELL_PX] = (230, 20, 20)
    return frame.repeat(size, 0).repeat(size, 1)


def number_of(frame: np.ndarray) -> int:
    """The number of a decoded `picture`."""
    red = frame[..., 0].astype(float) - frame[..., 1:].mean(-1)
    size = frame.shape[1] // COLUMNS
    cells = red[: ROWS * size, : COLUMNS * size].reshape(ROWS, size, COLUMNS, size).mean((1, 3))
    assert cells.max() > 60, "there is no red square in this frame"
    return int(cells.argmax())


def write_video(
    path: Path,
    frames: int | Sequence[np.ndarray],
    fps: int = 25,
    pts_ms: Sequence[int] | None = None,
    codec: str | None = None,
    gop: int = 12,
    b_frames: int = 0,
    rotation: int = 0,
    size: int = 1,
    options: dict[str, str] | None = None,
) -> Path:
    """Write numbered pictures (or these RGB frames) at ``fps``, or at ``pts_ms`` milliseconds.

    ``rotation`` (mp4, mov): the counter-clockwise turn, in degrees, that players shall apply.
    """
    if isinstance(frames, int):
        frames = [picture(i, size) for i in range(frames)]
    codec = codec or CODECS[path.suffix]
    given = {"bf": str(b_frames)} if b_frames else {}
    if codec == "libx264":
        given |= {"preset": "ultrafast", "sc_threshold": "0", "b_strategy": "0"}
        given |= {"x264-params": "keyint_min=1:b-adapt=0"}
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=1000 if pts_ms is not None else fps)
        stream.height, stream.width = frames[0].shape[:2]
        stream.pix_fmt = {"gif": "rgb8", "mjpeg": "yuvj420p"}.get(codec, "yuv420p")
        stream.options = given | (options or {})
        stream.codec_context.gop_size = gop
        if codec != "gif":
            stream.bit_rate = 1_500_000
        for i, rgb in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(rgb), format="rgb24")
            frame.pts = i if pts_ms is None else pts_ms[i]
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    if rotation:
        _write_rotation(path, rotation)
    return path


def _write_rotation(path: Path, degrees: int) -> None:
    """Put a display matrix into an mp4's track header: what a phone that is held upright does."""
    a, b = {90: (0, -1), 180: (-1, 0), 270: (0, 1)}[degrees]
    data = bytearray(path.read_bytes())
    at = data.index(b"tkhd") + 4 + 40
    one = 1 << 16
    matrix = (a * one, b * one, 0, -b * one, a * one, 0, 0, 0, 1 << 30)
    data[at : at + 36] = struct.pack(">9i", *matrix)
    path.write_bytes(data)


def child_environment(**changes: str) -> dict[str, str]:
    """Environment for a `pevl` in a process of its own."""
    return {**os.environ, "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1", **changes}
