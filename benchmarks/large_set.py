"""Seconds and peak memory of `pevl train --dry-run` on a made Gym99 of 20,000 clips.

    python benchmarks/large_set.py ANNOTATIONS CLIP [--clips 20000] [--config vit-b-16]

ANNOTATIONS is the folder of the official lists (`gym99_train_element_v1.0.txt`,
`gym99_val_element.txt`). Every clip of the made set is a hard link to CLIP, so that the tree takes
no room on the disk; the command runs as a user runs it, in a process and with a cache of its own.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

LISTS = "gym99_train_element_v1.0.txt", "gym99_val_element.txt"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("annotations", type=Path)
    parser.add_argument("clip", type=Path)
    parser.add_argument("--clips", type=int, default=20_000)
    parser.add_argument("--config", default="vit-b-16")
    parser.add_argument("--root", type=Path, help="folder for the made set; default: a new one")
    parser.add_argument("options", nargs="*", help="after --: more options of pevl train")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        root = arguments.root or Path(temporary) / "gym99"
        start_s = time.perf_counter()
        count = make_set(root, arguments.annotations, arguments.clip, arguments.clips)
        print(f"{count:,} clips in {root}, made in {time.perf_counter() - start_s:.1f} s")
        command = [sys.executable, "-m", "pevl_cli", "train", "--dataset", "gym99", "--dry-run"]
        command += ["--root", str(root), "--config", arguments.config, *arguments.options]
        seconds, peak_bytes = measure(command, Path(temporary) / "cache")
    print(f"dry run: {seconds:.1f} s, peak memory {peak_bytes / 2**30:.2f} GiB")


def make_set(root: Path, annotations: Path, clip: Path, clips: int) -> int:
    """Make the tree of a Gym99 whose first ``clips`` instances are on disk; return their number."""
    folder = root / "subactions"
    folder.mkdir(parents=True, exist_ok=True)
    names = []
    for file in LISTS:
        shutil.copyfile(annotations / file, root / file)
        names += [line.split()[0] for line in (root / file).read_text().splitlines() if line]
    # Links need a file on the same disk.
    source = root / f"source{clip.suffix}.tmp"
    shutil.copyfile(clip, source)
    for name in names[:clips]:
        target = folder / f"{name}{clip.suffix}"
        if not target.exists():
            os.link(source, target)
    source.unlink()
    return len(names[:clips])


def measure(command: list[str], cache: Path) -> tuple[float, int]:
    """Run a command; its seconds and its peak memory in bytes."""
    import resource

    environment = {**os.environ, "PEVL_CACHE": str(cache)}
    start_s = time.perf_counter()
    subprocess.run(command, env=environment, check=True)
    seconds = time.perf_counter() - start_s
    unit = 1 if sys.platform == "darwin" else 1024  # of ru_maxrss, in bytes
    return seconds, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * unit


if __name__ == "__main__":
    main()
