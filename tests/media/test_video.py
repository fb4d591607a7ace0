"""Which frames are read, and that they are the right ones, in every container that users have."""

from __future__ import annotations

import math
import signal
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from pathlib import Path

import av
import cv2
import numpy as np
import psutil
import pytest
from conftest import CELL_PX, HEIGHT, WIDTH, MakeVideo, number_of, picture, write_video

from pevl_cli.errors import PevlError
from pevl_cli.media.video import (
    MAX_SIDE_PX,
    Clip,
    find_videos,
    frames_in_span,
    iter_frames,
    read_timeline,
    sample_clip,
)

CLIPS = (
    *("again.mkv", "basketball_layup.mp4", "clean_and_jerk.mp4", "corrupted.mp4", "eat.mkv"),
    *("exercise_mixed.avi", "gym_plate_front_raise.mov", "h265_10bits.mp4", "jab_cross.mp4"),
    *("nobody_cars.mp4", "one_person_1080p.avi", "phone_rotated_hevc.mov", "portrait_squat.mov"),
    *("rotated_90_3frames.mov", "sample_bicep_curl.mp4", "several_people_139s.mp4", "thanks.mkv"),
    *("two_people_1080p.avi", "v_BaseballPitch_g01_c01.avi", "walking_160x120.avi"),
)
# Container, encoder (None: the usual one), B-frames in a row, frames between key frames.
FORMATS = [
    (".mp4", None, 0, 12),
    (".mp4", None, 3, 50),
    (".mp4", "libx265", 3, 24),
    (".mp4", "libsvtav1", 0, 24),
    (".mov", None, 2, 30),
    (".mkv", None, 3, 60),
    (".mkv", "mjpeg", 0, 1),
    (".webm", "libvpx", 0, 24),
    (".webm", "libvpx-vp9", 0, 24),
    (".avi", "mpeg4", 0, 12),
    (".avi", "mpeg4", 2, 12),
    (".avi", "libx264", 3, 12),
    (".avi", "mjpeg", 0, 1),
    (".gif", None, 0, 12),
    (".flv", None, 2, 25),
    (".ts", None, 0, 12),
    (".ts", None, 3, 12),
    (".mpg", None, 0, 12),
    (".wmv", None, 0, 12),
]


@pytest.fixture
def deadline() -> Iterator[None]:
    """Fail after half a minute, so that a seek that never arrives does not hang the tests."""
    if not hasattr(signal, "SIGALRM"):
        yield
        return

    def late(*_: object) -> None:
        raise TimeoutError("no end after 30 s")

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(30)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


def numbers(clip: Clip) -> list[int]:
    """Which picture each sampled time shows."""
    each = [number_of(frame) for frame in clip.frames]
    return [each[i] for i in clip.frame_of]


def read(path: Path, indices: Sequence[int]) -> list[tuple[int, int]]:
    return [(i, number_of(frame)) for i, frame in iter_frames(read_timeline(path), indices)]


def needs_encoder(name: str | None) -> None:
    try:
        av.codec.Codec(name or "libx264", "w")
    except (av.FFmpegError, ValueError):
        pytest.skip(f"this PyAV has no encoder {name or 'libx264'}")


def remux(source: Path, target: Path, shift_s: float = 0.0, movflags: str = "") -> Path:
    """Copy the packets into another file, earlier or later, without encoding them again."""
    options = {"movflags": movflags} if movflags else {}
    with av.open(str(source)) as old, av.open(str(target), "w", options=options) as new:
        stream = new.add_stream_from_template(old.streams.video[0])
        for packet in old.demux(video=0):
            if packet.dts is None or packet.pts is None:
                continue
            shift = round(shift_s / float(packet.time_base))
            packet.pts, packet.dts, packet.stream = packet.pts + shift, packet.dts + shift, stream
            new.mux(packet)
    return target


# -- which frames ----------------------------------------------------------------------------


def test_the_worked_example(make_video: MakeVideo) -> None:
    """4 frames of a 2 s clip are those on screen at 0.25, 0.75, 1.25 and 1.75 s."""
    clip = sample_clip(make_video(frames=50, fps=25), 4)
    # A frame is on screen for 0.04 s: 0.25 s is inside frame 6 (0.24 to 0.28 s), and so on.
    assert numbers(clip) == [6, 18, 31, 43]
    assert clip.indices.tolist() == [6, 18, 31, 43]
    np.testing.assert_allclose(clip.times_s, [0.24, 0.72, 1.24, 1.72], atol=1e-6)
    assert (clip.start_s, clip.end_s) == (0.0, pytest.approx(2.0))
    assert clip.warnings == ()


def test_48_of_300(make_video: MakeVideo) -> None:
    clip = sample_clip(make_video(frames=300))
    # The middle of span k of 48 is at frame 300 (k + 1/2) / 48 = 6.25 k + 3.125.
    assert numbers(clip) == [int(6.25 * k + 3.125) for k in range(48)]
    assert len(clip.frames) == 48


@pytest.mark.parametrize("suffix", [".mp4", ".mkv", ".gif", ".avi"])
def test_fewer_frames_than_asked_for_repeat(make_video: MakeVideo, suffix: str) -> None:
    clip = sample_clip(make_video(f"short{suffix}", frames=10), 48)
    assert numbers(clip) == [int((k + 0.5) * 10 / 48) for k in range(48)]
    assert len(clip.frames) == 10, "a frame is held once however often it is shown"


@pytest.mark.parametrize("suffix", [".mp4", ".mkv", ".gif", ".avi", ".webm"])
def test_a_single_frame(make_video: MakeVideo, suffix: str) -> None:
    clip = sample_clip(make_video(f"one{suffix}", frames=[picture(7)]), 48)
    assert numbers(clip) == [7] * 48
    assert clip.end_s > 0


@pytest.mark.parametrize("suffix", [".mp4", ".mkv"])
def test_times_rule_where_the_rate_varies(make_video: MakeVideo, suffix: str) -> None:
    film = make_video(f"vfr{suffix}", frames=7, pts_ms=[0, 40, 80, 1000, 1040, 2000, 2500])
    clip = sample_clip(film, 6, end_s=2.4)
    # Wanted: 0.2, 0.6, 1.0, 1.4, 1.8 and 2.2 s. A frame shows until the next one's time.
    assert numbers(clip) == [2, 2, 3, 4, 4, 5]
    np.testing.assert_allclose(clip.times_s, [0.08, 1.0, 1.04, 2.0], atol=1e-6)


def test_a_part_of_the_video(make_video: MakeVideo) -> None:
    clip = sample_clip(make_video(frames=100), 5, start_s=1.0, end_s=2.0)
    # 1.1, 1.3, 1.5, 1.7, 1.9 s at 25 a second.
    assert numbers(clip) == [27, 32, 37, 42, 47]
    assert (clip.start_s, clip.end_s) == (1.0, 2.0)


def test_an_end_beyond_the_video_is_its_end(make_video: MakeVideo) -> None:
    clip = sample_clip(make_video(frames=50), 4, start_s=1.0, end_s=99.0)
    assert clip.end_s == pytest.approx(2.0)
    assert numbers(clip) == [28, 34, 40, 46]


def test_frames_on_screen_in_a_span(make_video: MakeVideo) -> None:
    timeline = read_timeline(make_video(frames=10, fps=25))
    assert frames_in_span(timeline).tolist() == list(range(10))
    # Frame 1 shows from 0.04 to 0.08 s and frame 2 from 0.08 s: both are seen before 0.09 s.
    assert frames_in_span(timeline, 0.05, 0.09).tolist() == [1, 2]


def test_a_large_picture_is_made_smaller(make_video: MakeVideo) -> None:
    clip = sample_clip(make_video(frames=2, size=10), 2)
    assert (clip.width, clip.height) == (WIDTH * 10, HEIGHT * 10)
    assert clip.frames.shape[1:3] == (MAX_SIDE_PX * HEIGHT // WIDTH, MAX_SIDE_PX)
    assert clip.frames.dtype == np.uint8
    assert numbers(clip) == [0, 1]


# -- the right pixels --------------------------------------------------------------------------


@pytest.mark.usefixtures("deadline")
@pytest.mark.parametrize(("suffix", "codec", "b_frames", "gop"), FORMATS)
def test_seeking_gives_the_frames_of_decoding_through(
    make_video: MakeVideo, suffix: str, codec: str | None, b_frames: int, gop: int
) -> None:
    needs_encoder(codec)
    film = make_video(f"long{suffix}", frames=300, codec=codec, b_frames=b_frames, gop=gop)
    times_s = read_timeline(film).times_s
    np.testing.assert_allclose(times_s, np.arange(300) / 25, atol=2e-3)
    everything = list(range(300))
    assert read(film, everything) == list(zip(everything, everything, strict=True))
    chosen = np.random.default_rng(0)
    some = [sorted(chosen.choice(300, n, replace=False).tolist()) for n in (2, 4, 8, 20)]
    around_keys = [[gop - 1, 2 * gop, 4 * gop + 1], [11, 25], [23, 37]]
    for wanted in ([250], [0, 150], [13, 40, 41, 299], [299], *around_keys, *some):
        assert read(film, wanted) == [(i, i) for i in wanted], f"{wanted} of {film.name}"


def test_avi_frames_stand_in_the_order_in_which_they_decode(shared: Path) -> None:
    """AVI frames carry no presentation time: this file was once read in decoding order."""
    film = shared / "data" / "clips" / "two_people_1080p.avi"
    wanted = [0, 1, 2, 3, 30, 31, 70]
    with av.open(str(film)) as container:
        frames = [f for i, f in enumerate(container.decode(video=0)) if i in wanted]
        expected = [f.reformat(1280, 720, "rgb24").to_ndarray() for f in frames]
    assert all((a != b).any() for a, b in pairwise(expected)), "frames that look the same"
    actual = list(iter_frames(read_timeline(film), wanted))
    assert [i for i, _ in actual] == wanted
    for (i, frame), right in zip(actual, expected, strict=True):
        assert np.array_equal(frame, right), f"frame {i} shows another one"


@pytest.mark.parametrize(
    ("degrees", "corner"), [(90, (-1, 0)), (180, (-1, -1)), (270, (0, -1))], ids=str
)
def test_rotation_metadata_is_honoured(
    make_video: MakeVideo, degrees: int, corner: tuple[int, int]
) -> None:
    """The stored picture's top left corner, turned counter-clockwise, comes to ``corner``."""
    clip = sample_clip(make_video(frames=3, rotation=degrees), 1)
    clip_0 = sample_clip(clip.path, 3).frames[0]
    assert clip_0.shape[:2] == (clip.height, clip.width)
    assert (clip.width, clip.height) == ((WIDTH, HEIGHT) if degrees == 180 else (HEIGHT, WIDTH))
    inset = CELL_PX // 2
    at = clip_0[tuple(inset if c == 0 else -inset for c in corner)]
    assert at[0] > 180 and at[1] < 80, "the red square is elsewhere"


@pytest.mark.parametrize("name", ["phone_rotated_hevc.mov", "rotated_90_3frames.mov"])
def test_a_phone_held_upright_films_upright(shared: Path, name: str) -> None:
    film = shared / "data" / "clips" / name
    with av.open(str(film)) as container:
        stored = next(container.decode(video=0))
        raw, turn = stored.to_ndarray(format="gray").astype(float), stored.rotation
    assert stored.width > stored.height and turn % 360 == 270, "the clip is not the one meant"
    clip = sample_clip(film, 3)
    assert clip.width < clip.height
    clockwise = small(raw.T[:, ::-1])
    first = small(clip.frames[0].mean(-1))
    assert np.corrcoef(clockwise, first)[0, 1] > 0.97
    assert np.corrcoef(clockwise[::-1], first)[0, 1] < 0.9, "upside down would pass as well"


def small(grey: np.ndarray) -> np.ndarray:
    return cv2.resize(grey, (20, 20), interpolation=cv2.INTER_AREA).ravel()


def test_a_trimmed_phone_video_starts_where_it_was_trimmed(make_video: MakeVideo) -> None:
    """Trimming on a phone copies packets and hides those before the cut by an edit list."""
    film = make_video(frames=100, gop=50)
    trimmed = remux(film, film.with_name("trimmed.mp4"), shift_s=-1.0)
    clip = sample_clip(trimmed, 3)
    assert clip.end_s == pytest.approx(3.0, abs=0.05)
    assert numbers(clip) == [25 + 12, 25 + 37, 25 + 62]


def test_an_avi_with_dropped_frames_is_whole(make_video: MakeVideo) -> None:
    """A webcam's AVI has an empty chunk for each frame that it dropped."""
    times_ms = [0, 40, 80, 800, 840, 880, 2400, 2440]
    film = make_video("webcam.avi", frames=1)
    with av.open(str(film), "w") as container:
        stream = container.add_stream("mjpeg", rate=25)
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuvj420p"
        for i, time_ms in enumerate(times_ms):
            frame = av.VideoFrame.from_ndarray(picture(i), format="rgb24")
            frame.pts = time_ms // 40
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    clip = sample_clip(film, 4)
    np.testing.assert_allclose(read_timeline(film).times_s, np.array(times_ms) / 1000)
    # 2.48 s long: wanted are 0.31, 0.93, 1.55 and 2.17 s.
    assert numbers(clip) == [2, 5, 5, 5]


# -- damage ---------------------------------------------------------------------------------------


def test_the_corrupted_clip_tells_how_much_is_left(shared: Path) -> None:
    clip = sample_clip(shared / "data" / "clips" / "corrupted.mp4")
    assert len(clip.warnings) == 1 and "28 of 50" in clip.warnings[0]
    assert len(clip.frames) == 28 and len(clip.frame_of) == 48


def test_what_a_broken_packet_spoils_is_left_out(make_video: MakeVideo) -> None:
    """Frames that are predicted from a lost one show smears, up to the next key frame."""
    film = make_video(frames=60, gop=20, options={"threads": "1"})
    with av.open(str(film)) as container:
        packets = [p for p in container.demux(video=0) if p.size]
        place, size = packets[26].pos, packets[26].size
    data = bytearray(film.read_bytes())
    data[place : place + size] = b"\xff" * size
    film.write_bytes(data)
    good = [*range(26), *range(40, 60)]
    assert read(film, range(60)) == [(i, i) for i in good]
    clip = sample_clip(film, 60)
    assert set(numbers(clip)) <= set(good)
    assert len(clip.warnings) == 1 and "46 of 60" in clip.warnings[0]


def halved(path: Path, share: float = 0.5) -> Path:
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])
    return path


def _cut_mp4_with_its_index_first(make: MakeVideo) -> Path:
    film = make("whole.mp4", frames=100)
    return halved(remux(film, film.with_name("cut.mp4"), movflags="faststart"), 0.6)


def _sound_only(make: MakeVideo) -> Path:
    path = make("sound.mkv", frames=1)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("pcm_s16le", rate=8000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 800), np.int16), "s16", "mono")
        frame.sample_rate = 8000
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def _written(name: str, text: str) -> Callable[[MakeVideo], Path]:
    def write(make: MakeVideo) -> Path:
        path = make().with_name(name)
        path.write_text(text)
        return path

    return write


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        pytest.param(lambda make: make().with_name("gone.mp4"), "no such file", id="missing"),
        pytest.param(lambda make: make().parent, "folder", id="folder"),
        pytest.param(_written("empty.mp4", ""), "empty", id="empty"),
        pytest.param(
            _written("text.mp4", "squat\nlunge\n" * 99), "not a video", id="text named mp4"
        ),
        # FFmpeg draws such a file as a terminal would, and calls that a video.
        pytest.param(_written("labels.txt", "squat\nlunge\n" * 99), "not a video", id="text"),
        pytest.param(_sound_only, "no video", id="sound only"),
        pytest.param(lambda make: halved(make("a.mp4", 100)), "cut off", id="cut mp4"),
        pytest.param(_cut_mp4_with_its_index_first, "cut off", id="cut mp4, index first"),
        pytest.param(lambda make: halved(make("a.mkv", 100)), "cut off", id="cut mkv"),
        pytest.param(lambda make: halved(make("a.webm", 100), 0.6), "cut off", id="cut webm"),
        pytest.param(lambda make: halved(make("a.avi", 100)), "cut off", id="cut avi"),
    ],
)
def test_a_file_that_is_no_whole_video(
    make_video: MakeVideo, broken: Callable[[MakeVideo], Path], message: str
) -> None:
    path = broken(make_video)
    with pytest.raises(PevlError, match=message) as caught:
        sample_clip(path)
    assert str(path) in str(caught.value)


def test_the_part_of_a_cut_off_file_that_is_there_can_be_used(make_video: MakeVideo) -> None:
    film = halved(make_video("a.mkv", 100))
    with pytest.raises(PevlError, match=r"--end \d") as caught:
        sample_clip(film)
    usable_s = float(str(caught.value).rpartition("--end ")[2].rstrip("."))
    assert 0.5 < usable_s < 3.5
    clip = sample_clip(film, 4, end_s=usable_s)
    assert numbers(clip) == sorted(numbers(clip)) and numbers(clip)[-1] < 100 * usable_s / 4


@pytest.mark.parametrize(
    ("start_s", "end_s", "message"),
    [
        (2.0, None, "outside"),
        (99.0, None, "outside"),
        (-0.5, None, "outside"),
        (math.inf, None, "outside"),
        (1.0, 0.5, "after"),
        (1.0, 1.0, "after"),
        (None, -1.0, "after"),
        (math.nan, None, "start"),
        (None, math.nan, "end"),
    ],
)
def test_a_span_that_holds_nothing(
    make_video: MakeVideo, start_s: float | None, end_s: float | None, message: str
) -> None:
    film = make_video(frames=50)
    with pytest.raises(PevlError, match=message):
        sample_clip(film, 4, start_s, end_s)
    with pytest.raises(PevlError, match=message):
        frames_in_span(read_timeline(film), start_s, end_s)


# -- cost, and many files ------------------------------------------------------------------------


def test_memory_does_not_grow_with_length(make_video: MakeVideo) -> None:
    film = make_video(frames=200, size=4, gop=50)
    timeline = read_timeline(film)
    process = psutil.Process()
    before = process.memory_info().rss
    passing = iter_frames(timeline, range(200))
    steps = [(process.memory_info().rss - before, frame.nbytes) for _, frame in passing]
    assert len(steps) == 200
    most = max(grown for grown, _ in steps)
    assert most < 60 * steps[0][1], f"{most / 2**20:.0f} MB more while 200 frames passed"


def test_sampling_few_frames_holds_few(make_video: MakeVideo) -> None:
    clip = sample_clip(make_video(frames=200), 5)
    assert clip.frames.shape == (5, HEIGHT, WIDTH, 3)
    assert clip.frames.base is None, "a view keeps the frames alive that it was cut from"


@pytest.mark.parametrize("name", CLIPS)
def test_every_real_clip_decodes(shared: Path, name: str) -> None:
    clip = sample_clip(shared / "data" / "clips" / name, 4)
    assert len(clip.frame_of) == 4
    assert clip.frames.std() > 5, "a picture of one colour"
    assert len(clip.warnings) == (name == "corrupted.mp4")


def test_folders_patterns_and_repeats(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("b/2.MP4", "b/c/1.gif", "a.mkv", "b/notes.txt", "x[1].mp4"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "empty").mkdir()

    def videos(*inputs: str) -> list[str]:
        return [p.relative_to(tmp_path).as_posix() for p in find_videos([*map(at, inputs)])]

    def at(name: str) -> str:
        return str(tmp_path / name)

    assert videos("b") == ["b/2.MP4", "b/c/1.gif"]
    assert videos("b/c/1.gif", "a.mkv", "b") == ["b/c/1.gif", "a.mkv", "b/2.MP4"], "each once"
    assert videos("*.m*") == ["a.mkv", "x[1].mp4"]
    assert videos("**/*.gif") == ["b/c/1.gif"]
    assert videos("x[1].mp4") == ["x[1].mp4"], "a file that is there is no pattern"
    assert videos("gone.mp4") == ["gone.mp4"], "told when it is opened, so that a batch goes on"
    for nothing in ("empty", "*.wmv"):
        with pytest.raises(PevlError, match=r"no video files|nothing matches"):
            videos(nothing)
    monkeypatch.chdir(tmp_path)
    assert find_videos(["b/*.MP4"]) == [Path("b/2.MP4")]


def test_the_pictures_of_these_tests_tell_their_number(tmp_path: Path) -> None:
    assert [number_of(picture(i)) for i in (0, 19, 20, 319)] == [0, 19, 20, 319]
    film = write_video(tmp_path / "a.mp4", [picture(5), picture(6)])
    with av.open(str(film)) as container:
        actual = [number_of(f.to_ndarray(format="rgb24")) for f in container.decode(video=0)]
    assert actual == [5, 6]
