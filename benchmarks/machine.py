"""What a machine says of itself; without it a figure means nothing.

A reader for each fact. Each gives None, or nothing, where this machine does not tell: no default
stands in for a fact. `root` is the folder of /proc and /sys, so that tests can bring their own.
"""

import os
import platform
import re
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rfdetr_edge.machine import ROOT, board, text_of, this_machine

_TIMEOUT = 10.0  # seconds that nvidia-smi may take; a first call loads the driver
_GPU_FIELDS = ("name", "driver_version", "memory.total")
_GPU_UNKNOWN = re.compile(r"\[.*\]|N/A|")  # what nvidia-smi says where it cannot tell


def machine(root: Path = ROOT) -> dict[str, Any]:
    """Every fact that this machine tells, as JSON."""
    facts: Mapping[str, Any] = {
        "board": board(root),
        "cpu": this_machine(root).cpu,
        "vector": list(this_machine(root).vector),
        "cores": os.cpu_count(),
        "physical_cores": physical_cores(root),
        "affinity": affinity(),
        "governor": governor(root),
        "frequency_mhz": frequency_mhz(root),
        "highest_frequency_mhz": highest_frequency_mhz(root),
        "memory_mb": memory_mb(root),
        "system": platform.platform(),
        "gpus": gpus(nvidia_smi(_GPU_FIELDS)),
    }
    return {name: fact for name, fact in facts.items() if fact is not None and fact != []}


def physical_cores(root: Path) -> int | None:
    """Cores, where /proc/cpuinfo says which of the logical ones share one."""
    fields = _cpuinfo(root)
    pairs = zip(fields.get("physical id", []), fields.get("core id", []), strict=False)
    return len(set(pairs)) or None


def affinity() -> list[int] | None:
    """The logical cores that this process may run on."""
    return sorted(os.sched_getaffinity(0)) if sys.platform == "linux" else None


def governor(root: Path) -> str | None:
    """What chooses the frequency of the cores, such as "performance"; several if they differ."""
    found = {text_of(path) for path in _frequencies(root, "scaling_governor")}
    return ", ".join(sorted(text.strip() for text in found if text)) or None


def frequency_mhz(root: Path) -> float | None:
    """The present frequency, mean over the cores; not the nominal one of /proc/cpuinfo."""
    found = _numbers(_frequencies(root, "scaling_cur_freq"))
    return sum(found) / len(found) / 1e3 if found else None


def highest_frequency_mhz(root: Path) -> float | None:
    """What the fastest core may reach."""
    found = _numbers(_frequencies(root, "scaling_max_freq"))
    return max(found) / 1e3 if found else None


def memory_mb(root: Path) -> float | None:
    """All memory of the machine."""
    match = re.search(r"^MemTotal:\s+(\d+) kB", text_of(root / "proc/meminfo") or "", re.MULTILINE)
    return int(match[1]) / 1024 if match else None


def gpus(listing: str | None) -> list[dict[str, str]]:
    """Name, driver and memory in MB of each GPU; `listing` is nvidia-smi's of _GPU_FIELDS."""
    names = ("name", "driver", "memory_mb")
    return [dict(zip(names, row, strict=True)) for row in gpu_rows(listing, len(names))]


def gpu_rows(listing: str | None, columns: int) -> list[list[str]]:
    """The cells of nvidia-smi's CSV, "" where it does not know; other lines are none of it."""
    rows = [[cell.strip() for cell in line.split(",")] for line in (listing or "").splitlines()]
    return [
        ["" if _GPU_UNKNOWN.fullmatch(cell) else cell for cell in row]
        for row in rows
        if len(row) == columns
    ]


def nvidia_smi(fields: tuple[str, ...]) -> str | None:
    """Its CSV of these fields, a line each GPU; None where it is not there or does not answer."""
    query = f"--query-gpu={','.join(fields)}"
    try:
        done = subprocess.run(
            ["nvidia-smi", query, "--format=csv,noheader,nounits"],
            capture_output=True,
            text=True,
            timeout=_TIMEOUT,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout if done.returncode == 0 else None


def _cpuinfo(root: Path) -> dict[str, list[str]]:
    """The values of each field of /proc/cpuinfo, one a logical core."""
    fields: dict[str, list[str]] = {}
    for line in (text_of(root / "proc/cpuinfo") or "").splitlines():
        name, colon, value = line.partition(":")
        if colon:
            fields.setdefault(name.strip(), []).append(value.strip())
    return fields


def _frequencies(root: Path, name: str) -> list[Path]:
    return sorted((root / "sys/devices/system/cpu").glob(f"cpu[0-9]*/cpufreq/{name}"))


def _numbers(paths: list[Path]) -> list[int]:
    return [int(text) for path in paths if (text := text_of(path)) and text.strip().isdigit()]
