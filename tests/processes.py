"""Runs the command line in a process of its own."""

import os
import subprocess
import sys
from collections.abc import Mapping
from typing import Any

# set in the child itself: a limit between fork and exec is unsafe once this process has threads
_LIMITED = """
import resource, sys
limit = int(sys.argv.pop(1))
resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
from rfdetr_edge.cli import main
sys.exit(main())
"""


def run_cli(
    *arguments: object,
    file_limit: int | None = None,
    env: Mapping[str, str] | None = None,
    timeout: float = 60,
    **options: Any,
) -> subprocess.CompletedProcess[str]:
    """file_limit: bytes that a file may grow to, which root cannot go around, as on a full disk."""
    start = ["-m", "rfdetr_edge"] if file_limit is None else ["-c", _LIMITED, str(file_limit)]
    return subprocess.run(
        [sys.executable, *start, *map(str, arguments)],
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, **(env or {})},
        timeout=timeout,
        **options,
    )
