"""What a subcommand of `rfdetr-edge` is, and how other packages contribute theirs.

A package names a module-level Command under the entry point group `rfdetr_edge.commands`. The
module that holds it imports nothing heavy at its top, so that `--help` answers without its extra;
the runtime imports none of these packages itself.
"""

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import entry_points

GROUP = "rfdetr_edge.commands"

# importable name -> extra that installs it; one line and exit 1 instead of a traceback
EXTRAS = {
    "cv2": "opencv",
    "onnxruntime": "onnx",
    "ai_edge_litert": "tflite",
    "pycocotools": "eval",
    "supervision": "supervision",
    "onnx": "export",
    "torch": "export",
    "litert_torch": "tflite-export",
    "litert_quantizer": "tflite-export",
    "pytorch_lightning": "train",
    "pydantic": "train",
    "scipy": "train",
    "matplotlib": "train",
    "roboflow": "roboflow",
    "yaml": "eval",
}


@dataclass(frozen=True, slots=True)
class Command:
    """One subcommand: its arguments, and the function that gets them parsed.

    run: returns the exit code. It raises RFDETREdgeError for what the user can mend, and may let
        the ModuleNotFoundError of a library in `EXTRAS` through.
    """

    name: str
    help: str
    add_arguments: Callable[[argparse.ArgumentParser], None]
    run: Callable[[argparse.Namespace], int]


def contributed() -> list[Command]:
    """The commands of installed packages, in the order of their names."""
    commands: list[Command] = [point.load() for point in entry_points(group=GROUP)]
    return sorted(commands, key=lambda command: command.name)


def install_hint(error: ModuleNotFoundError) -> str | None:
    """One line that says which extra brings the missing library; None for any other module."""
    if error.name not in EXTRAS:
        return None
    return f"{error.name} is not installed: pip install 'rfdetr-edge[{EXTRAS[error.name]}]'"
