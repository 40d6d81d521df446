"""Settings of every test run, and real photos as a small data set."""

import io
import json
import os
import shutil
from collections.abc import Callable, Generator
from pathlib import Path
from types import SimpleNamespace
from typing import TypeVar

import pytest
from hypothesis import settings

from rfdetr_edge import demo

# No deadline: a shared machine is slow at random. Derandomised: the same examples in every run.
settings.register_profile("repository", deadline=None, derandomize=True, max_examples=60)
settings.load_profile("repository")

Report = TypeVar("Report", pytest.TestReport, pytest.CollectReport)


def pytest_addoption(parser: pytest.Parser) -> None:
    """--without: for an environment without some of the extras."""
    parser.addoption(
        "--without",
        action="append",
        default=[],
        metavar="LIBRARY",
        help="let tests skip that need this library (repeatable)",
    )


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item,
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """A test that skips itself."""
    return _judged((yield), item.config)


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(
    collector: pytest.Collector,
) -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    """A file that skips itself, by `importorskip` at its top."""
    return _judged((yield), collector.config)


def _judged(report: Report, config: pytest.Config) -> Report:
    """A skip is a failure, so that no check is lost unseen, but for what no pip can bring."""
    if report.skipped:
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
        reason = reason.removeprefix("Skipped: ")
        left_out = (f"could not import '{library}" for library in config.getoption("--without"))
        if not reason.startswith(("no GPU", "no javac", *left_out)):
            report.outcome = "failed"
            report.longrepr = (
                f"{reason}\nOnly a missing GPU or javac may skip a test (or --without LIBRARY)."
            )
    return report


PHOTOS = Path(__file__).parent / "photos.coco.json"


def _write_split(folder: Path, document: dict) -> Path:
    folder.mkdir(parents=True)
    for path in demo.photo_paths():
        shutil.copy(path, folder)
    (folder / "_annotations.coco.json").write_text(json.dumps(document))
    return folder


@pytest.fixture
def write_split() -> Callable[[Path, dict], Path]:
    """Writes one split: the annotation file and the three embedded photos."""
    return _write_split


class Terminal(io.StringIO):
    """What a program writes to a terminal."""

    def isatty(self) -> bool:
        return True


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> Terminal:
    """Where progress shows, and at once, instead of on stderr."""
    for name, seconds in {"_DELAY": 0.0, "_INTERVAL": 0.0, "_TICK": 0.001}.items():
        monkeypatch.setattr(f"rfdetr_edge.progress.{name}", seconds)
    shown = Terminal()
    monkeypatch.setattr("rfdetr_edge.progress.sys", SimpleNamespace(stderr=shown))
    return shown


@pytest.fixture
def photos() -> dict:
    """The COCO document of the three embedded photos: their 36 boxes of BCCD's test split."""
    return json.loads(PHOTOS.read_text())


@pytest.fixture(scope="session")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data set whose train and valid splits are the three embedded photos."""
    root = tmp_path_factory.mktemp("dataset")
    for split in ("train", "valid"):
        _write_split(root / split, json.loads(PHOTOS.read_text()))
    return root


@pytest.fixture(scope="session")
def onnx2tf_python() -> Path:
    """The interpreter of the real onnx2tf."""
    built = Path(__file__).parents[1] / ".venv-onnx2tf" / "bin" / "python"
    found = Path(os.environ.get("ONNX2TF_PYTHON", built))
    if not found.exists():
        pytest.skip("no onnx2tf: run `make onnx2tf-venv`, or set ONNX2TF_PYTHON")
    return found
