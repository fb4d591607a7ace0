"""How often `pevl-mini` is right on people, places and cameras that nothing was learnt from.

    python benchmarks/unseen_sources.py CLIPS/field2 --pose-weights yolo11n-pose.pt

field2 has clips of eight actions that `pevl-mini` knows, from gyms, courts and cameras of which it
has learnt nothing: all of them are named among its 37 labels. "accepted": its score is not below
the threshold, so the answer is not "none of these". Clips of field2's other actions should be
below it. Intervals: 95 %, whole sources are drawn.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

import numpy as np

from pevl_cli import recognise
from pevl_cli.data.manifest import Item, read_manifest
from pevl_cli.errors import PevlError
from pevl_cli.metrics import intervals

# field2's label: the same action in pevl-mini's words.
KNOWN = {
    "squat": "workout_squat",
    "pushup": "workout_pushup",
    "pullup": "workout_pullup",
    "jumping_jack": "jumping_jack",
    "golf_swing": "golf",
    "tennis_backhand": "tennis backhand",
    "tennis_forehand": "tennis forehand",
    "tennis_serve": "tennis serve",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("data", type=Path, help="field2's folder")
    parser.add_argument("--checkpoint", default="pevl-mini")
    parser.add_argument("--pose-weights", type=Path)
    parser.add_argument("--known-only", action="store_true", help="leave the other actions out")
    arguments = parser.parse_args()
    recogniser = recognise.load(arguments.checkpoint, pose_weights=arguments.pose_weights)
    items = read_manifest(arguments.data).items
    known = [replace(i, label=KNOWN[i.label]) for i in items if i.label in KNOWN]
    others = [i for i in items if i.label not in KNOWN]

    def answer(item: Item) -> recognise.Answer | None:
        try:
            return recogniser.classify(item.path, start_s=item.start_s, end_s=item.end_s)
        except PevlError as error:
            print(f"left out: {error}")
            return None

    rows = [(item, found) for item in known if (found := answer(item)) is not None]
    right = np.array([found.predictions[0].label == item.label for item, found in rows])
    accepted = np.array([not found.none_of_these for _, found in rows])
    labels = [list(KNOWN.values()).index(item.label) for item, _ in rows]
    groups = [item.group for item, _ in rows]
    columns = ("action", "clips", "right", "right, accepted", "wrong, accepted")
    print("{:<18}{:>6}{:>7}{:>17}{:>17}".format(*columns))
    for i, label in [*enumerate(KNOWN.values()), (None, "all")]:
        chosen = np.array([i is None or number == i for number in labels])
        counts = chosen, right & chosen, right & accepted & chosen, ~right & accepted & chosen
        print("{:<18}{:>6}{:>7}{:>17}{:>17}".format(label, *(int(c.sum()) for c in counts)))
    top1 = intervals(right, labels, groups)["top1"]
    mean_class = np.mean([right[np.array(labels) == i].mean() for i in set(labels)])
    print(
        f"top-1 {right.mean():.1%} (95 %: {top1.low:.0%} to {top1.high:.0%}), mean class "
        f"{mean_class:.1%}, {len(set(groups))} sources"
    )
    if arguments.known_only:
        return
    answers = [found for item in others if (found := answer(item)) is not None]
    refused = sum(found.none_of_these for found in answers)
    print(f"other actions below the threshold: {refused} of {len(answers)}")


if __name__ == "__main__":
    main()
