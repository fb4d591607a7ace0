"""Fixed choices that both the settings and the command line offer.

Imports the standard library only, so that `pevl --help` is quick.
"""

from __future__ import annotations

from typing import Literal

Precision = Literal["auto", "fp32", "bf16", "fp16"]
Crop = Literal["full", "follow"]
HoldOut = Literal["group", "random"]
Split = Literal["train", "val", "test"]
Recipe = Literal["own", "paper"]
Tracker = Literal["tensorboard", "csv", "wandb", "mlflow", "none"]
