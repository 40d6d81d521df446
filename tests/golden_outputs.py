"""The golden outputs of a network and what upstream finds in them (tests/golden/README.md)."""

import json
from pathlib import Path
from typing import Any

import numpy as np

from rfdetr_edge.keypoint_schema import KeypointSchema, numbered_schema
from rfdetr_edge.postprocess import RawOutputs

GOLDEN = np.load(Path(__file__).parent / "golden" / "postprocess.npz")
CASES: list[dict[str, Any]] = json.loads(str(GOLDEN["cases"]))
# our name of an output -> its name there
_ROLES = {"dets": "boxes", "labels": "logits", "masks": "masks", "keypoints": "keypoints"}


def raw_outputs(case: dict[str, Any]) -> RawOutputs:
    """Of all images of a case."""
    keys = {role: f"{case['name']}/in_{name}" for role, name in _ROLES.items()}
    return RawOutputs(**{role: GOLDEN[key] for role, key in keys.items() if key in GOLDEN})


def source_sizes(case: dict[str, Any]) -> list[tuple[int, int]]:
    """(height, width) of each image."""
    return [(height, width) for height, width in GOLDEN[f"{case['name']}/in_sizes"].tolist()]


def keypoint_schema(case: dict[str, Any]) -> KeypointSchema | None:
    """None of a case without keypoints."""
    return numbered_schema(case["schema"], case["trace_alpha"]) if case["schema"] else None
