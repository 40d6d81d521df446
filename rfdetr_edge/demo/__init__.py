"""The embedded default: the `tiny` artifact and three photos that training never saw.

`MODEL_CARD.md` beside this file says what the artifact was trained on and how well it does.
"""

from pathlib import Path

from rfdetr_edge.errors import ArtifactError

_FOLDER = Path(__file__).parent


def model_path() -> Path:
    """The embedded artifact. Raises ArtifactError where the installation lacks it."""
    path = _FOLDER / "tiny.onnx"
    if not path.is_file():
        raise ArtifactError(
            f"the embedded artifact is missing from {_FOLDER}: install rfdetr-edge again, or name "
            "an artifact with --model"
        )
    return path


def photo_paths() -> list[Path]:
    """The embedded photos, in the order of their names. Raises ArtifactError where they lack."""
    paths = sorted(_FOLDER.glob("*.jpg"))
    if not paths:
        raise ArtifactError(f"{_FOLDER} has no photos: install rfdetr-edge again")
    return paths
