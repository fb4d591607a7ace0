"""The paper's data sets by name, each read from its official layout."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

from pevl_cli.data.manifest import Manifest
from pevl_cli.data.sets.disk import Disk
from pevl_cli.data.sets.diving48 import read_diving48
from pevl_cli.data.sets.finegym import read_finegym
from pevl_cli.data.sets.haa500 import read_haa500
from pevl_cli.data.sets.kinetics400 import read_kinetics400
from pevl_cli.data.sets.smarthome import read_smarthome

READERS: dict[str, Callable[[Disk], Manifest]] = {
    "gym99": partial(read_finegym, which="gym99", version="v1.0"),
    "gym99-v1.1": partial(read_finegym, which="gym99", version="v1.1"),
    "gym288": partial(read_finegym, which="gym288", version="v1.0"),
    "gym288-v1.1": partial(read_finegym, which="gym288", version="v1.1"),
    "diving48": read_diving48,
    "haa500": read_haa500,
    "smarthome-cs": partial(read_smarthome, protocol="CS"),
    "smarthome-cv1": partial(read_smarthome, protocol="CV1"),
    "smarthome-cv2": partial(read_smarthome, protocol="CV2"),
    "kinetics400": read_kinetics400,
}
ALIASES = {"finegym": "gym99", "finegym-v1.1": "gym99-v1.1", "smarthome": "smarthome-cs"}


def known_name(name_or_path: str | Path) -> str | None:
    """The key in READERS of a name or alias, in any case; None for other names and paths."""
    name = str(name_or_path).lower()
    name = ALIASES.get(name, name)
    return name if name in READERS else None


def read_named(name: str, root: Path) -> Manifest:
    """Read a data set, a key of READERS, in the folder ``root``.

    PevlError for an official list that is missing or in another format.
    """
    return READERS[name](Disk(root))
