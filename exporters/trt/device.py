"""The machine that builds, as the record of an engine has it."""

import re
from dataclasses import dataclass
from pathlib import Path

from rfdetr_edge.cuda.driver import probe_driver
from rfdetr_edge.errors import BackendUnavailable

_VERSION = Path("/proc/driver/nvidia/version")


@dataclass(frozen=True, slots=True)
class Device:
    """The first GPU. cuda: the newest that the driver runs. driver: None where nothing tells."""

    gpu: str
    sm: str
    cuda: str
    driver: str | None


def device() -> Device | None:
    """None without a driver that starts, or without a GPU."""
    try:
        found = probe_driver()
    except BackendUnavailable:
        return None
    first = found.gpus[0]
    return Device(first.name, first.sm, found.cuda, _driver_version())


def _driver_version() -> str | None:
    try:
        text = _VERSION.read_text(encoding="utf-8")
    except OSError:
        return None
    found = re.search(r"Kernel Module\s+(?:for \S+\s+)?(\d[\d.]+)", text)
    return found[1] if found else None
