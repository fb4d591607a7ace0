"""Draw a clip of a person doing jumping jacks, for `pevl demo`."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np

from pevl_cli.output.draw import write_video

ACTION = "jumping_jack"
WIDTH, HEIGHT = 640, 480
FPS = 20
SECONDS = 2.8
JACK_S = 1.1  # duration of one jump
BODY_PX = 210.0  # body height, as in the training clips of `pevl-mini`
SUPERSAMPLING = 2  # factor: drawn larger, then shrunk
BLUR_PX = 1.5  # standard deviation of the camera's blur
NOISE = 2.0  # standard deviation of the camera's noise, for values 0 to 255
SKIN, SHIRT, SHORTS, SHOES, HAIR = (
    (214, 168, 140),
    (40, 44, 60),
    (30, 34, 44),
    (240, 240, 238),
    (52, 38, 30),
)


def draw_clip(path: Path) -> Path:
    """Write the clip as an H.264 video and return its path. PevlError when it cannot be written."""
    count = round(FPS * SECONDS)
    times_s = np.arange(count) / FPS
    backdrop, rng = _backdrop(), np.random.default_rng(0)
    write_video(path, (_frame(backdrop, t, rng) for t in times_s), times_s)
    return path


def joints_at(time_s: float) -> dict[str, tuple[float, float]]:
    """The person's joints at a time: name -> x, y in px.

    Arms move from the thighs to above the head, legs from closed to wide, with a small jump in
    between.
    """
    phase = (1 - np.cos(2 * np.pi * time_s / JACK_S)) / 2  # 0 closed, 1 open
    unit = BODY_PX / 8  # a body is about eight head heights
    spread, raised = np.radians(3 + 21 * phase), np.radians(12 + 150 * phase)
    hop = 0.28 * unit * abs(np.sin(2 * np.pi * time_s / JACK_S))
    ground = HEIGHT * 0.9
    # Feet stay on the ground, so the hips go down when the legs open.
    hips_y = ground - hop - 3.9 * unit * np.cos(spread)
    middle = WIDTH / 2
    joints = {"neck": (middle, hips_y - 2.6 * unit), "head": (middle, hips_y - 3.3 * unit)}
    for side, sign in (("left", 1), ("right", -1)):  # the person faces the camera
        shoulder = (middle + sign * 0.85 * unit, hips_y - 2.35 * unit)
        elbow = _from(shoulder, raised * sign, 1.35 * unit)
        # The forearm is slightly ahead of the upper arm, as in real jumping jacks.
        wrist = _from(elbow, (raised + np.radians(14) * phase) * sign, 1.25 * unit)
        hip = (middle + sign * 0.45 * unit, hips_y)
        knee = _from(hip, spread * sign, 1.95 * unit)
        ankle = _from(knee, spread * 0.9 * sign, 1.8 * unit)
        names = ("shoulder", "elbow", "wrist", "hip", "knee", "ankle")
        points = (shoulder, elbow, wrist, hip, knee, ankle)
        joints |= {f"{side}_{n}": p for n, p in zip(names, points, strict=True)}
    return joints


def _from(point: tuple[float, float], angle: float, length: float) -> tuple[float, float]:
    """The point ``length`` px away; angle in radians, 0 downwards, positive to the right."""
    return point[0] + length * float(np.sin(angle)), point[1] + length * float(np.cos(angle))


def _backdrop() -> np.ndarray:
    """A wall and grass with texture: `pevl-mini` also uses the background."""
    height, width = HEIGHT * SUPERSAMPLING, WIDTH * SUPERSAMPLING
    below = (np.arange(height) > 0.62 * height)[:, None, None]
    colours = np.where(below, (112, 120, 90), (150, 140, 125)) * np.ones((1, width, 1))
    rng = np.random.default_rng(0)
    for size, strength in ((8, 10), (40, 10), (120, 8)):
        rough = rng.normal(0, strength, (height // size + 1, width // size + 1))
        colours += cv2.resize(rough, (width, height), interpolation=cv2.INTER_CUBIC)[..., None]
    backdrop: np.ndarray = colours.clip(0, 255).astype(np.uint8)
    return backdrop


def _frame(backdrop: np.ndarray, time_s: float, rng: np.random.Generator) -> np.ndarray:
    """The frame at a time: (HEIGHT, WIDTH, 3) uint8 RGB."""
    image = backdrop.copy()
    unit = BODY_PX / 8 * SUPERSAMPLING
    at = {name: np.multiply(point, SUPERSAMPLING) for name, point in joints_at(time_s).items()}
    _shadow(image, at, unit)

    def limb(a: str, b: str, thick: float, thin: float, colour: tuple[int, int, int]) -> None:
        _taper(image, at[a], at[b], thick * unit, thin * unit, colour)

    for side in ("left", "right"):
        limb(f"{side}_hip", f"{side}_knee", 0.46, 0.32, SKIN)
        limb(f"{side}_knee", f"{side}_ankle", 0.31, 0.17, SKIN)
        middle = f"{side}_thigh"
        at[middle] = at[f"{side}_hip"] * 0.4 + at[f"{side}_knee"] * 0.6
        limb(f"{side}_hip", middle, 0.52, 0.46, SHORTS)
        toe = at[f"{side}_ankle"] + np.array([0.18 if side == "left" else -0.18, 0.22]) * unit
        _taper(image, at[f"{side}_ankle"], toe, 0.2 * unit, 0.24 * unit, SHOES)
    _torso(image, at, unit)
    _taper(image, at["neck"], at["head"], 0.22 * unit, 0.2 * unit, _dark(SKIN))
    for side in ("left", "right"):
        limb(f"{side}_shoulder", f"{side}_elbow", 0.27, 0.2, SKIN)
        limb(f"{side}_elbow", f"{side}_wrist", 0.2, 0.13, SKIN)
        sleeve = f"{side}_sleeve"
        at[sleeve] = (at[f"{side}_shoulder"] + at[f"{side}_elbow"]) / 2
        limb(f"{side}_shoulder", sleeve, 0.32, 0.29, SHIRT)
        hand = at[f"{side}_wrist"] + (at[f"{side}_wrist"] - at[f"{side}_elbow"]) * 0.14
        cv2.circle(image, _pixel(hand), int(0.18 * unit), SKIN, -1, cv2.LINE_AA)
    _head(image, at["head"], unit)
    small = cv2.resize(image, (WIDTH, HEIGHT), interpolation=cv2.INTER_AREA)
    soft = cv2.GaussianBlur(small, (0, 0), BLUR_PX) + rng.normal(0, NOISE, small.shape)
    frame: np.ndarray = soft.clip(0, 255).astype(np.uint8)
    return frame


def _shadow(image: np.ndarray, at: dict[str, np.ndarray], unit: float) -> None:
    left, right = at["left_ankle"], at["right_ankle"]
    size = int(abs(left[0] - right[0]) / 2 + unit), int(0.3 * unit)
    x, y = int((left[0] + right[0]) / 2), int(HEIGHT * SUPERSAMPLING * 0.925)
    part = image[y - 2 * size[1] : y + 2 * size[1], x - 2 * size[0] : x + 2 * size[0]]
    middle = part.shape[1] // 2, 2 * size[1]
    strength = np.zeros(part.shape[:2], np.float32)
    cv2.ellipse(strength, middle, size, 0, 0, 360, 0.5, -1)
    strength = cv2.GaussianBlur(strength, (0, 0), 9)[..., None]
    part[:] = (part * (1 - strength)).astype(np.uint8)


def _taper(
    image: np.ndarray,
    a: np.ndarray,
    b: np.ndarray,
    thick: float,
    thin: float,
    colour: tuple[int, int, int],
) -> None:
    """Draw a limb: round ends with two radii, and a darker edge on the side away from the light."""
    along = (b - a) / max(float(np.hypot(*(b - a))), 1e-6)
    across = np.array([-along[1], along[0]])
    for shade, inset in ((_dark(colour), 0.0), (colour, 0.16)):
        move = np.array([-1.0, -0.6]) * inset * thin
        r1, r2 = thick * (1 - inset), thin * (1 - inset)
        corners = [a + across * r1, b + across * r2, b - across * r2, a - across * r1]
        points = np.array([_pixel(c + move) for c in corners], np.int32)
        cv2.fillConvexPoly(image, points, shade, cv2.LINE_AA)
        for end, radius in ((a, r1), (b, r2)):
            cv2.circle(image, _pixel(end + move), max(int(radius), 1), shade, -1, cv2.LINE_AA)


def _torso(image: np.ndarray, at: dict[str, np.ndarray], unit: float) -> None:
    left, right = at["left_shoulder"], at["right_shoulder"]
    out = np.array([0.16, 0.0]) * unit
    waist = (at["left_hip"] + at["right_hip"]) / 2 - np.array([0, 0.9]) * unit
    narrow = np.array([0.66, 0.0]) * unit
    hips = np.array([0.34, 0.0]) * unit
    outline = [
        *(at["neck"] + np.array([0.3, 0.02]) * unit, left + out, waist + narrow),
        *(at["left_hip"] + hips, at["right_hip"] - hips, waist - narrow, right - out),
        at["neck"] - np.array([0.3, -0.02]) * unit,
    ]
    points = np.array([_pixel(p) for p in outline], np.int32)
    cv2.fillPoly(image, [points], _dark(SHIRT), cv2.LINE_AA)
    centre = points.mean(0)
    inner = (centre + (points - centre) * 0.88 - np.array([0.07, 0.02]) * unit).astype(np.int32)
    cv2.fillPoly(image, [inner], SHIRT, cv2.LINE_AA)
    belt = [at["left_hip"] + hips, at["right_hip"] - hips]
    low = np.array([0, 0.42]) * unit
    shorts = np.array([_pixel(p) for p in (*belt, belt[1] + low, belt[0] + low)], np.int32)
    cv2.fillPoly(image, [shorts], SHORTS, cv2.LINE_AA)


def _head(image: np.ndarray, centre: np.ndarray, unit: float) -> None:
    def dot(dx: float, dy: float, radius: float, colour: tuple[int, int, int]) -> None:
        place = _pixel(centre + np.array([dx, dy]) * unit)
        cv2.circle(image, place, max(int(radius * unit), 1), colour, -1, cv2.LINE_AA)

    size = int(0.43 * unit), int(0.55 * unit)
    top = centre - np.array([0, 0.1]) * unit
    cv2.ellipse(image, _pixel(top), size, 0, 0, 360, HAIR, -1, cv2.LINE_AA)
    face = int(0.37 * unit), int(0.48 * unit)
    cv2.ellipse(image, _pixel(centre), face, 0, 0, 360, SKIN, -1, cv2.LINE_AA)
    for way in (-1, 1):
        dot(0.37 * way, 0.02, 0.09, _dark(SKIN))
        dot(0.14 * way, -0.06, 0.06, (250, 250, 250))
        dot(0.14 * way, -0.06, 0.035, (30, 24, 20))
    dot(0, 0.08, 0.05, _dark(SKIN))
    mouth = _pixel(centre + np.array([0, 0.24]) * unit)
    cv2.ellipse(
        image,
        mouth,
        (int(0.12 * unit), int(0.05 * unit)),
        0,
        0,
        180,
        (150, 70, 66),
        2 * SUPERSAMPLING,
    )


def _pixel(point: np.ndarray) -> tuple[int, int]:
    return int(point[0]), int(point[1])


def _dark(colour: tuple[int, int, int]) -> tuple[int, int, int]:
    r, g, b = (int(c * 0.72) for c in colour)
    return r, g, b
