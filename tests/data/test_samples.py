"""Pictures and joints stay together: each joint is painted, cut out, and searched at its place.

Every joint has its own colour. In a view, the pixel at a joint's place must have that colour.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import MakeVideo, number_of, picture
from painted_clips import COLOURS, MIRROR, J, S, T, config_of, misplaced, painted

from pevl_cli.data.samples import VISIBLE_SCORE, make_sample, read_sample, view
from pevl_cli.errors import PevlError
from pevl_cli.media.video import sample_clip
from pevl_cli.model.config import CONFIGS
from pevl_cli.model.features import Batch
from pevl_cli.pose.actor import Actor
from pevl_cli.pose.detector import PoseDetector
from pevl_cli.pose.skeletons import LAYOUTS

CASES = {
    "middle": {},
    "at the border": {"at": (8, 172)},
    "moving": {"at": (100, 60), "step": (3.7, 2.1)},
    "large file": {"shrunk": 0.4},
    "portrait": {"width": 360, "height": 480},
}


# In the full crop the body at the border is out of the picture.
VIEWS = [
    *((case, "follow") for case in CASES),
    *((case, "full") for case in CASES if case != "at the border"),
]


@pytest.mark.parametrize(("case", "crop"), VIEWS)
def test_a_view_shows_each_joint_where_it_says(case: str, crop: str) -> None:
    config = config_of(crop)
    clip, actor = painted(**CASES[case])
    sample = make_sample(clip, actor, config)
    batch = view(sample, config)
    assert batch.frames is not None and batch.joints is not None
    assert batch.frames.shape == (1, T, 3, 192, 192) and batch.frames.dtype == torch.uint8
    assert batch.joints.shape == (1, S, J, 3)
    assert misplaced(batch) == []
    # The check itself must see a shift of 2 % of the view, and joints of another frame.
    off = Batch(batch.frames, batch.joints + torch.tensor([0.02, 0, 0]))
    assert misplaced(off)
    if case == "moving":
        assert misplaced(Batch(batch.frames, batch.joints.roll(3, 1)))


@pytest.mark.parametrize("crop", ["follow", "full"])
def test_a_mirrored_view_swaps_left_and_right_joints(crop: str) -> None:
    config = config_of(crop)
    sample = make_sample(*painted(step=(1, 0)), config)
    plain, mirrored = view(sample, config), view(sample, config, mirrored=True)
    # What is painted as the right wrist is the left one in a mirror.
    assert misplaced(mirrored, COLOURS[MIRROR]) == []
    assert misplaced(mirrored)
    assert plain.joints is not None and mirrored.joints is not None
    left, right = (LAYOUTS["coco17"].names.index(f"{s}_wrist") for s in ("left", "right"))
    torch.testing.assert_close(
        mirrored.joints[0, :, left, 0], 1 - plain.joints[0, :, right, 0], atol=1e-4, rtol=0
    )


def test_a_mirrored_view_swaps_which_joints_are_seen() -> None:
    clip, actor = painted()
    left, right = (LAYOUTS["coco17"].names.index(f"{s}_knee") for s in ("left", "right"))
    actor.joints[:, left, 2] = VISIBLE_SCORE / 2
    sample = make_sample(clip, actor, config_of("follow"))
    joints = view(sample, config_of("follow"), mirrored=True).joints
    assert joints is not None
    assert joints[0, :, right].abs().sum() == 0 and joints[0, :, left, 2].all()


def test_following_holds_the_actors_box_at_the_size_of_the_middle_square() -> None:
    config = config_of("follow")
    for case in CASES.values():
        clip, actor = painted(**case)
        sample = make_sample(clip, actor, config)
        shrunk = case.get("shrunk", 1.0)
        boxes = actor.boxes * shrunk  # in pixels of the frames
        longer = (boxes[:, 2:].max(0) - boxes[:, :2].min(0)).max()
        side = max(0.875 * 360, 1.25 * longer)  # wider where the box with its margin needs it
        for mirrored in (False, True):
            joints = view(sample, config, mirrored=mirrored).joints
            assert joints is not None
            places = joints[..., :2]
            assert places.min() >= 0 and places.max() <= 1
            spread = (places.amax((0, 1, 2)) - places.amin((0, 1, 2))).max()
            assert spread == pytest.approx(longer / side, abs=0.01)


def test_following_moves_the_full_square_to_the_actor_within_the_picture() -> None:
    full, follow = config_of("full"), config_of("follow")
    clip, actor = painted(width=640, at=(8, 90))  # far to the left
    shown = view(make_sample(clip, actor, follow), follow)
    middle = view(make_sample(clip, actor, full), full)
    assert shown.frames is not None and shown.joints is not None and middle.joints is not None
    assert (middle.joints[..., 0] < 0).any(), "out of the middle square"
    assert shown.joints[..., :2].min() >= 0 and shown.joints[..., :2].max() <= 1
    moved = shown.joints[..., :2] - middle.joints[..., :2]
    torch.testing.assert_close(moved, moved[0, 0, 0].expand_as(moved), atol=1e-4, rtol=0)
    border = shown.frames[0, :, :, :, 0].float()
    assert border.mean() > 20, "nothing from beyond the picture"
    nobody = make_sample(clip, None, follow)
    assert np.array_equal(nobody.frames, make_sample(clip, None, full).frames)


@pytest.mark.parametrize("size", [(90, 320), (320, 130)])
def test_following_holds_the_whole_actor_where_the_pictures_square_is_too_small(
    size: tuple[int, int],
) -> None:
    """A phone held upright shows a body from head to foot, and so must the view."""
    follow, full = config_of("follow"), config_of("full")
    clip, actor = painted(width=size[0], height=size[1], at=(4, 4))
    assert actor.box is not None
    x1, y1, x2, y2 = actor.box
    longer = max(x2 - x1, y2 - y1)
    assert longer > 0.875 * min(size), "the case is what it says"
    places = view(make_sample(clip, actor, follow), follow).joints
    middle = view(make_sample(clip, actor, full), full).joints
    assert places is not None and middle is not None
    assert places[..., :2].min() >= 0 and places[..., :2].max() <= 1
    spread = (places[..., :2].amax((0, 1, 2)) - places[..., :2].amin((0, 1, 2))).max()
    assert spread == pytest.approx(0.8, abs=0.02), "no larger than it has to be"
    assert middle[..., :2].min() < 0 or middle[..., :2].max() > 1


def test_the_full_crop_is_the_same_without_an_actor() -> None:
    config = config_of("full")
    clip, actor = painted()
    with_actor, without = make_sample(clip, actor, config), make_sample(clip, None, config)
    assert np.array_equal(with_actor.frames, without.frames)
    assert without.joints.shape == (S, J, 3) and not without.joints.any()


def test_three_views_look_at_both_sides_of_a_wide_picture() -> None:
    config = config_of("full")
    sample = make_sample(*painted(width=640), config)
    views = [view(sample, config, place) for place in (0, 1, 2)]
    for one in views:
        assert one.frames is not None and one.frames.shape[-2:] == (192, 192)
    assert misplaced(views[0]) == []
    middle, first, last = (
        float(v.joints[0, :, 0, 0].mean()) for v in views if v.joints is not None
    )
    # 640 px wide, and the view is the full short side, 360 px: it can go 140 px to either side.
    assert first - middle == pytest.approx(140 / 360, abs=0.01)
    assert middle - last == pytest.approx(140 / 360, abs=0.01)
    heights = {round(float(v.joints[0, 0, 0, 1]), 3) for v in views if v.joints is not None}
    assert len(heights) == 1, "only the long side has room"


@pytest.mark.parametrize(("width", "height", "axis"), [(640, 360, 0), (360, 640, 1)])
def test_three_views_around_the_actor_shift_along_the_longer_side(
    width: int, height: int, axis: int
) -> None:
    """Not diagonally: the square around the actor has room on both axes."""
    config = config_of("follow")
    sample = make_sample(*painted(width=width, height=height), config)
    joints = [view(sample, config, crop).joints for crop in (0, 1, 2)]
    middle, first, last = (j[0, 0, 0, :2] for j in joints if j is not None)
    assert first[axis] - middle[axis] == pytest.approx(0.14, abs=0.01)
    assert middle[axis] - last[axis] == pytest.approx(0.14, abs=0.01)
    assert first[1 - axis] == pytest.approx(float(middle[1 - axis]), abs=1e-4)
    plain = view(sample, config).joints
    assert plain is not None and np.allclose(plain, joints[0])


# -- time -----------------------------------------------------------------------------------------


def test_video_frames_are_the_middle_ones_of_the_pose_frames_triples(
    make_video: MakeVideo,
) -> None:
    # 128 px high x 0.875 = 112 px: the kept region is then the picture, pixel for pixel.
    config = config_of("full", image_size=112)
    clip = sample_clip(make_video(frames=300))
    sample = make_sample(clip, None, config)
    sampled = [number_of(clip.frames[i]) for i in clip.frame_of]
    assert [number_of(f) for f in sample.frames] == sampled[1::3]
    assert sampled[1::3][:3] == [9, 28, 46]


def test_fewer_frames_than_48(make_video: MakeVideo) -> None:
    config = config_of("full", image_size=112)
    clip = sample_clip(make_video(frames=5))
    joints = np.zeros((5, J, 3), np.float32)
    joints[..., 0], joints[..., 2] = np.arange(5)[:, None] * 10 + 30, 1
    joints[..., 1] = 60
    seen = np.array([True, True, False, True, True])
    actor = Actor(joints, np.tile(np.float32([20, 20, 90, 90]), (5, 1)), seen, ~seen, 1)
    sample = make_sample(clip, actor, config)
    shows = [int((k + 0.5) * 5 / 48) for k in range(48)]
    assert [number_of(f) for f in sample.frames] == shows[1::3]
    # Joints move on between the frames that show them, of which the first and the last stand still
    # for half of their time.
    middle = [np.mean(np.flatnonzero(np.array(shows) == u)) for u in range(5)]
    moved = np.interp(np.arange(48), middle, np.arange(5) * 10 + 30)
    np.testing.assert_allclose(sample.joints[:, 0, 0], moved, atol=0.01)
    assert sample.seen == 48 - shows.count(2)
    batch = view(sample, config)
    assert batch.frames is not None and batch.frames.shape[1] == T


# -- nobody, somebody, several ------------------------------------------------------------------


def test_without_a_detector_no_joint_is_visible(make_video: MakeVideo) -> None:
    config = config_of("follow")
    sample = read_sample(
        make_video(frames=[picture(i + 150) for i in range(20)]),
        config,
        None,
        start_s=0.2,
        end_s=0.6,
    )
    assert (sample.seen, sample.box, sample.people) == (0, None, 0)
    assert (sample.start_s, sample.end_s) == (0.2, 0.6)
    assert sample.warnings == ()
    batch = view(sample, config)
    assert batch.joints is not None and batch.joints.abs().sum() == 0
    assert batch.frames is not None and not torch.equal(batch.frames[:, 0], batch.frames[:, -1])


def test_where_nobody_is_found_the_answer_says_so() -> None:
    clip, actor = painted()
    nobody = Actor(actor.joints * 0, actor.boxes * 0, ~actor.seen, actor.bridged, 0)
    sample = make_sample(clip, nobody, config_of("follow"))
    assert sample.box is None and sample.seen == 0
    assert len(sample.warnings) == 1 and "no person was detected" in sample.warnings[0]
    assert np.array_equal(sample.frames, make_sample(clip, None, config_of("follow")).frames)


def test_of_several_people_the_one_followed_is_told() -> None:
    clip, actor = painted(shrunk=0.5)
    crowd = Actor(actor.joints, actor.boxes, np.arange(S) < 40, actor.bridged, people=3)
    sample = make_sample(clip, crowd, config_of("follow"))
    # In pixels of the file, of which the frames have half.
    assert sample.box == [360, 220, 480, 540]
    assert len(sample.warnings) == 1
    for part in ("3 people", "[360, 220, 480, 540]", "40 of 48"):
        assert part in sample.warnings[0]


@pytest.mark.slow
def test_a_model_of_poses_refuses_a_clip_with_nobody_in_it(
    shared: Path, pose_weights: Path
) -> None:
    config = CONFIGS["mini"].model_copy(update={"video": False})
    detector = PoseDetector(pose_weights, device="cpu")
    with pytest.raises(PevlError, match="no person was detected, and this model uses poses"):
        read_sample(shared / "data" / "clips" / "nobody_cars.mp4", config, detector)
