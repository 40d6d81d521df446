import os
import subprocess
from pathlib import Path

import pytest
from processes import run_cli

import rfdetr_edge
from rfdetr_edge.commands import EXTRAS, install_hint


def contribute(folder, body):
    """A package on the search path that contributes `hello`, as pip would install it."""
    (folder / "greeter.py").write_text(
        "from rfdetr_edge.commands import Command\n"
        f"def run(arguments):\n    {body}\n"
        "hello = Command('hello', 'says hello', lambda p: p.add_argument('--name'), run)\n"
    )
    info = folder / "greeter-1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: greeter\nVersion: 1\n")
    (info / "entry_points.txt").write_text("[rfdetr_edge.commands]\nhello = greeter:hello\n")
    return {"PYTHONPATH": f"{folder}{os.pathsep}{Path(rfdetr_edge.__file__).parents[1]}"}


def test_other_packages_contribute_commands_by_entry_point(tmp_path):
    env = contribute(tmp_path, "print('hello', arguments.name); return 3")
    done = run_cli("hello", "--name", "edge", env=env, stdout=subprocess.PIPE)
    assert (done.returncode, done.stdout) == (3, "hello edge\n")
    assert "says hello" in run_cli("--help", env=env, stdout=subprocess.PIPE).stdout


def test_a_command_without_its_library_names_the_extra(tmp_path):
    env = contribute(tmp_path, "import sys; sys.modules['torch'] = None; import torch")
    done = run_cli("hello", env=env, stdout=subprocess.PIPE)
    assert done.returncode == 1
    assert done.stderr.splitlines() == [
        "rfdetr-edge: error: torch is not installed: pip install 'rfdetr-edge[export]'"
    ]
    assert "says hello" in run_cli("hello", "--help", env=env, stdout=subprocess.PIPE).stdout


@pytest.mark.parametrize("module", EXTRAS)
def test_every_known_library_has_its_extra_named(module):
    hint = install_hint(ModuleNotFoundError(name=module))
    assert f"{module} is not installed" in hint
    assert f"'rfdetr-edge[{EXTRAS[module]}]'" in hint


def test_a_module_of_our_own_that_is_missing_is_no_matter_of_extras():
    assert install_hint(ModuleNotFoundError(name="rfdetr_edge.gone")) is None
