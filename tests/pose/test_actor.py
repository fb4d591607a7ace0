"""Whose joints are used: the choice of the actor, the search, and the cache."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from conftest import MakeVideo
from people import (
    HEIGHT,
    WIDTH,
    Detected,
    blank,
    detected,
    person,
    same,
    source,
    stand_in,
    swing,
)

from pevl_cli.media.video import Clip, sample_clip
from pevl_cli.pose.actor import FrameSource, choose_actor, unrotate
from pevl_cli.pose.detector import PoseDetector
from pevl_cli.pose.settings import PoseSettings
from pevl_cli.pose.tracks import Detections, link

# -- choice ---------------------------------------------------------------------------------------


def who_is_followed(detections: list[Detections]) -> list[int | None]:
    """In each frame the colour of whom the actor's track follows."""
    chosen = choose_actor(link(detections), source(len(detections)))
    followed: list[int | None] = [None] * len(detections)
    if chosen is not None:
        for f, joints in zip(chosen.frames, chosen.joints, strict=True):
            followed[f] = round(float(joints[0, 2]) * 10)
    return followed


def test_a_moving_actor_is_followed_and_not_a_small_still_judge() -> None:
    detections = [
        detected(person(560, 300, 80, who=2), person(250 + 6 * f, 240, 160, 1, swing(f)))
        for f in range(24)
    ]
    assert who_is_followed(detections) == [1] * 24


def test_a_smaller_moving_actor_is_followed_and_not_the_largest_box() -> None:
    """A spectator near the camera, at the side, sits still."""
    detections = [
        detected(person(70, 340, 260, who=2), person(260 + 5 * f, 230, 130, 1, swing(f)))
        for f in range(24)
    ]
    assert who_is_followed(detections) == [1] * 24


def test_somebody_passing_is_not_followed() -> None:
    detections = [
        detected(
            person(300, 240, 150, 1, swing(f)),
            *([person(-40 + 110 * (f - 8), 260, 220, 2, swing(f))] if 8 <= f < 14 else []),
        )
        for f in range(24)
    ]
    assert who_is_followed(detections) == [1] * 24


def test_a_moving_actor_beside_a_still_person_as_large_and_nearer_the_middle() -> None:
    detections = [
        detected(person(360, 240, 160, who=2), person(220, 250, 160, 1, swing(f)))
        for f in range(24)
    ]
    assert who_is_followed(detections) == [1] * 24


def test_of_two_who_move_alike_the_one_in_the_middle_is_followed() -> None:
    """Who films keeps the actor in the middle."""
    detections = [
        detected(person(90, 400, 168, 2, swing(f)), person(330, 240, 160, 1, swing(f)))
        for f in range(24)
    ]
    assert who_is_followed(detections) == [1] * 24


def test_tracklets_of_one_person_are_chained_over_a_gap() -> None:
    detections = [
        detected() if 8 <= f < 14 else detected(person(250 + 4 * f, 240, 160, 1, swing(f)))
        for f in range(24)
    ]
    assert who_is_followed(detections) == [1] * 8 + [None] * 6 + [1] * 10


def test_without_tracks_there_is_no_actor() -> None:
    assert choose_actor([], source(5)) is None


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    """Some file, for a detector whose `detect` is a stand-in."""
    path = tmp_path / "weights.pt"
    path.write_bytes(b"weights")
    return path


# -- search ---------------------------------------------------------------------------------------


def test_gaps_of_an_actor_are_bridged_and_marked(
    weights: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lost = {8, 9, 10, *range(16, 26)}  # 0.4 s and 1.1 s between detected

    def see(_: np.ndarray, f: int) -> list[tuple[np.ndarray, np.ndarray]]:
        return [] if f in lost else [person(200 + 4 * f, 240, 300, 1, swing(f))[:2]]

    monkeypatch.setattr(PoseDetector, "detect", stand_in(see))
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
        "detect",
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
    box, joints = unrotate(box, joints, turns, height, width)
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
    monkeypatch.setattr(PoseDetector, "detect", stand_in(upright_only))
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

    monkeypatch.setattr(PoseDetector, "detect", stand_in(see))
    return looks


def test_the_second_look_at_a_clip_skips_the_detector(
    clip: Clip, weights: Path, own_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    counting(monkeypatch)
    first = PoseDetector(weights, PoseSettings(refine=False)).actor(clip)
    assert first.bridged.any() and first.joints.any()
    assert len(list(own_cache.rglob("*.npz"))) == 1

    def never(*_: object) -> Detected:
        raise AssertionError("the detector was asked again")

    monkeypatch.setattr(PoseDetector, "detect", never)
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
