"""benchmarks/gpu.sh on the CPU: everything but the GPU is tested here."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import REPOSITORY, child_environment


@pytest.mark.slow
def test_the_gpu_script_runs_with_a_tiny_model(tmp_path: Path) -> None:
    environment = child_environment() | {"PYTHON": sys.executable, "OUT": str(tmp_path)}
    environment.setdefault("PATH", os.defpath)
    done = subprocess.run(
        ["bash", str(REPOSITORY / "benchmarks" / "gpu.sh"), "--tiny"],
        capture_output=True,
        text=True,
        env=environment,
        timeout=600,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    figures = json.loads((tmp_path / "figures.json").read_text())
    assert [row["batch"] for row in figures["training"]] == [8, 16]
    assert [row["batch"] for row in figures["inference"]] == [1, 8, 64]
    for row in (*figures["training"], *figures["inference"]):
        # Above 1 where another program slowed the measurement of the peak.
        assert row["clips_per_s"] > 0 and row["share_of_peak"] > 0
    assert len(figures["hot_spots"]) == 10
    assert "SKIPPED" in (tmp_path / "tests.txt").read_text()
