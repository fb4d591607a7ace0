"""A training run's folder: the files of its state, its settings and its facts."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import subprocess
import warnings
from contextlib import suppress
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
import yaml

from pevl_cli.cache import write_aside
from pevl_cli.data.manifest import Manifest
from pevl_cli.errors import PevlError
from pevl_cli.training.settings import TrainSettings

STATE, OLDER_STATE = "state.pt", "state.older.pt"
REPLACED_STATE = "state.replaced.pt"  # of a run in whose folder another one was begun
# Settings that may differ when a run is continued, as they change no weight.
FREE = {
    "run": {"device", "out", "tracker", "save_minutes"},
    "data": {"workers", "cache_gb", "check"},
}


def has_state(folder: Path) -> bool:
    """Whether there is a run to continue in a folder."""
    return any((folder / name).is_file() for name in (STATE, OLDER_STATE))


def save_state(folder: Path, state: dict[str, Any]) -> None:
    """Write a run's state; the one before it is kept as the older one, also if this fails."""
    target, older = folder / STATE, folder / OLDER_STATE
    with write_aside(target) as temporary:
        try:
            with temporary.open("wb") as file:
                torch.save(state, file)
                file.flush()
                os.fsync(file.fileno())  # first, so that a power cut loses neither
        except RuntimeError as error:  # torch's writer raises it for a full disk
            raise PevlError(
                f"{target}: the run's state cannot be written; is the disk full? "
                "The state saved before is kept: free some space, then use --resume."
            ) from error
        if target.exists():
            target.replace(older)


def archive_state(folder: Path) -> None:
    """Rename the state of an earlier run, so that a new one in its folder does not continue it."""
    (folder / OLDER_STATE).unlink(missing_ok=True)
    if (folder / STATE).exists():
        (folder / STATE).replace(folder / REPLACED_STATE)


def load_state(folder: Path) -> tuple[Path, dict[str, Any]]:
    """The newest state of a run that can be read, and its file; PevlError when there is none.

    A damaged one is renamed: the next save would otherwise replace the good older one by it.
    """
    for rest in folder.glob(f".{STATE}.*.tmp"):  # of a run that was killed while writing
        rest.unlink(missing_ok=True)
    problem = f"no {STATE}"
    for name in (STATE, OLDER_STATE):
        file = folder / name
        if not file.is_file():
            continue
        try:
            state = torch.load(file, map_location="cpu", weights_only=True)
        except Exception as error:  # torch raises many kinds for a damaged file
            problem = f"{name} is damaged: {str(error).splitlines()[0][:80]}"
            warnings.warn(f"{folder}: {problem}; trying the one before it", stacklevel=2)
            file.replace(file.with_suffix(".damaged"))
            continue
        return file, state
    raise PevlError(
        f"{folder}: no state of the run can be read ({problem}); start anew without --resume."
    )


def fixed_settings(settings: TrainSettings) -> dict[str, str]:
    """By dotted name, the settings that decide the weights: those a continued run must keep."""
    flat = {}
    for section, values in settings.model_dump(mode="json").items():
        if not isinstance(values, dict):
            flat[section] = str(values)
            continue
        for key, value in values.items():
            if key not in FREE.get(section, ()):
                flat[f"{section}.{key}"] = str(value)
    return flat


def data_hash(manifest: Manifest) -> str:
    """Hash of a data set: its clips by relative path, with labels and splits; and, after a hyphen,
    of the labels' texts.
    """
    root = manifest.source if manifest.source.is_dir() else manifest.source.parent
    digest = hashlib.blake2b(digest_size=8)
    for item in manifest.items:
        with suppress(ValueError):
            item = replace(item, path=item.path.relative_to(root))
        digest.update(repr(item).encode())
    texts = hashlib.blake2b(repr(manifest.labels).encode(), digest_size=4)
    return f"{digest.hexdigest()}-{texts.hexdigest()}"


def write_facts(folder: Path, settings: TrainSettings, facts: dict[str, object]) -> None:
    """Write settings.yaml, which --config takes again, and run.json: ``facts`` and versions."""
    with write_aside(folder / "settings.yaml") as temporary:
        temporary.write_text(
            yaml.safe_dump(settings.model_dump(mode="json"), sort_keys=False), encoding="utf-8"
        )
    about = {
        **facts,
        "python": platform.python_version(),
        "lightning_fabric": version("lightning-fabric"),
        "git": _git_state(),
        "settings": settings.model_dump(mode="json"),
    }
    with write_aside(folder / "run.json") as temporary:
        temporary.write_text(json.dumps(about, indent=1), encoding="utf-8")


def _git_state() -> str | None:
    """The commit that this code is of, "+" when changed; None outside a checkout."""
    root = Path(__file__).parents[2]
    if not (root / ".git").exists():
        return None
    try:
        done = subprocess.run(
            ["git", "-C", str(root), "describe", "--always", "--dirty=+", "--abbrev=12"],
            capture_output=True,
            text=True,
            timeout=10,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()
