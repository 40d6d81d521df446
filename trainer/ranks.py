"""Which of the processes that train together this one is."""

from torch import distributed


def place() -> tuple[int, int]:
    """(rank, ranks), once Lightning has joined them; (0, 1) for a process on its own."""
    if not (distributed.is_available() and distributed.is_initialized()):
        return 0, 1
    return distributed.get_rank(), distributed.get_world_size()
