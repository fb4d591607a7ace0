"""How strongly training clips are varied."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field


class Section(BaseModel):
    """A part of the settings: frozen, and without unknown fields."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Augmentation(Section):
    """Strengths of the random variations of a training clip, drawn evenly from [-s, s] for s.

    The paper names none. Our configs of its models mirror and shift; the other ones are switched on
    by the configs that need them.
    """

    mirror: bool = True  # half of the clips
    shift: float = Field(0.05, ge=0)  # in sides of the view
    scale: float = Field(0.0, ge=0)  # of the logarithm of the size
    turn_deg: float = Field(0.0, ge=0)
    shortest: float = Field(1.0, gt=0, le=1)  # at least this share of the clip's time is shown
    brightness: float = Field(0.0, ge=0)  # of the factor to all values, around 1
    contrast: float = Field(0.0, ge=0)  # of the factor to the distance from the mean value
    colour: float = Field(0.0, ge=0)  # of the factor to the distance from grey
    grey: float = Field(0.0, ge=0, le=1)  # probability of no colour
    erase: float = Field(0.0, ge=0, le=1)  # probability of a blank rectangle
    joint_noise: float = Field(0.0, ge=0)  # standard deviation, in sides of the view
    joint_dropout: float = Field(0.0, ge=0, le=1)  # probability, of each joint in each frame
    # Probability that the clip has no video, and as much that it has no pose.
    stream_dropout: float = Field(0.0, ge=0, le=0.5)
