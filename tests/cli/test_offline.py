"""The wheel in a new environment without a network: a new user's first minutes."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest
from conftest import REPOSITORY

from pevl_cli.data.manifest import read_manifest
from pevl_cli.weights import BUNDLED, BUNDLED_WEIGHTS, RECOMMENDED_WEIGHTS

# Every network call is refused, and logged to the file that CALLS names.
CUT = """
import os, socket
def refuse(*arguments, **_):
    with open(os.environ["CALLS"], "a") as file:
        print(arguments, file=file)
    raise OSError("the network is cut")
socket.socket.connect = socket.socket.connect_ex = socket.getaddrinfo = refuse
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation"]
    subprocess.run([*command, "-w", folder, REPOSITORY], check=True, capture_output=True)
    return next(folder.glob("*.whl"))


@pytest.fixture(scope="module")
def environment(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A new virtual environment: pevl from the wheel, its dependencies from where the tests run."""
    folder = tmp_path_factory.mktemp("new")
    subprocess.run([sys.executable, "-m", "venv", folder], check=True)
    python = folder / "bin" / "python"
    install = [python, "-m", "pip", "install", "--no-index", "--no-deps", wheel]
    subprocess.run(install, check=True, capture_output=True)
    site = next(folder.glob("lib/python*/site-packages"))
    paths = {sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}
    (site / "dependencies.pth").write_text("\n".join(sorted(paths)) + "\n")
    (site / "sitecustomize.py").write_text(CUT)
    return folder


def run(environment: Path, folder: Path, *arguments: object) -> subprocess.CompletedProcess[str]:
    home = folder / "home"
    home.mkdir(exist_ok=True)
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("PEVL", "YOLO", "PYTHON"))}
    unshare = ["unshare", "--map-root-user", "--net"]
    isolated = shutil.which("unshare") and not subprocess.run([*unshare, "true"]).returncode
    done = subprocess.run(
        [*(unshare if isolated else []), environment / "bin" / "pevl", *map(str, arguments)],
        env={**kept, "HOME": str(home), "CALLS": str(folder / "calls"), "OMP_NUM_THREADS": "2"},
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert not (folder / "calls").exists(), (folder / "calls").read_text()
    return done


@pytest.mark.slow
def test_the_demo_needs_nothing_from_outside(environment: Path, tmp_path: Path) -> None:
    done = run(environment, tmp_path, "demo", "--out", "demo")
    assert done.returncode == 0, done.stderr
    rows = [line for line in done.stdout.splitlines() if "│" in line]
    assert rows[0].startswith("│ 1 │ jumping_jack")
    assert "small bundled pose detector" in done.stderr and RECOMMENDED_WEIGHTS in done.stderr
    written = {str(f.relative_to(tmp_path)) for f in tmp_path.rglob("*") if f.is_file()}
    assert written == {"demo/demo.mp4", "demo/demo.png"}
    again = run(environment, tmp_path, "classify", "demo/demo.mp4", "--format", "json")
    assert again.returncode == 0, again.stderr
    assert json.loads(again.stdout)[0]["predictions"][0]["label"] == "jumping_jack"


@pytest.mark.slow
def test_real_clips_are_recognised(environment: Path, tmp_path: Path, shared: Path) -> None:
    items = read_manifest(shared / "data" / "field").in_split("val")
    wanted = ("workout_pullup", "workout_pushup", "yoga_corpse", "pickleball_serve")
    chosen = [next(i for i in items if i.label == label) for label in wanted]
    done = run(environment, tmp_path, "classify", *(i.path for i in chosen), "--format", "json")
    assert done.returncode == 0, done.stderr
    answers = json.loads(done.stdout)
    right = [a["predictions"][0]["label"] == i.label for a, i in zip(answers, chosen, strict=True)]
    assert sum(right) >= len(right) - 1, answers
    assert all(a["person"]["frames_seen"] > 40 for a in answers)


@pytest.mark.slow
def test_a_missing_model_is_reported_without_a_network(environment: Path, tmp_path: Path) -> None:
    listed = run(environment, tmp_path, "models")
    assert listed.returncode == 0 and "pevl-pose" in listed.stdout, listed.stderr
    for command in (
        ["models", "fetch", RECOMMENDED_WEIGHTS],
        ["demo", "--pose-weights", RECOMMENDED_WEIGHTS],
    ):
        done = subprocess.run(
            [environment / "bin" / "pevl", *command],
            env={**os.environ, "HOME": str(tmp_path), "CALLS": str(tmp_path / "calls")}
            | {"PEVL_CACHE": str(tmp_path / "cache")},
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=100,
        )
        message = done.stderr.strip()
        assert done.returncode in (1, 2) and message.startswith("error: "), done.stderr
        assert len(message.splitlines()) == 1 and RECOMMENDED_WEIGHTS in message


@pytest.mark.slow
def test_the_wheel_is_small_and_has_no_path_of_the_build_machine(wheel: Path) -> None:
    assert BUNDLED_WEIGHTS.stat().st_size <= 8e6
    mini = [f for f in (BUNDLED / "pevl-mini").iterdir() if f.is_file()]
    assert sum(f.stat().st_size for f in mini) <= 25e6
    assert (BUNDLED / "pevl-mini" / "README.md").is_file()
    assert BUNDLED_WEIGHTS.with_name("README.md").is_file()
    for file in (BUNDLED_WEIGHTS, *mini):
        content = file.read_bytes()
        if zipfile.is_zipfile(file):
            with zipfile.ZipFile(file) as archive:
                content = b"".join(archive.read(name) for name in archive.namelist())
        for part in (b"/work/", b"/root/", b"/home/", b"/tmp/"):
            assert part not in content, f"{file.name} holds {part!r}"
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    for file in (BUNDLED_WEIGHTS, *mini):
        assert f"pevl_cli/{file.relative_to(REPOSITORY / 'pevl_cli').as_posix()}" in names
