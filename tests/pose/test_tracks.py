"""Linking boxes into tracks, and gaps."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import pytest
from people import detected, person, swing

from pevl_cli.pose.tracks import Detections, box_similarity, bridge, link


@pytest.mark.parametrize("turn_back", [False, True])
def test_two_who_meet_keep_their_identities(turn_back: bool) -> None:
    """They pass each other, or meet and turn back: their colours tell which."""

    def at(f: int) -> float:
        return 120 + 18 * (min(f, 23 - f) if turn_back else f)

    detections = [
        detected(person(at(f), 240, 160, 1, swing(f)), person(640 - at(f), 240, 160, 2, swing(f)))
        for f in range(24)
    ]
    # Listed the other way round in half of the frames, as a detector would.
    for f in range(0, 24, 2):
        s = detections[f]
        detections[f] = Detections(s.boxes[::-1], s.joints[::-1], s.colours[::-1])
    tracks = link(detections)
    assert sorted(len(t.frames) for t in tracks) == [24, 24]
    for track in tracks:
        assert len({round(float(j[0, 2]) * 10) for j in track.joints}) == 1, "they were swapped"


def test_a_track_goes_on_after_one_missing_frame_and_ends_after_more() -> None:
    def seen_in(frames: Iterable[int]) -> list[list[int]]:
        detections = [detected() for _ in range(12)]
        for f in frames:
            detections[f] = detected(person(300 + 2 * f, 240, 160, 1))
        return sorted(t.frames for t in link(detections))

    assert seen_in([0, 1, 2, 4, 5]) == [[0, 1, 2, 4, 5]]
    assert seen_in([0, 1, 2, 8, 9]) == [[0, 1, 2], [8, 9]]


def test_a_faint_box_counts_only_between_sure_ones() -> None:
    detections = [
        detected(person(300, 240, 160, 1, sure=0.1 if f in {0, 5, 11} else 0.8)) for f in range(12)
    ]
    assert [t.frames for t in link(detections)] == [list(range(1, 11))]
    assert link([detected(person(300, 240, 160, 1, sure=0.1))] * 5) == []


def test_nobody_in_sight() -> None:
    assert link([detected()] * 5) == []


def test_box_similarity() -> None:
    box = np.array([100.0, 100, 150, 200])
    assert box_similarity(box, box) == pytest.approx(1)
    near, far, large = box + 10, box + 200, np.array([0.0, 0, 150, 300])
    assert 0 < box_similarity(box, near) < 1
    assert box_similarity(box, far) == 0 and box_similarity(box, large) == 0
    assert box_similarity(box, near) == pytest.approx(box_similarity(near, box))


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
