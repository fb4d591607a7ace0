"""Settings of the random augmentation of training clips."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field


class Section(BaseModel):
    """Base of all settings: frozen, and unknown fields are an error."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Augmentation(Section):
    """Strength of each random augmentation: a strength s draws a value uniformly from [-s, s].

    The paper gives none. The configs of its models only mirror and shift; other configs switch on
    more.
    """

    mirror: bool = True  # mirror half of the clips
    shift: float = Field(0.05, ge=0)  # as a share of the view's side
    scale: float = Field(0.0, ge=0)  # of the logarithm of the scale factor
    turn_deg: float = Field(0.0, ge=0)  # rotation in degrees
    shortest: float = Field(1.0, gt=0, le=1)  # minimum share of the clip's duration that is shown
    brightness: float = Field(0.0, ge=0)  # of the factor of all values, around 1
    contrast: float = Field(0.0, ge=0)  # of the factor of the distance from the mean value
    colour: float = Field(0.0, ge=0)  # of the factor of the distance from grey
    grey: float = Field(0.0, ge=0, le=1)  # probability of a grey clip
    erase: float = Field(0.0, ge=0, le=1)  # probability of a blank rectangle
    # Of the logarithm of the ratio of width to height: a body seen from another side is narrower.
    aspect: float = Field(0.0, ge=0)
    warp: float = Field(0.0, ge=0, lt=1)  # of the speed, around 1, which changes within a clip
    joint_noise: float = Field(0.0, ge=0)  # standard deviation, as a share of the view's side
    joint_shift: float = Field(0.0, ge=0)  # the same for a joint's shift in all frames
    joint_dropout: float = Field(0.0, ge=0, le=1)  # probability per joint and frame
    limb_dropout: float = Field(0.0, ge=0, le=1)  # probability per limb, in all frames
    frame_dropout: float = Field(0.0, ge=0, le=1)  # probability that a frame has no joints
    # Probability that the video is removed; the pose is removed with the same probability.
    stream_dropout: float = Field(0.0, ge=0, le=0.5)
