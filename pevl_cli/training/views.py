"""Views of the training clips for a frozen stem: prepared before the first step, then removed."""

from __future__ import annotations

import shutil

from lightning_fabric import Fabric

from pevl_cli.data.augmentation import Augmentation
from pevl_cli.data.clips import GIBIBYTE, Clips
from pevl_cli.data.observations import Observations, observe_clips
from pevl_cli.model.mini.stem import frozen_network
from pevl_cli.model.pevl import PeVL
from pevl_cli.training.progress import Event, Listener
from pevl_cli.training.settings import TrainSettings

FOLDER = "views"  # in the run's folder


def prepare_views(
    model: PeVL,
    clips: Clips,
    augmentation: Augmentation,
    settings: TrainSettings,
    fabric: Fabric,
    uses: int,
    workers: int,
    listener: Listener,
) -> Observations | None:
    """`data.variations` views of each clip, as the frozen stem of a model sees them.

    ``uses``: how often training uses a clip, summed over all clips. None where a new view at each
    use is possible or no dearer: for a model without a frozen stem, for few uses, for several
    processes; and where the disk has no room.
    """
    data, config = settings.data, model.config
    rare = uses <= data.variations * len(clips)
    if not config.video or frozen_network(model.visual.conv1) is None or fabric.world_size > 1:
        return None
    if not data.variations or rare:
        return None
    model.eval()
    try:
        return observe_clips(
            clips,
            augmentation,
            lambda batch: model.observe(batch.to(fabric.device)),
            settings.folder / FOLDER,
            data.variations,
            settings.run.seed,
            workers,
            data.cache_gb * GIBIBYTE,
            lambda done, total: listener(Event("preparing", done, total)),
        )
    except OSError:
        return None


def remove_views(settings: TrainSettings) -> None:
    """Remove what `prepare_views` wrote."""
    shutil.rmtree(settings.folder / FOLDER, ignore_errors=True)
