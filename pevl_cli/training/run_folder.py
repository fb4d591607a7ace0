"""The folder of a training run: files of its state, settings and metadata."""

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

from pevl_cli.cache import atomic_write
from pevl_cli.data.manifest import Manifest
from pevl_cli.errors import PevlError
from pevl_cli.training.settings import TrainSettings

STATE, OLDER_STATE = "state.pt", "state.older.pt"
ARCHIVED_STATE = "state.replaced.pt"  # state of an earlier run that a new run replaced
# Settings that may change when a run is continued: they do not change the weights.
CHANGEABLE_SETTINGS = {
    "run": {"device", "out", "tracker", "save_minutes"},
    "data": {"workers", "cache_gb", "check"},
}


def has_state(folder: Path) -> bool:
    """Whether a folder contains a run that can be continued."""
    return any((folder / name).is_file() for name in (STATE, OLDER_STATE))


def save_state(folder: Path, state: dict[str, Any]) -> None:
    """Write a run's state; keep the previous state as the older one, also if writing fails.

    PevlError when it cannot be written.
    """
    target, older = folder / STATE, folder / OLDER_STATE
    with atomic_write(target) as temporary:
        try:
            with temporary.open("wb") as file:
                torch.save(state, file)
                file.flush()
                os.fsync(file.fileno())  # before renaming, so that a power failure loses no state
        except RuntimeError as error:  # raised by torch for a full disk
            raise PevlError(
                f"{target}: the run's state cannot be written; is the disk full? "
                "The previous state is kept: free disk space, then continue with --resume."
            ) from error
        if target.exists():
            target.replace(older)


def archive_state(folder: Path) -> None:
    """Rename the state of an earlier run, so that a new run in the folder does not continue it."""
    (folder / OLDER_STATE).unlink(missing_ok=True)
    if (folder / STATE).exists():
        (folder / STATE).replace(folder / ARCHIVED_STATE)


def load_state(folder: Path) -> tuple[Path, dict[str, Any]]:
    """The newest readable state of a run, and its file. PevlError when there is none.

    A damaged state is renamed; otherwise the next save would replace the older state with it.
    """
    for temporary in folder.glob(f".{STATE}.*.tmp"):  # left by a killed run
        temporary.unlink(missing_ok=True)
    problem = f"no {STATE}"
    for name in (STATE, OLDER_STATE):
        file = folder / name
        if not file.is_file():
            continue
        try:
            state = torch.load(file, map_location="cpu", weights_only=True)
        except Exception as error:  # torch raises many kinds for a damaged file
            problem = f"{name} is damaged: {str(error).splitlines()[0][:80]}"
            warnings.warn(f"{folder}: {problem}; trying the previous state", stacklevel=2)
            file.replace(file.with_suffix(".damaged"))
            continue
        return file, state
    raise PevlError(
        f"{folder}: no state of the run can be read ({problem}); start a new run without --resume."
    )


def fixed_settings(settings: TrainSettings) -> dict[str, str]:
    """The settings that determine the weights, by dotted name; a continued run must keep them."""
    flat = {}
    for section, values in settings.model_dump(mode="json").items():
        if not isinstance(values, dict):
            flat[section] = str(values)
            continue
        for key, value in values.items():
            if key not in CHANGEABLE_SETTINGS.get(section, ()):
                flat[f"{section}.{key}"] = str(value)
    return flat


def data_hash(manifest: Manifest) -> str:
    """Hash of the clips (relative paths, labels, splits), a hyphen, hash of the label texts."""
    root = manifest.source if manifest.source.is_dir() else manifest.source.parent
    digest = hashlib.blake2b(digest_size=8)
    for item in manifest.items:
        with suppress(ValueError):
            item = replace(item, path=item.path.relative_to(root))
        digest.update(repr(item).encode())
    texts = hashlib.blake2b(repr(manifest.labels).encode(), digest_size=4)
    return f"{digest.hexdigest()}-{texts.hexdigest()}"


def write_facts(folder: Path, settings: TrainSettings, facts: dict[str, object]) -> None:
    """Write settings.yaml, which --config can read, and run.json: ``facts`` and versions."""
    with atomic_write(folder / "settings.yaml") as temporary:
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
    with atomic_write(folder / "run.json") as temporary:
        temporary.write_text(json.dumps(about, indent=1), encoding="utf-8")


def _git_state() -> str | None:
    """The git commit of this code, with "+" if changed; None outside a git checkout."""
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
