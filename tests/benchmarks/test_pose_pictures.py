"""Tests for benchmarks/pose_pictures.py: close views of people."""

import runpy

import numpy as np
from conftest import REPOSITORY


def test_views_from_near_by_keep_joints_on_their_pixels() -> None:
    recipe = runpy.run_path(str(REPOSITORY / "benchmarks" / "pose_pictures.py"))
    rng = np.random.default_rng(7)
    frame = np.zeros((240, 320, 3), np.uint8)
    joints = np.zeros((2, 17, 3))
    joints[0, :, :2] = rng.uniform((60, 30), (130, 210), (17, 2)).round()
    joints[1, :, :2] = rng.uniform((200, 60), (260, 200), (17, 2)).round()
    joints[..., 2] = 2
    for person in range(2):
        for k, (x, y) in enumerate(joints[person, :, :2].astype(int)):
            frame[y, x] = (person + 1, k + 1, 255)
    boxes = np.array([[50.0, 20, 140, 220], [190, 50, 270, 210]])
    hidden = 0
    for _ in range(200):
        view = recipe["_near"](frame, boxes, joints, rng)
        if view is None:
            continue
        cut, kept, moved = view
        height, width = cut.shape[:2]
        assert len(kept) == len(moved) >= 1
        assert (kept >= 0).all() and (kept <= (width, height, width, height)).all()
        for person in moved:
            points = person[person[:, 2] > 0][:, :2].astype(int)
            if len(points):
                colours = cut[points[:, 1], points[:, 0]]
                # Some joints share a pixel; whose it is stays the same.
                assert (colours[:, 2] == 255).all()
                assert len(set(colours[:, 0].tolist())) == 1
            hidden += 17 - len(points)
    assert hidden  # some are cut off
