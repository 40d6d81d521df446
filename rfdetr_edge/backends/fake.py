"""A session made of a function, to test programs on rfdetr_edge without an artifact."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from numpy.typing import NDArray

from rfdetr_edge.backends import TensorSpec, check_feeds
from rfdetr_edge.errors import BackendError

Arrays = Mapping[str, NDArray[Any]]


@dataclass(slots=True)
class FakeSession:
    """Answers `run` by calling `function(feeds)`; hand it to `Detector.from_session`.

    function: input name -> array to output name -> array, as `inputs` and `outputs` declare.
    metadata_json: the document of an artifact, for example `ModelMetadata.to_json()`.
    """

    function: Callable[[Arrays], Arrays]
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    metadata_json: str | None = None
    provider: str = "fake"
    _closed: bool = field(default=False, init=False)

    def run(self, feeds: Arrays) -> dict[str, NDArray[Any]]:
        """See `backends.Session.run`."""
        if self._closed:
            raise BackendError("the session is closed; open the artifact again")
        check_feeds(self.inputs, feeds)
        outputs = self.function(feeds)
        return {spec.name: outputs[spec.name] for spec in self.outputs}

    def close(self) -> None:
        """After this, `run` raises BackendError."""
        self._closed = True
