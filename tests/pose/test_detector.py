"""Whose joints are used: tracks, the actor, gaps, the cache, and the detector on real gymnasts."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from conftest import MakeVideo, child_environment

from pevl_cli import weights as weights_module
from pevl_cli.errors import PevlError
from pevl_cli.media.video import Clip, sample_clip
from pevl_cli.output.draw import draw
from pevl_cli.pose import detector as pose
from pevl_cli.pose.actor import Actor, FrameSource, choose_actor
from pevl_cli.pose.detector import PoseDetector, PoseSettings
from pevl_cli.pose.skeletons import LAYOUTS
from pevl_cli.pose.tracks import Detections, bridge, likeness, link
from pevl_cli.weights import find_weights

WIDTH, HEIGHT = 640, 480
Detected = Iterator[tuple[int, np.ndarray, np.ndarray, np.ndarray]]

# -- who is the actor ---------------------------------------------------------------------------


def person(
    x: float, y: float, height: float, who: int, swing: float = 0.0, sure: float = 0.9
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Box, joints and colours of somebody at a place; ``who`` is the colour, and the score of
    joint 0; ``swing`` moves the joints inside the box, in parts of its height."""
    width = height / 2
    box = np.array([x - width / 2, y - height / 2, x + width / 2, y + height / 2, sure])
    joints = np.full((17, 3), 0.9)
    joints[:, 0] = x + swing * height
    joints[:, 1] = y + np.linspace(-0.4, 0.4, 17) * height
    joints[0, 2] = who / 10
    colours = np.full(32, 0.2 / 32)
    colours[who] += 0.8
    return box, joints, colours


def sightings(*people: tuple[np.ndarray, np.ndarray, np.ndarray]) -> Detections:
    if not people:
        return Detections(np.zeros((0, 5)), np.zeros((0, 17, 3)), np.zeros((0, 32)))
    return Detections(*(np.stack(parts) for parts in zip(*people, strict=True)))


def source(count: int, step_s: float = 0.1) -> FrameSource:
    def nothing(_: Sequence[int]) -> Iterator[tuple[int, np.ndarray]]:
        return iter(())

    return FrameSource(np.arange(count) * step_s, WIDTH, HEIGHT, 1.0, nothing)


def who_is_followed(found: list[Detections]) -> list[int | None]:
    """In each frame the colour of whom the actor's track follows."""
    chosen = choose_actor(link(found), source(len(found)))
    followed: list[int | None] = [None] * len(found)
    if chosen is not None:
        for f, joints in zip(chosen.frames, chosen.joints, strict=True):
            followed[f] = round(float(joints[0, 2]) * 10)
    return followed


def swing(f: int) -> float:
    return 0.15 * (-1) ** f


def test_a_moving_actor_is_followed_and_not_a_small_still_judge() -> None:
    found = [
        sightings(person(560, 300, 80, who=2), person(250 + 6 * f, 240, 160, 1, swing(f)))
        for f in range(24)
    ]
    assert who_is_followed(found) == [1] * 24


def test_a_smaller_moving_actor_is_followed_and_not_the_largest_box() -> None:
    """A spectator near the camera, at the side, sits still."""
    found = [
        sightings(person(70, 340, 260, who=2), person(260 + 5 * f, 230, 130, 1, swing(f)))
        for f in range(24)
    ]
    assert who_is_followed(found) == [1] * 24


def test_somebody_passing_is_not_followed() -> None:
    found = [
        sightings(
            person(300, 240, 150, 1, swing(f)),
            *([person(-40 + 110 * (f - 8), 260, 220, 2, swing(f))] if 8 <= f < 14 else []),
        )
        for f in range(24)
    ]
    assert who_is_followed(found) == [1] * 24


def test_a_moving_actor_beside_a_still_person_as_large_and_nearer_the_middle() -> None:
    found = [
        sightings(person(360, 240, 160, who=2), person(220, 250, 160, 1, swing(f)))
        for f in range(24)
    ]
    assert who_is_followed(found) == [1] * 24


def test_of_two_who_move_alike_the_one_in_the_middle_is_followed() -> None:
    """Who films keeps the actor in the middle."""
    found = [
        sightings(person(90, 400, 168, 2, swing(f)), person(330, 240, 160, 1, swing(f)))
        for f in range(24)
    ]
    assert who_is_followed(found) == [1] * 24


@pytest.mark.parametrize("turn_back", [False, True])
def test_two_who_meet_keep_their_identities(turn_back: bool) -> None:
    """They pass each other, or meet and turn back: their colours tell which."""

    def at(f: int) -> float:
        return 120 + 18 * (min(f, 23 - f) if turn_back else f)

    found = [
        sightings(person(at(f), 240, 160, 1, swing(f)), person(640 - at(f), 240, 160, 2, swing(f)))
        for f in range(24)
    ]
    # Listed the other way round in half of the frames, as a detector would.
    for f in range(0, 24, 2):
        s = found[f]
        found[f] = Detections(s.boxes[::-1], s.joints[::-1], s.colours[::-1])
    tracks = link(found)
    assert sorted(len(t.frames) for t in tracks) == [24, 24]
    for track in tracks:
        assert len({round(float(j[0, 2]) * 10) for j in track.joints}) == 1, "they were swapped"


def test_a_track_goes_on_after_one_missing_frame_and_ends_after_more() -> None:
    def seen_in(frames: Iterable[int]) -> list[list[int]]:
        found = [sightings() for _ in range(12)]
        for f in frames:
            found[f] = sightings(person(300 + 2 * f, 240, 160, 1))
        return sorted(t.frames for t in link(found))

    assert seen_in([0, 1, 2, 4, 5]) == [[0, 1, 2, 4, 5]]
    assert seen_in([0, 1, 2, 8, 9]) == [[0, 1, 2], [8, 9]]


def test_tracklets_of_one_person_are_chained_over_a_gap() -> None:
    found = [
        sightings() if 8 <= f < 14 else sightings(person(250 + 4 * f, 240, 160, 1, swing(f)))
        for f in range(24)
    ]
    assert who_is_followed(found) == [1] * 8 + [None] * 6 + [1] * 10


def test_a_faint_box_counts_only_between_sure_ones() -> None:
    found = [
        sightings(person(300, 240, 160, 1, sure=0.1 if f in {0, 5, 11} else 0.8)) for f in range(12)
    ]
    assert [t.frames for t in link(found)] == [list(range(1, 11))]
    assert link([sightings(person(300, 240, 160, 1, sure=0.1))] * 5) == []


def test_nobody_in_sight() -> None:
    assert link([sightings()] * 5) == []
    assert choose_actor([], source(5)) is None


def test_likeness() -> None:
    box = np.array([100.0, 100, 150, 200])
    assert likeness(box, box) == pytest.approx(1)
    near, far, large = box + 10, box + 200, np.array([0.0, 0, 150, 300])
    assert 0 < likeness(box, near) < 1
    assert likeness(box, far) == 0 and likeness(box, large) == 0
    assert likeness(box, near) == pytest.approx(likeness(near, box))


# -- gaps ------------------------------------------------------------------------------------------


def test_a_short_gap_is_filled_along_a_straight_line() -> None:
    times_s = np.array([0.0, 0.1, 0.2, 0.5, 0.6, 0.7])
    seen = np.array([False, True, False, False, True, False])
    boxes, joints = np.zeros((6, 4), np.float32), np.zeros((6, 17, 3), np.float32)
    boxes[1], boxes[4], joints[1], joints[4] = 10, 60, 0.25, 100.25
    filled = bridge(times_s, boxes, joints, seen, longest_s=0.5)
    assert filled.tolist() == [False, False, True, True, False, False]
    # 0.2 s is a fifth of the way from 0.1 to 0.6 s, and 0.5 s four fifths.
    np.testing.assert_allclose(boxes[:, 0], [0, 10, 20, 50, 60, 0], atol=1e-4)
    np.testing.assert_allclose(joints[:, 3, 1], [0, 0.25, 20.25, 80.25, 100.25, 0], atol=1e-4)
    assert seen.tolist() == [False, True, False, False, True, False]


def test_a_gap_that_is_too_long_stays() -> None:
    times_s, seen = np.array([0.0, 0.4, 0.8]), np.array([True, False, True])
    boxes, joints = np.ones((3, 4), np.float32), np.ones((3, 17, 3), np.float32)
    boxes[1] = joints[1] = 0
    assert not bridge(times_s, boxes, joints, seen, longest_s=0.7).any()
    assert not boxes[1].any() and not joints[1].any()
    assert bridge(times_s, boxes, joints, seen, longest_s=0.8).tolist() == [False, True, False]


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    """Some file, for a detector whose `_detect` is a stand-in."""
    path = tmp_path / "weights.pt"
    path.write_bytes(b"weights")
    return path


def stand_in(see: Callable[[np.ndarray, int], list[tuple[np.ndarray, np.ndarray]]]) -> Any:
    """A `PoseDetector._detect` that sees what ``see(frame, number)`` gives."""

    def detect(
        self: PoseDetector, frames: Iterable[tuple[int, np.ndarray]], image_size_px: int
    ) -> Detected:
        for i, frame in frames:
            people = see(frame, i)
            boxes = np.array([box for box, _ in people]).reshape(-1, 5)
            joints = np.array([pose for _, pose in people]).reshape(-1, 17, 3)
            yield i, frame, boxes, joints

    return detect


def blank(count: int, scale: float = 1.0, step_s: float = 0.1) -> FrameSource:
    frame = np.full((HEIGHT, WIDTH, 3), 90, np.uint8)
    return FrameSource(
        np.arange(count) * step_s, WIDTH, HEIGHT, scale, lambda us: ((u, frame) for u in us)
    )


def test_gaps_of_an_actor_are_bridged_and_marked(
    weights: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lost = {8, 9, 10, *range(16, 26)}  # 0.4 s and 1.1 s between sightings

    def see(_: np.ndarray, f: int) -> list[tuple[np.ndarray, np.ndarray]]:
        return [] if f in lost else [person(200 + 4 * f, 240, 300, 1, swing(f))[:2]]

    monkeypatch.setattr(PoseDetector, "_detect", stand_in(see))
    detector = PoseDetector(weights, PoseSettings(refine=False, bridge_s=0.7))
    actor = detector.find_actor(blank(32, scale=2.0))
    assert np.flatnonzero(actor.bridged).tolist() == [8, 9, 10]
    assert np.flatnonzero(~actor.seen).tolist() == list(range(16, 26))
    assert not actor.joints[~actor.seen].any() and not actor.boxes[~actor.seen].any()
    # In pixels of the file, which has twice as many as the frames.
    centres = (actor.boxes[:, 0] + actor.boxes[:, 2]) / 2
    np.testing.assert_allclose(centres[5:12], 2 * (200 + 4 * np.arange(5, 12)), atol=0.01)
    assert actor.people == 1
    box = actor.box
    assert box is not None
    assert box == pytest.approx([2 * (200 - 75), 2 * 90, 2 * (200 + 4 * 31 + 75), 2 * 390])


def test_only_a_sure_sighting_makes_an_actor(
    weights: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sure = 0.29
    monkeypatch.setattr(
        PoseDetector,
        "_detect",
        stand_in(lambda _, f: [person(300, 240, 300, 1, sure=sure)[:2]]),
    )
    detector = PoseDetector(weights, PoseSettings(start_confidence=0.3))
    actor = detector.find_actor(blank(6))
    assert not actor.seen.any() and not actor.joints.any() and actor.box is None
    assert actor.people == 0
    sure = 0.31
    assert detector.find_actor(blank(6)).seen.all()


@pytest.mark.parametrize("turns", [0, 1, 2, 3])
def test_points_turn_back_with_the_picture(turns: int) -> None:
    height, width = 30, 50
    picture = np.zeros((height, width), np.uint8)
    picture[4:9, 11:20] = 1  # y from 4 to 8, x from 11 to 19
    picture[23, 41] = 2
    turned = np.rot90(picture, turns)
    (rows, columns), (row,), (column,) = np.nonzero(turned == 1), *np.nonzero(turned == 2)
    box = np.array([columns.min(), rows.min(), columns.max(), rows.max(), 0.7])
    joints = np.tile(np.array([column, row, 0.5]), (17, 1))
    box, joints = pose._turn_back(box, joints, turns, height, width)
    np.testing.assert_allclose(box, [11, 4, 19, 8, 0.7])
    np.testing.assert_allclose(joints, np.tile([41, 23, 0.5], (17, 1)))


def upright_only(frame: np.ndarray, _: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """See a body, red head and blue feet, only when the head is on top: as detectors do."""
    places = []
    for channel in (0, 2):
        rest = frame[..., [c for c in range(3) if c != channel]].max(-1)
        rows, columns = np.nonzero((frame[..., channel] > 150) & (rest < 100))
        if not len(rows):
            return []
        places.append(np.array([columns.mean(), rows.mean()]))
    head, feet = places
    if feet[1] - head[1] < 3 * abs(feet[0] - head[0]):
        return []
    joints = np.concatenate([np.linspace(head, feet, 17), np.full((17, 1), 0.9)], 1)
    length = feet[1] - head[1]
    box = np.array([head[0] - length / 4, head[1], head[0] + length / 4, feet[1], 0.9])
    return [(box, joints)]


@pytest.mark.parametrize("turns", [1, 2, 3])
def test_a_body_that_turns_over_is_looked_for_in_turned_pictures(
    weights: Path, monkeypatch: pytest.MonkeyPatch, turns: int
) -> None:
    head_at = {0: (0, -60), 1: (60, 0), 2: (0, 60), 3: (-60, 0)}
    count, turned = 20, range(8, 13)
    frames, heads = [], []
    for f in range(count):
        dx, dy = head_at[turns if f in turned else 0]
        x, y = 280 + 3 * f, 240
        frame = np.full((HEIGHT, WIDTH, 3), 120, np.uint8)
        for sign, colour in ((1, (250, 20, 20)), (-1, (20, 20, 250))):
            frame[y + sign * dy - 4 : y + sign * dy + 5, x + sign * dx - 4 : x + sign * dx + 5] = (
                colour
            )
        frames.append(frame)
        heads.append((x + dx, y + dy))
    film = FrameSource(
        np.arange(count) * 0.1, WIDTH, HEIGHT, 1.0, lambda us: ((u, frames[u]) for u in us)
    )
    monkeypatch.setattr(PoseDetector, "_detect", stand_in(upright_only))
    plain = PoseDetector(weights, PoseSettings(refine=False)).find_actor(film)
    assert np.flatnonzero(plain.bridged | ~plain.seen).tolist() == list(turned)
    actor = PoseDetector(weights).find_actor(film)
    assert actor.seen.all() and not actor.bridged.any()
    np.testing.assert_allclose(actor.joints[:, 0, :2], heads, atol=1.5)


# -- cache -----------------------------------------------------------------------------------------


@pytest.fixture
def clip(make_video: MakeVideo) -> Clip:
    return sample_clip(make_video(frames=20), 12)


@pytest.fixture
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("PEVL_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def counting(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """A stand-in detector; the list grows with each clip that is looked at."""
    looks: list[int] = []

    def see(_: np.ndarray, f: int) -> list[tuple[np.ndarray, np.ndarray]]:
        if f == 0:
            looks.append(f)
        return [] if f in {4, 5} else [person(80 + f, 64, 100, 1)[:2]]

    monkeypatch.setattr(PoseDetector, "_detect", stand_in(see))
    return looks


def same(a: Actor, b: Actor) -> bool:
    arrays = ("joints", "boxes", "seen", "bridged")
    return (
        all(np.array_equal(getattr(a, n), getattr(b, n)) for n in arrays)
        and (a.people, a.layout, a.box) == (b.people, b.layout, b.box)
        and a.joints.dtype == b.joints.dtype
    )


def test_the_second_look_at_a_clip_skips_the_detector(
    clip: Clip, weights: Path, own_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    counting(monkeypatch)
    first = PoseDetector(weights, PoseSettings(refine=False)).actor(clip)
    assert first.bridged.any() and first.joints.any()
    assert len(list(own_cache.rglob("*.npz"))) == 1

    def never(*_: object) -> Detected:
        raise AssertionError("the detector was asked again")

    monkeypatch.setattr(PoseDetector, "_detect", never)
    again = PoseDetector(weights, PoseSettings(refine=False, batch=3)).actor(clip)
    assert same(first, again)
    copied = clip.path.with_name("copy.mp4")
    copied.write_bytes(clip.path.read_bytes())
    assert same(
        first, PoseDetector(weights, PoseSettings(refine=False)).actor(sample_clip(copied, 12))
    )


@pytest.mark.parametrize("damage", ["empty", "text", "cut", "flipped", "another archive"])
def test_a_damaged_entry_is_made_again(
    clip: Clip, weights: Path, own_cache: Path, monkeypatch: pytest.MonkeyPatch, damage: str
) -> None:
    looks = counting(monkeypatch)
    detector = PoseDetector(weights, PoseSettings(refine=False))
    first = detector.actor(clip)
    (entry,) = own_cache.rglob("*.npz")
    whole = entry.read_bytes()
    middle = len(whole) // 3
    flipped = whole[:middle] + bytes(b ^ 255 for b in whole[middle : middle + 60])
    if damage == "another archive":
        np.savez(entry, other=np.zeros(3))
    else:
        entry.write_bytes(
            {
                "empty": b"",
                "text": b"not an archive",
                "cut": whole[: len(whole) // 2],
                "flipped": flipped + whole[middle + 60 :],
            }[damage]
        )
    assert same(detector.actor(clip), first)
    assert len(looks) == 2
    assert same(detector.actor(clip), first)
    assert len(looks) == 2, "the entry was not written again"


def test_what_changes_the_joints_changes_the_key(
    clip: Clip, weights: Path, own_cache: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    looks = counting(monkeypatch)
    settings = PoseSettings(refine=False)
    PoseDetector(weights, settings).actor(clip)
    other_weights = tmp_path / "other.pt"
    other_weights.write_bytes(b"other weights")
    PoseDetector(other_weights, settings).actor(clip)
    assert len(looks) == 2
    for change in ({"image_size_px": 640}, {"confidence": 0.2}, {"bridge_s": 0.0}):
        PoseDetector(weights, replace(settings, **change)).actor(clip)
    assert len(looks) == 5
    PoseDetector(weights, settings).actor(sample_clip(clip.path, 12, start_s=0.4))
    assert len(looks) == 6
    same_name = clip.path.read_bytes()
    clip.path.write_bytes(same_name + bytes(8))
    PoseDetector(weights, settings).actor(sample_clip(clip.path, 12))
    assert len(looks) == 7, "another file of the same name"
    PoseDetector(weights, settings).actor(clip, use_cache=False)
    assert len(looks) == 8
    assert len(list(own_cache.rglob("*.npz"))) == 7


def test_threads_use_the_detector_one_at_a_time(weights: Path) -> None:
    """ultralytics keeps the picture size of a call where the next call changes it."""
    inside, most = 0, 0
    lock = threading.Lock()

    def predict(pictures: list[np.ndarray], **_: object) -> list[SimpleNamespace]:
        nonlocal inside, most
        with lock:
            inside += 1
            most = max(most, inside)
        time.sleep(0.01)
        with lock:
            inside -= 1
        nobody = SimpleNamespace(data=np.zeros((0, 6)))
        boxes = SimpleNamespace(data=_Tensor(nobody.data))
        return [SimpleNamespace(boxes=boxes, keypoints=None) for _ in pictures]

    detector = PoseDetector(weights, PoseSettings(batch=2))
    detector._model = SimpleNamespace(predict=predict)  # type: ignore[assignment]
    with ThreadPoolExecutor(4) as pool:
        actors = list(pool.map(lambda _: detector.find_actor(blank(4)), range(4)))
    assert not any(a.seen.any() for a in actors)
    assert most == 1


class _Tensor(np.ndarray):
    """An array with the three methods of a tensor that a result is read by."""

    def __new__(cls, values: np.ndarray) -> _Tensor:
        return values.view(cls)

    def float(self) -> _Tensor:
        return self

    def cpu(self) -> _Tensor:
        return self

    def numpy(self) -> np.ndarray:
        return np.asarray(self)


# -- weights -------------------------------------------------------------------------------------


def test_weights_that_were_named_must_be_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, weights: Path
) -> None:
    monkeypatch.delenv(weights_module.WEIGHTS_VARIABLE, raising=False)
    gone = tmp_path / "gone.pt"
    with pytest.raises(PevlError, match="--pose-weights") as caught:
        find_weights(gone)
    assert str(gone) in str(caught.value)
    monkeypatch.setenv(weights_module.WEIGHTS_VARIABLE, str(gone))
    with pytest.raises(PevlError, match=weights_module.WEIGHTS_VARIABLE):
        PoseDetector()
    assert find_weights(weights) == weights, "the option rules over the environment"
    monkeypatch.setenv(weights_module.WEIGHTS_VARIABLE, str(weights))
    assert PoseDetector().weights == weights
    with pytest.raises(PevlError, match="no such pose weights"):
        find_weights(tmp_path / "nowhere" / weights_module.USUAL_WEIGHTS)


def test_the_packages_own_network_is_used_only_where_no_other_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, weights: Path
) -> None:
    monkeypatch.delenv(weights_module.WEIGHTS_VARIABLE, raising=False)
    monkeypatch.setenv("PEVL_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    assert find_weights() == find_weights("pevl-pose") == weights_module.BUNDLED_WEIGHTS
    note = weights_module.fallback_note()
    assert note is not None and f"pevl models fetch {weights_module.USUAL_WEIGHTS}" in note
    assert weights_module.fallback_note("pevl-pose") is None, "who chooses it knows"
    with pytest.raises(PevlError, match="no such pose weights"):
        find_weights(weights_module.USUAL_WEIGHTS)
    fetched = tmp_path / "cache" / "weights" / weights_module.USUAL_WEIGHTS
    fetched.parent.mkdir(parents=True)
    fetched.write_bytes(weights.read_bytes())
    assert find_weights() == find_weights(weights_module.USUAL_WEIGHTS) == fetched
    (tmp_path / weights_module.USUAL_WEIGHTS).write_bytes(weights.read_bytes())
    assert find_weights() == Path(weights_module.USUAL_WEIGHTS), (
        "a file here rules over what was fetched"
    )
    assert weights_module.fallback_note() is None


def test_a_file_that_is_no_weights_is_told_in_one_line(weights: Path, clip: Clip) -> None:
    with pytest.raises(PevlError, match="not a YOLO-pose weights file") as caught:
        PoseDetector(weights).actor(clip, use_cache=False)
    assert str(weights) in str(caught.value)


SILENT = """
import os, socket, sys
calls = []
real = socket.getaddrinfo
socket.getaddrinfo = lambda *a, **k: calls.append(a) or real(*a, **k)
socket.socket.connect = lambda self, address: calls.append(address)
import numpy as np
from pevl_cli.pose.actor import FrameSource
from pevl_cli.pose.detector import PoseDetector
frame = np.full((240, 320, 3), 90, np.uint8)
film = FrameSource(np.arange(2) / 5, 320, 240, 1.0, lambda us: ((u, frame) for u in us))
PoseDetector(sys.argv[1], device="cpu").find_actor(film)
from ultralytics.utils import AUTOINSTALL, ONLINE, events
print("calls", calls)
print("switches", os.environ["YOLO_OFFLINE"], os.environ["YOLO_AUTOINSTALL"], AUTOINSTALL, ONLINE)
print("events", events.events.enabled, events.events.events)
"""


def test_nothing_is_sent_and_nothing_is_installed(pose_weights: Path, tmp_path: Path) -> None:
    environment = child_environment(YOLO_CONFIG_DIR=str(tmp_path))
    for name in ("YOLO_OFFLINE", "YOLO_AUTOINSTALL"):
        environment.pop(name, None)
    done = subprocess.run(
        [sys.executable, "-c", SILENT, str(pose_weights)],
        env=environment,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-3:] == [
        "calls []",
        "switches true false False False",
        "events False []",
    ]


# -- pictures --------------------------------------------------------------------------------------


def test_a_skeleton_is_drawn_where_its_joints_are() -> None:
    frame = np.zeros((200, 300, 3), np.uint8)
    joints = np.zeros((17, 3), np.float32)
    names = LAYOUTS["coco17"].names
    for name, place in (("left_shoulder", (60, 50)), ("left_elbow", (160, 50))):
        joints[names.index(name)] = (*place, 0.9)
    joints[names.index("left_wrist")] = (260, 150, 0.2)  # not sure enough to be drawn
    draw(frame, joints, "coco17")
    assert frame[50, 60].min() > 200 and frame[50, 160].min() > 200
    assert frame[50, 110].any(), "no line between the two"
    assert not frame[100:].any() and not frame[:, 200:].any()


# -- the real detector ---------------------------------------------------------------------------


def test_gymnasts_are_found_before_judges_and_crowd(shared: Path, pose_weights: Path) -> None:
    """Torso centres inside the hand-drawn boxes: the largest person of plain YOLO gets 13."""
    boxes = json.loads((shared / "data" / "actors" / "boxes.json").read_text())
    detector = PoseDetector(pose_weights, device="cpu")
    right, total = 0, 0
    torso = [i for i, n in enumerate(LAYOUTS["coco17"].names) if n.endswith(("shoulder", "hip"))]
    for name, frames in boxes.items():
        clip = sample_clip(shared / "data" / "actors" / f"{name}.gif")
        actor = detector.actor(clip)
        for frame, (x1, y1, x2, y2) in frames.items():
            u = int(np.abs(clip.indices - int(frame)).argmin())
            assert clip.indices[u] == int(frame), "an annotated frame is not among the sampled"
            x, y = actor.joints[u, torso, :2].mean(0)
            right += bool(actor.seen[u] and x1 <= x <= x2 and y1 <= y <= y2)
            total += 1
    assert total == 23
    assert right >= 17, f"{right} of 23"


def test_nobody_is_found_among_cars(shared: Path, pose_weights: Path) -> None:
    clip = sample_clip(shared / "data" / "clips" / "nobody_cars.mp4")
    actor = PoseDetector(pose_weights, device="cpu").actor(clip)
    assert actor.joints.shape == (48, 17, 3)
    assert not actor.joints.any() and not actor.seen.any() and actor.box is None
