"""What a machine says while a benchmark runs: load, frequency, heat, power.

As in machine.py: what this machine does not tell is left out, and `root` holds /proc and /sys.
"""

import re
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks.machine import frequency_mhz, gpu_rows
from rfdetr_edge.machine import ROOT, text_of

TEGRASTATS = ("tegrastats", "--interval", "1000")  # milliseconds
NVIDIA_SMI = (
    "nvidia-smi",
    "--query-gpu=index,temperature.gpu,power.draw,clocks.current.sm,"
    "clocks_throttle_reasons.hw_slowdown,clocks_throttle_reasons.sw_thermal_slowdown",
    "--format=csv,noheader,nounits",
    "--loop=1",  # second
)

_JIFFY = 0.01  # s; USER_HZ is 100 wherever Linux runs a Python


@dataclass(frozen=True, slots=True)
class Load:
    """CPU time of all processes since the machine started, and what its host took away; seconds."""

    busy: float
    stolen: float


def load(root: Path = ROOT) -> Load | None:
    """From the first line of /proc/stat (proc(5)): user nice system idle iowait irq softirq steal.

    The later columns, of guests, are part of user and nice.
    """
    match = re.match(r"cpu\s+([\d ]+)", text_of(root / "proc/stat") or "")
    if match is None:
        return None
    user, nice, system, _, _, irq, softirq, steal = map(int, match[1].split()[:8])
    return Load((user + nice + system + irq + softirq) * _JIFFY, steal * _JIFFY)


def temperatures(root: Path = ROOT) -> dict[str, float]:
    """Degrees Celsius by thermal zone."""
    found = {}
    for zone in sorted((root / "sys/class/thermal").glob("thermal_zone[0-9]*")):
        name, millidegrees = text_of(zone / "type"), text_of(zone / "temp")
        if name and millidegrees and millidegrees.strip().lstrip("-").isdigit():
            found[name.strip()] = int(millidegrees) / 1e3
    return found


def throttle_count(root: Path = ROOT) -> int | None:
    """How often heat has slowed the cores since the machine started, where the CPU counts it."""
    paths = (root / "sys/devices/system/cpu").glob("cpu[0-9]*/thermal_throttle/core_throttle_count")
    found = [int(text) for path in paths if (text := text_of(path)) and text.strip().isdigit()]
    return sum(found) if found else None


class Rapl:
    """The energy counters of Intel's and AMD's packages, where this user may read them.

    The kernel's powercap: `energy_uj` counts up to `max_energy_range_uj` and begins anew.
    """

    def __init__(self, root: Path = ROOT) -> None:
        packages = (root / "sys/class/powercap").glob("intel-rapl:[0-9]")
        self._counters = [
            (package / "energy_uj", int(text_of(package / "max_energy_range_uj") or 0))
            for package in sorted(packages)
            if (text_of(package / "name") or "").startswith("package")
            and text_of(package / "energy_uj")
        ]
        self._last = self._read()
        self._total = 0

    def __bool__(self) -> bool:
        return bool(self._counters)

    def joules(self) -> float:
        """Of all packages since this object was made; to be asked more often than one wraps."""
        now = self._read()
        for (_, full), before, after in zip(self._counters, self._last, now, strict=True):
            self._total += after - before if after >= before else after - before + full
        self._last = now
        return self._total / 1e6

    def _read(self) -> list[int]:
        return [int(text_of(path) or 0) for path, _ in self._counters]


def gpu_meters(log: str) -> dict[str, dict[str, Any]]:
    """By the index of a GPU: highest_celsius, mean_watts, lowest_mhz, and whether it was slowed.

    log: lines of NVIDIA_SMI; other lines are none of it.
    """
    columns: dict[str, list[list[str]]] = {}
    for index, *cells in gpu_rows(log, 6):
        columns.setdefault(index, []).append(cells)
    found: dict[str, dict[str, Any]] = {}
    for index, rows in columns.items():
        celsius, watts, mhz = (
            [float(cell) for cell in column if cell] for column in list(zip(*rows, strict=True))[:3]
        )
        slowed = [cell for row in rows for cell in row[3:] if cell]
        known = {
            "highest_celsius": max(celsius, default=None),
            "mean_watts": sum(watts) / len(watts) if watts else None,
            "lowest_mhz": min(mhz, default=None),
            "slowed": "Active" in slowed if slowed else None,
        }
        found[index] = {name: value for name, value in known.items() if value is not None}
    return found


@dataclass(frozen=True, slots=True)
class Rail:
    """Power of one supply of a Jetson, in watts."""

    mean: float
    max: float


_POWER = re.compile(r"\b([A-Z][A-Z0-9_]+) (\d+)(?:mW)?/(\d+)(?:mW)?(?= |$)")
_HEAT = re.compile(r"\b([A-Za-z][\w-]*)@(-?\d+(?:\.\d+)?)C\b")


def tegra_rails(log: str) -> dict[str, Rail]:
    """Power by supply from tegrastats' lines: `VDD_IN 4989mW/4800mW`, now and its own mean.

    Older boards leave the unit out, `POM_5V_IN 2112/2100`; what is in MB is memory.
    """
    rails: dict[str, list[int]] = {}
    for line in log.splitlines():
        for name, now, _ in _POWER.findall(line):
            rails.setdefault(name, []).append(int(now))
    return {name: Rail(sum(mw) / len(mw) / 1e3, max(mw) / 1e3) for name, mw in rails.items()}


def tegra_heat(log: str) -> dict[str, float]:
    """The highest degrees Celsius by sensor, from the same lines: `cpu@46.5C`; -256 is one off."""
    found: dict[str, float] = {}
    for name, text in _HEAT.findall(log):
        if float(text) > -256:
            found[name] = max(float(text), found.get(name, float("-inf")))
    return found


@dataclass(frozen=True, slots=True)
class Moment:
    """What can be read at once, as the readers above give it."""

    load: Load | None
    mhz: float | None
    celsius: Mapping[str, float]
    throttles: int | None

    @classmethod
    def now(cls, root: Path = ROOT) -> "Moment":
        """Of this moment."""
        return cls(load(root), frequency_mhz(root), temperatures(root), throttle_count(root))


@contextmanager
def logged(command: Sequence[str]) -> Iterator[Callable[[], str]]:
    """Runs a meter meanwhile; gives what reads its lines, "" on machines without that command."""
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        log = Path(folder) / "log"
        output = stack.enter_context(log.open("w"))
        with suppress(OSError):
            process = stack.enter_context(subprocess.Popen(command, stdout=output))
            stack.callback(process.terminate)
        yield log.read_text


def said(moments: Sequence[Moment], tegra_log: str, gpu_log: str) -> dict[str, Any]:
    """What the meters said of a run, as JSON; nothing where there are none.

    moments: looks at the machine. tegra_log, gpu_log: lines of TEGRASTATS and of NVIDIA_SMI.
    """
    celsius = tegra_heat(tegra_log)
    for moment in moments:
        for zone, value in moment.celsius.items():
            celsius[zone] = max(value, celsius.get(zone, value))
    rails = {name: asdict(rail) for name, rail in tegra_rails(tegra_log).items()}
    found = {"highest_celsius": celsius, "watts": rails, "gpu_meters": gpu_meters(gpu_log)}
    return {name: values for name, values in found.items() if values}
