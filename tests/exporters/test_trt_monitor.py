"""How far a build is, and on what machine."""

from pathlib import Path

import pytest

from exporters.trt import device as devices
from exporters.trt.device import Device, device
from exporters.trt.monitor import Phases
from rfdetr_edge.cuda.driver import Driver, Gpu
from rfdetr_edge.errors import BackendUnavailable
from rfdetr_edge.progress import Progress


class _Counted(Progress):
    """Counts the thousandths that the line has come to."""

    def __init__(self) -> None:
        super().__init__("building", 1000)
        self.count = 0

    def advance(self) -> None:
        self.count += 1


def test_a_phase_is_one_step_of_its_parent() -> None:
    line = _Counted()
    phases = Phases(line)
    phases.start("build", None, 4)
    phases.advance("build", 0)
    assert line.count == 250
    phases.start("time", "build", 10)
    phases.advance("time", 4)
    assert line.count == 250 + 125
    phases.start("kernels", "time", 2)
    phases.advance("kernels", 0)
    assert line.count == round(1000 * (1 + 0.55) / 4)
    phases.finish("kernels")
    phases.finish("time")
    phases.advance("build", 1)
    assert line.count == 500


def test_a_line_never_goes_back_nor_beyond_its_end() -> None:
    line = _Counted()
    phases = Phases(line)
    phases.start("build", None, 2)
    phases.advance("build", 0)
    phases.start("again", "build", 0)  # of steps that are not known
    phases.advance("again", 7)
    assert line.count == 1000
    phases.finish("again")
    phases.advance("build", 0)
    phases.advance("never begun", 3)
    assert line.count == 1000


@pytest.mark.parametrize(
    ("text", "version"),
    [
        ("NVRM version: NVIDIA UNIX x86_64 Kernel Module  580.65.06  Sun Jul 27", "580.65.06"),
        ("NVRM version: NVIDIA UNIX Open Kernel Module for aarch64  540.4.0  Release", "540.4.0"),
        ("something else", None),
        (None, None),
    ],
)
def test_the_driver_tells_its_version_where_it_does(
    text: str | None, version: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if text is not None:
        (tmp_path / "version").write_text(text)
    monkeypatch.setattr(devices, "_VERSION", tmp_path / "version")
    gpus = (Gpu("Orin", "87", True), Gpu("other", "75", False))
    monkeypatch.setattr(devices, "probe_driver", lambda: Driver("12.6", gpus))
    assert device() == Device("Orin", "87", "12.6", version)


def test_there_is_no_device_without_a_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    def none() -> None:
        raise BackendUnavailable("there is no NVIDIA driver here")

    monkeypatch.setattr(devices, "probe_driver", none)
    assert device() is None
