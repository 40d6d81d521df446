"""The machine this runs on: what decides which settings and which saved models fit it.

`root` is the folder of /proc, so that tests can bring their own.
"""

import os
import platform
import re
import sys
from dataclasses import dataclass
from pathlib import Path

ROOT = Path("/")
# The instructions by which ONNX Runtime chooses its kernels and the layout of weights. A virtual
# CPU's name says nothing of them, and a saved model for AVX-512 is wrong, not slow, without it.
_VECTOR = re.compile(r"avx|amx|fma|f16c|asimd|fphp|sve|sme(?!p)|i8mm|bf16")


@dataclass(frozen=True, slots=True)
class Machine:
    """cpu: its name. vector: its vector instructions. cores: those that this process may use."""

    cpu: str
    vector: tuple[str, ...]
    cores: int

    def __str__(self) -> str:
        extensions = f" ({' '.join(self.vector)})" if self.vector else ""
        return f"{self.cpu}{extensions}, {self.cores} cores"


def this_machine(root: Path = ROOT) -> Machine:
    """The one this runs on."""
    name, vector = parse_cpuinfo(text_of(root / "proc/cpuinfo") or "")
    cpu = name or board(root) or platform.processor() or platform.machine()
    cores = len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1
    return Machine(cpu, vector, cores)


def parse_cpuinfo(text: str) -> tuple[str | None, tuple[str, ...]]:
    """The name and the vector instructions of the first CPU in Linux's /proc/cpuinfo.

    No name on ARM, where it lists none.
    """
    facts: dict[str, str] = {}
    for line in text.partition("\n\n")[0].splitlines():
        name, _, value = line.partition(":")
        facts.setdefault(name.strip(), value.strip())
    flags = facts.get("flags", facts.get("Features", "")).split()
    return facts.get("model name"), tuple(sorted({f for f in flags if _VECTOR.match(f)}))


def board(root: Path = ROOT) -> str | None:
    """The name of an embedded board, such as a Jetson or a Raspberry Pi; None elsewhere."""
    text = text_of(root / "proc/device-tree/model")
    return None if text is None else text.strip("\0\n ") or None


def text_of(path: Path) -> str | None:
    """A file of /proc or /sys; None where there is none, or it is not for us to read."""
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
