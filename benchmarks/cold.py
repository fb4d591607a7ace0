"""Where the seconds of a cold `pevl classify` go, in one fresh process with an empty cache.

python benchmarks/cold.py VIDEO --pose-weights yolo11n-pose.pt
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("video")
    parser.add_argument("--pose-weights")
    arguments = parser.parse_args()
    os.environ["PEVL_CACHE"] = tempfile.mkdtemp()
    started = time.perf_counter()

    def lap(what: str) -> None:
        nonlocal started
        now = time.perf_counter()
        print(f"{what:44} {now - started:5.2f} s")
        started = now

    import torch  # noqa: F401

    lap("import torch")
    from pevl_cli import recognise
    from pevl_cli.output import draw as report  # noqa: F401

    lap("import pevl with all else but ultralytics")
    recogniser = recognise.load("pevl-mini", pose_weights=arguments.pose_weights)
    lap("checkpoint")
    recogniser.read(arguments.video)
    lap("ultralytics, detector, decoding, cut-out")
    recogniser.classify(arguments.video)
    lap("texts, model, decoding once more")


if __name__ == "__main__":
    main()
