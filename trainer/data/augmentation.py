"""What a user can say about augmentation: plain values under the field's transform names.

`aug_config` maps transforms to their parameters, `{"HorizontalFlip": {"p": 0.5}}`, or names a
preset; {} is nothing, and None is `DEFAULT`. `trainer/data/transforms.py` carries it out.
"""

import difflib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, Field, ValidationError

from rfdetr_edge.errors import InputError
from rfdetr_edge.yaml_file import read_yaml

Share = Annotated[float, Field(ge=0, le=1, strict=True)]
Sigma = Annotated[float, Field(gt=0, le=100, strict=True)]


class Chance(BaseModel, extra="forbid", frozen=True):
    """p: how often it happens, 0 to 1."""

    p: Share = 0.5


class ScaleCrop(Chance, frozen=True):
    """A window of the image's own aspect ratio, so that squashing stretches it as at test time.

    scale: its width as shares of the image's, from and to. aspect_jitter: its height varies by up
    to this exponent of e. An image that a turn made upright or lying is always cropped.
    """

    scale: tuple[Share, Share] = (0.5, 1.0)
    aspect_jitter: Share = 0.0


class Blur(Chance, frozen=True):
    """sigma_limit: standard deviation in pixels, from and to."""

    sigma_limit: tuple[Sigma, Sigma] = (0.5, 3.0)


class ColourJitter(Chance, frozen=True):
    """Largest changes to both sides. brightness: added, as a share of white. contrast, saturation,
    channel_gain: factors about 1 of the distance to mid-grey, to the pixel's grey, and of each of
    red, green and blue alone."""

    brightness: Share = 0.2
    contrast: Share = 0.2
    saturation: Share = 0.2
    channel_gain: Share = 0.0


class Augmentation(BaseModel, extra="forbid", frozen=True):
    """One field a transform, in the order of execution; one that never happens has p = 0.

    Names are Albumentations', but for CopyPaste (trainer/data/paste.py) and RandomScaleCrop.
    """

    CopyPaste: Chance = Chance(p=0)
    HorizontalFlip: Chance = Chance(p=0)
    VerticalFlip: Chance = Chance(p=0)
    Transpose: Chance = Chance(p=0)
    RandomRotate90: Chance = Chance(p=0)
    RandomScaleCrop: ScaleCrop = ScaleCrop(p=0)
    GaussianBlur: Blur = Blur(p=0)
    ColorJitter: ColourJitter = ColourJitter(p=0)


DEFAULT = Augmentation(HorizontalFlip=Chance(p=0.5))

PRESETS: Mapping[str, Any] = read_yaml(Path(__file__).parents[1] / "recipes/augmentations.yaml")


def read_augmentation(value: Any) -> Augmentation:
    """The augmentation meant by a preset's name, or by transforms with their parameters.

    Raises InputError for an unknown name, with those that are near or known, and for a bad value.
    """
    if isinstance(value, str):
        if value not in PRESETS:
            raise InputError(f"aug_config has no preset {value!r}; {advice(value, PRESETS)}")
        value = PRESETS[value]
    if not isinstance(value, Mapping | Augmentation):
        raise InputError(f"aug_config must be a preset or map transforms to values, not {value!r}")
    try:
        return Augmentation.model_validate(value)
    except ValidationError as error:
        fault = error.errors()[0]
    *path, last = (str(part) for part in fault["loc"])
    place = ".".join((*path, last))
    if fault["type"] != "extra_forbidden":
        raise InputError(f"aug_config {place}: {fault['msg']}; it is {fault['input']!r}")
    owner = type(Augmentation.model_fields[path[0]].default) if path else Augmentation
    raise InputError(f"aug_config has no {place}; {advice(last, owner.model_fields)}")


def advice(name: str, known: Iterable[str]) -> str:
    """What to write instead of an unknown name."""
    near = difflib.get_close_matches(name, known, n=3)
    return f"did you mean {' or '.join(near)}?" if near else f"it knows {', '.join(known)}"
