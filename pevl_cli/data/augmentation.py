"""TODO."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field


class Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Augmentation(Section):
    """Random variations of a training clip; strengths are the largest changes drawn.

    Of these the paper's models use the mirror and the shift (it names none); `PRESETS` switches the
    others on.
    """

    mirror: bool = True
    shift: float = Field(0.05, ge=0)  # of the view's side
    scale: float = Field(0.0, ge=0)  # of the logarithm
    turn_deg: float = Field(0.0, ge=0)
    shortest: float = Field(1.0, gt=0, le=1)  # part of the clip's time that is kept at least
    brightness: float = Field(0.0, ge=0)
    contrast: float = Field(0.0, ge=0)
    colour: float = Field(0.0, ge=0)
    grey: float = Field(0.0, ge=0, le=1)  # probability
    erase: float = Field(0.0, ge=0, le=1)  # probability of a blank rectangle
    joint_noise: float = Field(0.0, ge=0)  # standard deviation, of the view's side
    joint_dropout: float = Field(0.0, ge=0, le=1)  # probability, each joint and frame
    stream_dropout: float = Field(0.0, ge=0, le=0.5)  # of losing the video, and of losing the pose
