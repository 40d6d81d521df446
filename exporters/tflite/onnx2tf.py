"""onnx2tf, run as a program in a virtual environment of its own: an ONNX graph becomes a `.tflite`.

It needs Python 3.12 and pins that exclude ours, so it is never imported. Used is its direct backend
alone, which needs no TensorFlow, and of what that writes the file in FP32.
"""

import os
import re
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import onnx

from rfdetr_edge.errors import ArtifactError, InputError

_OLDEST = (2, 6)  # the first with the direct backend as it is used here
_MAKE_ONE = "make such an environment with `make onnx2tf-venv`"
_ASK = "from importlib.metadata import version; print(version('onnx2tf'))"
_COLOURS = re.compile(r"\x1b\[[0-9;]*m")
_NAMED_LINES = 3
# they would have it import what is installed here
_OURS = frozenset({"PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV"})


@dataclass(frozen=True, slots=True)
class Onnx2tf:
    """python: the absolute path of an interpreter that has it. version: as it says itself."""

    python: Path
    version: str

    def __str__(self) -> str:
        return f"onnx2tf {self.version}"


def find_onnx2tf(python: Path | None) -> Onnx2tf:
    """The converter of an interpreter.

    Raises InputError without one, and where its onnx2tf is too old.
    """
    if python is None:
        raise InputError(
            f"the converter of .onnx artifacts, onnx2tf, is not installed beside rfdetr-edge; "
            f"{_MAKE_ONE} and give --onnx2tf-python .venv-onnx2tf/bin/python"
        )
    python = python.absolute()  # not resolved: the link is what makes it that of its environment
    if not python.is_file():
        raise InputError(f"--onnx2tf-python {python} does not exist; {_MAKE_ONE}")
    asked = _run(python, ["-c", _ASK])
    found = re.match(r"(\d+)\.(\d+)", asked.stdout)
    if asked.returncode or found is None:
        raise InputError(f"{python} has no onnx2tf; {_MAKE_ONE}")
    onnx2tf = Onnx2tf(python, asked.stdout.strip())
    if tuple(map(int, found.groups())) < _OLDEST:
        oldest = ".".join(map(str, _OLDEST))
        raise InputError(f"{python} has {onnx2tf}, wanted is {oldest} or newer; {_MAKE_ONE}")
    return onnx2tf


def converted(model: onnx.ModelProto, onnx2tf: Onnx2tf) -> bytes:
    """A `.tflite` of the graph, in FP32; images are NHWC, names of inputs and outputs stay.

    Raises ArtifactError when it makes none.
    """
    with tempfile.TemporaryDirectory() as folder:
        # onnx2tf writes what it simplified over its source
        source, output = Path(folder) / "model.onnx", Path(folder) / "out"
        onnx.save(model, source)
        options = ["-i", str(source), "-o", str(output), "-tb", "flatbuffer_direct"]
        done = _run(onnx2tf.python, ["-m", "onnx2tf", *options], folder)
        made = output / "model_float32.tflite"
        if done.returncode == 0 and made.is_file():
            return made.read_bytes()
        raise ArtifactError(f"onnx2tf ({onnx2tf.python}) made no .tflite: {_reason(done)}")


def _run(
    python: Path, arguments: Sequence[str], folder: str | None = None
) -> subprocess.CompletedProcess[str]:
    """folder: where it works and keeps its own temporary files."""
    environment = {key: value for key, value in os.environ.items() if key not in _OURS}
    # it calls others of its environment, such as onnxsim, by their bare names, and without them
    # gives a file with operators that LiteRT does not have
    path = [str(python.parent), *filter(None, [environment.get("PATH")])]
    environment["PATH"] = os.pathsep.join(path)
    if folder is not None:
        environment["TMPDIR"] = folder
    try:
        return subprocess.run(
            [str(python), *arguments],
            cwd=folder,
            env=environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
        )
    except OSError as error:
        raise InputError(f"{python} cannot be run ({error.strerror}); {_MAKE_ONE}") from error


def _reason(done: subprocess.CompletedProcess[str]) -> str:
    """Why it ended, in its own last words."""
    if done.returncode < 0:
        return f"it was killed by signal {-done.returncode}, as happens when memory runs out"
    said = _COLOURS.sub("", done.stderr.strip() or done.stdout.strip())
    lines = [line.strip() for line in said.splitlines() if line.strip()]
    return "; ".join(lines[-_NAMED_LINES:]) or f"it ended with {done.returncode}, without a word"
