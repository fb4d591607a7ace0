"""What is drawn over pictures."""

from __future__ import annotations

import numpy as np

from pevl_cli.output.draw import draw_skeleton
from pevl_cli.pose.skeletons import LAYOUTS


def test_a_skeleton_is_drawn_where_its_joints_are() -> None:
    frame = np.zeros((200, 300, 3), np.uint8)
    joints = np.zeros((17, 3), np.float32)
    names = LAYOUTS["coco17"].names
    for name, place in (("left_shoulder", (60, 50)), ("left_elbow", (160, 50))):
        joints[names.index(name)] = (*place, 0.9)
    joints[names.index("left_wrist")] = (260, 150, 0.2)  # not sure enough to be drawn
    draw_skeleton(frame, joints, "coco17")
    assert frame[50, 60].min() > 200 and frame[50, 160].min() > 200
    assert frame[50, 110].any(), "no line between the two"
    assert not frame[100:].any() and not frame[:, 200:].any()
