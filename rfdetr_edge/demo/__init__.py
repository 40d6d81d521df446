"""The embedded models, one a task, and photos that training never saw.

The card beside each artifact says what it was trained on and how well it does.
"""

from collections.abc import Mapping
from pathlib import Path

from rfdetr_edge.errors import ArtifactError
from rfdetr_edge.variants import Task

EMBEDDED: Mapping[Task, str] = {
    "detection": "tiny",
    "segmentation": "seg-tiny",
    "keypoint": "keypoint-tiny",
}
"""The artifact of a task, by its name without suffix: blood cells; metal parts, with their masks or
their keypoints."""

_FOLDER = Path(__file__).parent


def model_path(task: Task = "detection") -> Path:
    """The embedded artifact of a task. Raises ArtifactError where the installation lacks it."""
    path = _FOLDER / f"{EMBEDDED[task]}.onnx"
    if not path.is_file():
        raise ArtifactError(
            f"there is no embedded artifact {path.name} in {_FOLDER}: install rfdetr-edge again, "
            "or name an artifact with --model"
        )
    return path


def photo_paths(task: Task = "detection") -> list[Path]:
    """The task's embedded photos, in the order of their names: blood cells, or metal parts.

    Raises ArtifactError where the installation lacks them.
    """
    folder = _FOLDER / ("cells" if task == "detection" else "parts")
    paths = sorted(folder.glob("*.jpg"))
    if not paths:
        raise ArtifactError(f"{folder} has no photos: install rfdetr-edge again")
    return paths
