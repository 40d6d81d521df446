import json
import subprocess
import sys
from importlib.metadata import entry_points
from types import ModuleType

import pytest

import rfdetr_edge
from rfdetr_edge.cli import COMMANDS
from rfdetr_edge.commands import EXTRAS, GROUP

HEAVY = (
    "torch",
    "onnx",
    "onnxruntime",
    "ai_edge_litert",
    "cv2",
    "tensorrt",
    "tensorrt_rtx",
    "pycuda",
    "cuda",
    "PIL",
    "supervision",
    "urllib.request",
)


def loaded_by(statement: str) -> list[str]:
    """Modules that a fresh interpreter holds after a statement."""
    program = f"{statement}; import json, sys; print(json.dumps(list(sys.modules)))"
    done = subprocess.run(
        [sys.executable, "-c", program], check=True, capture_output=True, text=True, timeout=60
    )
    modules: list[str] = json.loads(done.stdout)
    return modules


def test_importing_the_runtime_loads_numpy_alone():
    loaded = loaded_by("import rfdetr_edge")
    assert "numpy" in loaded
    assert [name for name in HEAVY if name in loaded] == []


def test_the_session_for_tests_needs_no_executor():
    loaded = loaded_by("import rfdetr_edge.backends.fake")
    assert [name for name in HEAVY if name in loaded] == []


@pytest.mark.parametrize(
    "command",
    [
        *(command.name for command in COMMANDS),
        *sorted(point.name for point in entry_points(group=GROUP)),
    ],
)
def test_every_command_answers_help_with_the_onnx_extra_alone(command):
    without = sorted(name for name, extra in EXTRAS.items() if extra not in ("onnx", "opencv"))
    program = (
        f"import sys; sys.modules.update(dict.fromkeys({without})); "
        f"from rfdetr_edge.cli import main; main([{command!r}, '--help'])"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=60
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith(f"usage: rfdetr-edge {command}")


def test_all_lists_exactly_the_visible_names():
    visible = {
        name
        for name, value in vars(rfdetr_edge).items()
        if not name.startswith("_") and not isinstance(value, ModuleType)
    }
    assert visible | {"__version__"} == set(rfdetr_edge.__all__)
    assert rfdetr_edge.__all__ == sorted(rfdetr_edge.__all__)
