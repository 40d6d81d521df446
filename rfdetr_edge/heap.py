"""Memory that frames leave behind stays with the process, for the frames to come."""

import numpy as np

_EXAMPLE = 31 << 20  # bytes; glibc learns from no block above 32 MiB


def keep_freed_memory() -> None:
    """Lets glibc keep what arrays of up to 31 MiB free, for the whole process.

    Else it hands a frame's memory back to the kernel at once, and the next frame gets it a page
    fault at a time: half of the time that decoding 1080p takes on a virtual machine. glibc's limits
    follow the largest block that was freed (mallopt(3), M_MMAP_THRESHOLD), so one is freed here; as
    nothing was written to it, it never took memory. Other C libraries are not concerned.
    """
    np.empty(_EXAMPLE, np.uint8)
