"""The towers of a config: CLIP's, SigLIP 2's or Perception Encoder's."""

from __future__ import annotations

from pevl_cli.model.clip import TextTower, VisualTower
from pevl_cli.model.config import ModelConfig
from pevl_cli.model.mini.word_tower import WordTower
from pevl_cli.model.pooled_tower import PooledTower
from pevl_cli.model.siglip_text import SigLIPTextTower

ImageTower = VisualTower | PooledTower


def make_image_tower(config: ModelConfig) -> ImageTower:
    """The image tower, with random weights."""
    return VisualTower(config) if config.tower == "clip" else PooledTower(config)


def make_text_tower(config: ModelConfig) -> TextTower | SigLIPTextTower | WordTower:
    """The text tower, with random weights; Perception Encoder's is built as CLIP's."""
    if config.tokenizer == "pieces":
        return WordTower(config)
    return SigLIPTextTower(config) if config.tower == "siglip" else TextTower(config)
