"""Looks at the installation and says what is wrong with it and which command mends it.

Two things break silently: two pip packages that unpack into one folder (opencv-python beside
opencv-python-headless, onnxruntime beside onnxruntime-gpu), and a pip copy of either library in a
folder before the system's own, which on a Jetson is the one that knows its GPU. Returns data,
prints nothing.
"""

import importlib
import platform
import re
import sys
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, distributions, version
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Literal

import numpy as np

from rfdetr_edge import demo
from rfdetr_edge.commands import EXTRAS
from rfdetr_edge.cuda.driver import probe_driver
from rfdetr_edge.detector import Detector
from rfdetr_edge.engine_record import MODULES
from rfdetr_edge.errors import ArtifactError, BackendUnavailable, RFDETREdgeError

Level = Literal["ok", "absent", "wrong"]

# distributions that unpack into one folder, the most capable first: at most one can be installed
OPENCV = (
    "opencv-contrib-python-headless",
    "opencv-contrib-python",
    "opencv-python",
    "opencv-python-headless",
)
ONNXRUNTIME = (
    "onnxruntime-gpu",
    "onnxruntime-openvino",
    "onnxruntime-directml",
    "onnxruntime-qnn",
    "onnxruntime",
)

_REINSTALL = "pip install --force-reinstall rfdetr-edge"


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of the report.

    level: "ok"; "absent" for an extra that is not installed, which is no fault; "wrong" else.
    fix: the command or step that mends it, None where nothing needs to be done.
    """

    level: Level
    subject: str
    detail: str
    fix: str | None = None


def examine() -> list[Finding]:
    """Everything worth knowing about this installation; nothing is changed."""
    installed = _installed()
    # what runs an artifact: that one of the two is missing is no fault where the other is there
    engines = any(map(_is_there, MODULES.values()))
    return [
        Finding("ok", "Python", f"{platform.python_version()} on {platform.platform()}"),
        Finding("ok", "NumPy", np.__version__),
        _onnxruntime(installed, needed=not engines),
        *doubled_distributions("ONNX Runtime", ONNXRUNTIME, installed),
        *hidden_copies("ONNX Runtime", "onnxruntime", ONNXRUNTIME, sys.path, installed),
        _opencv(installed),
        *doubled_distributions("OpenCV", OPENCV, installed),
        *hidden_copies("OpenCV", "cv2", OPENCV, sys.path, installed),
        *_extras(),
        *_tensorrt(),
        _embedded(needed=not engines),
    ]


def doubled_distributions(
    subject: str, rivals: Sequence[str], installed: Mapping[Path, Collection[str]]
) -> list[Finding]:
    """A finding for each folder with several of the rivals, which are given best first.

    installed: folder -> names of the distributions in it.
    """
    findings = []
    for names in installed.values():
        present = [name for name in rivals if name in names]
        if len(present) > 1:
            # they share files, so removing one leaves the other in pieces: all go, one comes back
            findings.append(
                Finding(
                    "wrong",
                    subject,
                    f"{' and '.join(present)} overwrite each other's files",
                    f"pip uninstall -y {' '.join(present)} && pip install {present[0]}",
                )
            )
    return findings


def hidden_copies(
    subject: str,
    module: str,
    rivals: Sequence[str],
    search_path: Sequence[str],
    installed: Mapping[Path, Collection[str]],
) -> list[Finding]:
    """A finding when a pip copy of the module stands before another one on the search path.

    installed: folder -> names of the distributions in it. A copy without one was not put in front
    by pip, but by somebody who wants it there.
    """
    folders = dict.fromkeys(Path(entry).resolve() for entry in search_path if entry)
    copies = [folder for folder in folders if _holds(folder, module)]
    if len(copies) < 2:
        return []
    present = [name for name in rivals if name in installed.get(copies[0], ())]
    if not present:
        return []
    return [
        Finding(
            "wrong",
            subject,
            f"the pip copy in {copies[0]} hides the one in {copies[1]}",
            f"pip uninstall -y {' '.join(present)}",
        )
    ]


def _installed() -> dict[Path, set[str]]:
    """Folder -> names of the distributions in it."""
    found: dict[Path, set[str]] = {}
    for distribution in distributions():
        if "Name" in distribution.metadata:  # absent in what a broken uninstall leaves behind
            folder = Path(str(distribution.locate_file(""))).resolve()
            found.setdefault(folder, set()).add(_normalised(distribution.metadata["Name"]))
    return found


def _holds(folder: Path, module: str) -> bool:
    return (folder / module / "__init__.py").is_file() or any(folder.glob(f"{module}*.so"))


def _normalised(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def _import(
    module: str, subject: str, rivals: Sequence[str], installed: Mapping[Path, Collection[str]]
) -> ModuleType | Finding:
    fix = f"pip install 'rfdetr-edge[{EXTRAS[module]}]'"
    try:
        library = importlib.import_module(module)
    except ModuleNotFoundError:
        return Finding("wrong", subject, "not installed", fix)
    except ImportError as error:  # a system library it links to is absent
        return Finding("wrong", subject, f"installed but does not load: {error}", fix)
    if library.__spec__ is None or library.__spec__.origin is None:
        # a folder without __init__.py, as removing one of two rivals leaves it
        names = {name for names in installed.values() for name in names}
        present = [name for name in rivals if name in names] or rivals[-1:]
        fix = f"pip install --force-reinstall --no-deps {present[0]}"
        return Finding("wrong", subject, "installed in pieces", fix)
    return library


def _onnxruntime(installed: Mapping[Path, Collection[str]], *, needed: bool) -> Finding:
    if not needed and not _is_there("onnxruntime"):
        fix = "pip install --no-deps onnxruntime, where .onnx artifacts shall run"
        return Finding("absent", "ONNX Runtime", "not installed; TensorRT runs engines", fix)
    module = _import("onnxruntime", "ONNX Runtime", ONNXRUNTIME, installed)
    if isinstance(module, Finding):
        return module
    providers = ", ".join(module.get_available_providers())
    return Finding("ok", "ONNX Runtime", f"{module.__version__}, built with {providers}")


def _opencv(installed: Mapping[Path, Collection[str]]) -> Finding:
    module = _import("cv2", "OpenCV", OPENCV, installed)
    if isinstance(module, Finding):
        return module
    return Finding("ok", "OpenCV", f"{module.__version__} from {module.__file__}")


def _extras() -> list[Finding]:
    """The extras beyond those that running needs, each by the libraries it brings."""
    findings = []
    for extra in ("tflite", "eval", "supervision", "export", "tflite-export", "train"):
        modules = [module for module, brought_by in EXTRAS.items() if brought_by == extra]
        missing = [module for module in modules if find_spec(module) is None]
        findings.append(
            Finding(
                "absent",
                f"extra {extra}",
                f"without {', '.join(missing)}",
                f"pip install 'rfdetr-edge[{extra}]', where wanted",
            )
            if missing
            else Finding("ok", f"extra {extra}", ", ".join(modules))
        )
    return findings


def _tensorrt() -> list[Finding]:
    """What running an engine takes. TensorRT is looked for and not imported.

    Without a driver it can take the process down.
    """
    try:
        driver = probe_driver()
    except BackendUnavailable as error:
        found = [Finding("absent", "NVIDIA driver", str(error))]
    else:
        gpus = ", ".join(f"{gpu.name} (sm_{gpu.sm})" for gpu in driver.gpus)
        found = [Finding("ok", "NVIDIA driver", f"CUDA up to {driver.cuda}, {gpus}")]
    wanted = "where engines shall run"
    for subject, modules, fix in (
        (
            "TensorRT",
            tuple(MODULES.values()),
            "JetPack and NVIDIA's packages bring it: make the venv with --system-site-packages, ",
        ),
        ("extra tensorrt", ("pycuda", "cuda.bindings"), "pip install 'rfdetr-edge[tensorrt]', "),
    ):
        present = [_versioned(module) for module in modules if _is_there(module)]
        if present:
            found.append(Finding("ok", subject, ", ".join(present)))
        else:
            missing = " and ".join(modules)
            found.append(Finding("absent", subject, f"without {missing}", fix + wanted))
    return found


def _is_there(module: str) -> bool:
    """Whether it can be found, without importing it; of `cuda.bindings` the namespace is."""
    try:
        return find_spec(module) is not None
    except ModuleNotFoundError:  # its parent is not there
        return False


def _versioned(module: str) -> str:
    """The name of an installed module with the version that its distribution tells."""
    distribution = {"cuda.bindings": "cuda-bindings"}.get(module, module)
    try:
        return f"{distribution} {version(distribution)}"
    except PackageNotFoundError:  # put there by something else than pip
        return distribution


def _embedded(*, needed: bool) -> Finding:
    if not needed and not _is_there("onnxruntime"):
        return Finding("absent", "embedded model", "needs ONNX Runtime")
    try:
        photo = demo.photo_paths()[0]
        with Detector(demo.model_path()) as detector:
            count = len(detector.predict(photo))
            provider = detector.provider
    except RFDETREdgeError as error:
        # other errors say themselves what to install
        fix = _REINSTALL if isinstance(error, ArtifactError) else None
        return Finding("wrong", "embedded model", str(error), fix)
    if count == 0:
        nothing = f"{provider} finds nothing on {photo.name}"
        return Finding("wrong", "embedded model", nothing, _REINSTALL)
    return Finding("ok", "embedded model", f"{count} detections on {photo.name} with {provider}")
