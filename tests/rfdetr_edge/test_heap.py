"""What frames free is used again."""

import resource
import subprocess
import sys

# a frame and what is made of it, again and again
_FAULTS = """
import resource
import numpy as np
from rfdetr_edge.heap import keep_freed_memory
if {keep}: keep_freed_memory()
def work():
    frame, made = (np.ones((1080, 1920, 3), np.uint8) for _ in range(2))
for _ in range(3): work()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(10): work()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def _faults(*, keep: bool) -> int:
    script = _FAULTS.format(keep=keep)
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, check=True)
    return int(done.stdout)


def test_frames_take_the_memory_of_those_before() -> None:
    pages = 20 * 1080 * 1920 * 3 // resource.getpagesize()
    assert _faults(keep=True) < pages / 10
    assert _faults(keep=False) > pages / 10
