"""RF-DETR in PyTorch: the documented classes, loaded when they are named.

So that `rfdetr-edge train --help` and the settings need no torch.
"""

import importlib
from typing import Any

from rfdetr_edge.variants import VARIANTS

__all__ = ["RFDETR", *sorted(row.api_name for row in VARIANTS.values())]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'trainer' has no attribute {name!r}")
    api = importlib.import_module("trainer.rfdetr")
    return api.RFDETR if name == "RFDETR" else api.CLASSES[name]


def __dir__() -> list[str]:
    return [*__all__]
