"""Meters on text as the kernel, nvidia-smi and tegrastats write it."""

from pathlib import Path

import pytest

from benchmarks.meters import (
    Load,
    Moment,
    Rail,
    Rapl,
    gpu_meters,
    load,
    logged,
    said,
    tegra_heat,
    tegra_rails,
    temperatures,
    throttle_count,
)
from benchmarks.steadiness import gpu_doubts

# JetPack 5 and 6 on an Orin
ORIN = (
    "11-21-2026 12:00:01 RAM 2448/7620MB (lfb 4x4MB) SWAP 0/3810MB (cached 0MB) "
    "CPU [12%@1510,5%@1510,off,off] EMC_FREQ 2%@2133 GR3D_FREQ 35%@[305] "
    "cpu@46.5C soc2@45.5C gpu@-256C tj@{tj}C "
    "VDD_IN {now}mW/4800mW VDD_CPU_GPU_CV 691mW/691mW VDD_SOC 1424mW/1424mW\n"
)
# JetPack 4 on the first Nano: no unit of power, and sensors by other names
NANO = (
    "RAM 1000/3964MB (lfb 500x4MB) SWAP 0/1982MB (cached 0MB) CPU [10%@1479,5%@1479] "
    "EMC_FREQ 0% GR3D_FREQ 0% PLL@25C CPU@28.5C PMIC@100C GPU@26C AO@34C thermal@27.25C "
    "POM_5V_IN 2112/2100 POM_5V_GPU 40/40 POM_5V_CPU 400/390\n"
)


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def test_load_from_proc_stat(tmp_path: Path) -> None:
    _write(tmp_path / "proc/stat", "cpu  1000 200 300 9000 50 10 20 400 77 0\ncpu0 1 2 3 4\n")
    assert load(tmp_path) == Load(busy=pytest.approx(15.3), stolen=pytest.approx(4.0))


def test_temperatures_by_zone(tmp_path: Path) -> None:
    thermal = tmp_path / "sys/class/thermal"
    _write(thermal / "thermal_zone0/type", "x86_pkg_temp\n")
    _write(thermal / "thermal_zone0/temp", "46500\n")
    _write(thermal / "thermal_zone1/type", "iwlwifi\n")
    _write(thermal / "thermal_zone1/temp", "")  # as read where the sensor is off
    assert temperatures(tmp_path) == {"x86_pkg_temp": 46.5}


def test_throttling_is_counted_over_the_cores(tmp_path: Path) -> None:
    assert throttle_count(tmp_path) is None
    for core, count in enumerate((3, 4)):
        cpu = tmp_path / f"sys/devices/system/cpu/cpu{core}/thermal_throttle"
        _write(cpu / "core_throttle_count", f"{count}\n")
    assert throttle_count(tmp_path) == 7


def test_energy_of_packages_with_a_counter_that_wraps(tmp_path: Path) -> None:
    powercap = tmp_path / "sys/class/powercap"
    for number, name in enumerate(("package-0", "psys")):
        _write(powercap / f"intel-rapl:{number}/name", f"{name}\n")
        _write(powercap / f"intel-rapl:{number}/energy_uj", "262143000000\n")
        _write(powercap / f"intel-rapl:{number}/max_energy_range_uj", "262143328850\n")
    _write(powercap / "intel-rapl:0:0/name", "core\n")  # part of the package
    _write(powercap / "intel-rapl:0:0/energy_uj", "1\n")
    meter = Rapl(tmp_path)
    assert meter
    assert meter.joules() == 0
    _write(powercap / "intel-rapl:0/energy_uj", "262143300000\n")
    assert meter.joules() == pytest.approx(0.3)
    _write(powercap / "intel-rapl:0/energy_uj", "1000000\n")
    assert meter.joules() == pytest.approx(0.3 + 0.02885 + 1)


def test_a_machine_that_tells_nothing(tmp_path: Path) -> None:
    assert Moment.now(tmp_path) == Moment(None, None, {}, None)
    meter = Rapl(tmp_path)
    assert not meter
    assert meter.joules() == 0


def test_gpus_that_are_slowed() -> None:
    log = (
        "0, 45, 70.00, 1980, Not Active, Not Active\n"
        "1, 50, [N/A], [Not Supported], [N/A], [N/A]\n"
        "0, 88, 300.00, 900, Not Active, Active\n"
        "1, 49, [N/A], [Not Supported], [N/A], [N/A]\n"
    )
    first = {"highest_celsius": 88.0, "mean_watts": 185.0, "lowest_mhz": 900.0, "slowed": True}
    assert gpu_meters(log) == {"0": first, "1": {"highest_celsius": 50.0}}
    assert gpu_doubts(gpu_meters(log)) == ["heat or power slowed GPU 0"]
    assert gpu_meters("NVIDIA-SMI has failed because it could not reach the driver.\n") == {}


def test_tegrastats_of_an_orin() -> None:
    log = ORIN.format(now=4600, tj=50.1) + ORIN.format(now=5400, tj=52.5)
    assert tegra_rails(log) == {
        "VDD_IN": Rail(5.0, 5.4),
        "VDD_CPU_GPU_CV": Rail(0.691, 0.691),
        "VDD_SOC": Rail(1.424, 1.424),
    }
    assert tegra_heat(log) == {"cpu": 46.5, "soc2": 45.5, "tj": 52.5}


def test_tegrastats_of_an_older_board() -> None:
    assert tegra_rails(NANO)["POM_5V_IN"] == Rail(2.112, 2.112)
    assert set(tegra_rails(NANO)) == {"POM_5V_IN", "POM_5V_GPU", "POM_5V_CPU"}
    assert tegra_heat(NANO)["thermal"] == 27.25


def test_a_meter_runs_meanwhile(tmp_path: Path) -> None:
    with logged(["no-such-meter"]) as log:
        assert log() == ""
    command = tmp_path / "meter"
    command.write_text(f"#!/bin/sh\necho '{NANO.strip()}'\ntouch {tmp_path}/said\nexec sleep 60\n")
    command.chmod(0o755)
    with logged([str(command)]) as log:
        while not (tmp_path / "said").exists():
            pass
        assert tegra_rails(log())["POM_5V_CPU"] == Rail(0.4, 0.4)


def test_what_the_meters_said_of_a_run() -> None:
    moments = [Moment(None, None, {"cpu": celsius, "case": 30.0}, None) for celsius in (40.0, 60.0)]
    found = said(moments, ORIN.format(now=4600, tj=50.1), "0, 45, 70.00, 1980, [N/A], [N/A]\n")
    assert found["highest_celsius"] == {"cpu": 60.0, "case": 30.0, "soc2": 45.5, "tj": 50.1}
    assert found["watts"]["VDD_IN"] == {"mean": 4.6, "max": 4.6}
    assert found["gpu_meters"]["0"]["mean_watts"] == 70.0
    assert said([Moment(None, None, {}, None)], "", "") == {}
