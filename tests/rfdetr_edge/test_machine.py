"""The machine's name and instructions, on text as Linux writes it."""

import pytest

from rfdetr_edge.machine import board, parse_cpuinfo, this_machine


def test_the_machine_is_named():
    machine = this_machine()
    assert machine.cpu
    assert machine.cores >= 1
    assert str(machine).startswith(machine.cpu)


X86 = """processor	: 0
model name	: AMD EPYC
flags		: fpu sse2 smep avx smap f16c fma avx2 bmi2

processor	: 1
model name	: another
flags		: avx512f
"""
ARM = """processor	: 0
Features	: fp asimd aes fphp asimdhp asimddp sve i8mm bf16
CPU implementer	: 0x41
"""


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (X86, ("AMD EPYC", ("avx", "avx2", "f16c", "fma"))),
        (ARM, (None, ("asimd", "asimddp", "asimdhp", "bf16", "fphp", "i8mm", "sve"))),
        ("", (None, ())),
    ],
    ids=["x86", "arm", "not Linux"],
)
def test_a_cpu_is_known_by_name_and_vector_instructions(text, expected):
    assert parse_cpuinfo(text) == expected


def test_a_board_stands_in_for_a_cpu_without_a_name(tmp_path):
    assert board(tmp_path) is None
    (tmp_path / "proc/device-tree").mkdir(parents=True)
    (tmp_path / "proc/cpuinfo").write_text(ARM)
    (tmp_path / "proc/device-tree/model").write_text("NVIDIA Jetson Orin Nano Developer Kit\0")
    assert board(tmp_path) == "NVIDIA Jetson Orin Nano Developer Kit"
    assert this_machine(tmp_path).cpu == "NVIDIA Jetson Orin Nano Developer Kit"
