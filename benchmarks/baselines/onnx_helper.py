"""Upstream's helper for its ONNX files as a contender (benchmarks/child.py), in peer_env.sh's venv.

The helper takes a path and decodes itself, so that decoding and preprocessing are one stage.
"""

from collections.abc import Callable, Mapping
from typing import Any

from rfdetr.export._onnx.inference import _run_inference  # type: ignore[import-not-found]

from benchmarks.baselines.session import about, open_session
from benchmarks.protocol import Mark

_THRESHOLD = 0.5


class _Tap:
    """What the helper uses of a session, marked where its run begins and ends."""

    def __init__(self, session: Any) -> None:
        self._session = session
        self.get_inputs, self.get_outputs = session.get_inputs, session.get_outputs
        self.get_providers = session.get_providers
        self.mark: Mark | None = None

    def run(self, *arguments: Any, **named: Any) -> Any:
        """As onnxruntime's."""
        assert self.mark is not None
        self.mark("decode and preprocess")
        outputs = self._session.run(*arguments, **named)
        self.mark("infer")
        return outputs


class _Helper:
    """See `protocol.Runner`."""

    def __init__(self, options: Mapping[str, Any]) -> None:
        self._options = options
        self._tap = _Tap(open_session(options))

    def turn(self, path: str, mark: Mark) -> int:
        self._tap.mark = mark
        # every slot is a class: as published checkpoints have it, and no less work
        found, _ = _run_inference(self._tap, path, threshold=_THRESHOLD, background_class_id=None)
        mark("postprocess")
        return len(found)

    def about(self) -> dict[str, Any]:
        return about(self._options)

    def scenarios(self) -> Mapping[str, Callable[..., Any]]:
        return {}


def load(options: Mapping[str, Any]) -> _Helper:
    """options: see baselines/session.py."""
    return _Helper(options)
