"""The parts of the network, as the names of layers tell them in every format."""

import re

_NUMBERED = re.compile(r"\d$")


def block_of(layer: str) -> str:
    """The part of the network that a layer belongs to: its name up to the first number."""
    parts = layer.split("/")
    for end, part in enumerate(parts, start=1):
        if _NUMBERED.search(part):
            return "/".join(parts[:end])
    return layer
