"""ONNX Runtime's session for the peers that use it, set as those of our artifacts beside them."""

from collections.abc import Mapping
from typing import Any

import onnxruntime as ort


def open_session(options: Mapping[str, Any]) -> Any:
    """On the CPU. options: path; threads, None for ONNX Runtime's own.

    By default its threads wait for work in a loop; here not after a run, where they would take the
    CPU from others.
    """
    settings = ort.SessionOptions()
    if options["threads"] is not None:
        settings.intra_op_num_threads = options["threads"]
    settings.add_session_config_entry("session.force_spinning_stop", "1")
    return ort.InferenceSession(options["path"], settings, ["CPUExecutionProvider"])


def about(options: Mapping[str, Any]) -> dict[str, Any]:
    """For `protocol.Runner.about`."""
    count = options["threads"]
    threads = "a thread a core" if count is None else f"threads {count}"
    return {"precision": "fp32", "settings": f"{threads}, spinning"}
