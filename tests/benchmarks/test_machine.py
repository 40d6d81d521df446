"""Readers of the machine, each on text as the system writes it; absent facts stay absent."""

import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import machine

# two cores of two threads each, as Linux writes it on x86
CPUINFO = "".join(
    f"processor\t: {number}\nmodel name\t: Some CPU @ 2.00GHz\ncpu MHz\t\t: 2000.000\n"
    f"physical id\t: 0\ncore id\t\t: {core}\nflags\t\t: fpu vme\n\n"
    for number, core in enumerate((0, 1, 0, 1))
)
# a Jetson's, which says nothing of cores that share anything
ARM = "processor\t: 0\nmodel name\t: ARMv8 Processor rev 1 (v8l)\nBogoMIPS\t: 62.50\n\n"


def _write(root: Path, **files: str) -> Path:
    """Files by path, "/" written as "__"."""
    for name, text in files.items():
        path = root / name.replace("__", "/").replace("_at_", ":")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


def test_an_x86_machine(tmp_path: Path) -> None:
    cpu = "sys__devices__system__cpu__"
    _write(
        tmp_path,
        proc__cpuinfo=CPUINFO,
        proc__meminfo="MemTotal:       24684088 kB\nMemFree:         1234 kB\n",
        **{
            f"{cpu}cpu0__cpufreq__scaling_governor": "powersave\n",
            f"{cpu}cpu1__cpufreq__scaling_governor": "powersave\n",
            f"{cpu}cpu0__cpufreq__scaling_cur_freq": "1200000\n",
            f"{cpu}cpu1__cpufreq__scaling_cur_freq": "1800000\n",
            f"{cpu}cpu0__cpufreq__scaling_max_freq": "3400000\n",
            f"{cpu}cpufreq__boost": "1\n",
        },
    )
    assert machine.machine(tmp_path)["cpu"] == "Some CPU @ 2.00GHz"
    assert machine.physical_cores(tmp_path) == 2
    assert machine.memory_mb(tmp_path) == pytest.approx(24105.6, abs=0.1)
    assert machine.governor(tmp_path) == "powersave"
    assert machine.frequency_mhz(tmp_path) == 1500
    assert machine.highest_frequency_mhz(tmp_path) == 3400
    assert "board" not in machine.machine(tmp_path)


def test_a_jetson(tmp_path: Path) -> None:
    model = "NVIDIA Jetson Orin Nano Developer Kit\0"
    _write(tmp_path, proc__cpuinfo=ARM, **{"proc__device-tree__model": model})
    assert machine.machine(tmp_path)["board"] == "NVIDIA Jetson Orin Nano Developer Kit"
    assert machine.machine(tmp_path)["cpu"] == "ARMv8 Processor rev 1 (v8l)"
    assert machine.physical_cores(tmp_path) is None


def test_what_the_machine_does_not_tell_is_left_out(tmp_path: Path) -> None:
    facts = machine.machine(tmp_path)
    assert {"cores", "system"} <= set(facts)
    assert not {"board", "governor", "frequency_mhz", "memory_mb", "physical_cores"} & set(facts)
    assert None not in facts.values()


def test_this_machine_tells_something() -> None:
    facts = machine.machine()
    assert facts["cores"] >= 1
    if sys.platform == "linux":
        assert len(facts["affinity"]) <= facts["cores"]
        assert facts["memory_mb"] > 100


def test_gpus_as_nvidia_smi_lists_them() -> None:
    listing = "NVIDIA H100 80GB HBM3, 550.54.15, 81559\nNVIDIA T4, 550.54.15, [N/A]\n"
    assert machine.gpus(listing) == [
        {"name": "NVIDIA H100 80GB HBM3", "driver": "550.54.15", "memory_mb": "81559"},
        {"name": "NVIDIA T4", "driver": "550.54.15", "memory_mb": ""},
    ]
    assert machine.gpus(None) == machine.gpus("No devices were found\n") == []


def _smi(tmp_path: Path, script: str, monkeypatch: pytest.MonkeyPatch) -> str | None:
    command = tmp_path / "nvidia-smi"
    command.write_text(f"#!/bin/sh\n{script}\n")
    command.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    return machine.nvidia_smi(("name", "driver_version"))


def test_nvidia_smi_that_fails_says_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert _smi(tmp_path, "echo failed because; exit 9", monkeypatch) is None
    assert _smi(tmp_path, 'echo "$@"', monkeypatch) == (
        "--query-gpu=name,driver_version --format=csv,noheader,nounits\n"
    )


def test_no_nvidia_smi(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(*_: object, **__: object) -> None:
        raise FileNotFoundError

    monkeypatch.setattr(subprocess, "run", missing)
    assert machine.nvidia_smi(("name",)) is None
