"""Which layers may be INT8: tried block by block, then layer by layer, on real images.

The cost of a block, or of a layer, is how far detections move when it alone is quantised. The most
expensive layers return to float until what is lost is what the user allows.
"""

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import onnx

from exporters.linears import Linear
from exporters.trials import Outcome, Trial
from rfdetr_edge.backends import open_session
from rfdetr_edge.errors import ArtifactError

Build = Callable[[Sequence[Linear]], onnx.ModelProto]
"""Makes the artifact in which these layers are quantised."""


@dataclass(frozen=True, slots=True)
class Row:
    """A line of the table.

    block_cost, cost: disagreement (exporters.agreement) with the block, or the layer, alone in
        INT8. cost: None where no layer had to be singled out. quantized: the decision.
    """

    layer: str
    block: str
    block_cost: float
    cost: float | None
    quantized: bool


@dataclass(frozen=True, slots=True, eq=False)
class Search:
    """The artifact that was chosen, what its trial saw, and why."""

    model: onnx.ModelProto
    outcome: Outcome
    rows: tuple[Row, ...]


def search(layers: Sequence[Linear], build: Build, trial: Trial, max_drop: float) -> Search:
    """Quantises as many layers as `max_drop`, in points of AP, allows.

    Raises ArtifactError when too much is lost even with hardly any layer in INT8.
    """

    def tried(chosen: Sequence[Linear]) -> tuple[onnx.ModelProto, Outcome]:
        model = build(chosen)
        return model, outcome(model, trial)

    without_ap = replace(trial, document=None)  # no cost needs it

    def cost(chosen: Sequence[Linear]) -> float:
        return outcome(build(chosen), without_ap).agreement.disagreement

    blocks = dict.fromkeys(layer.block for layer in layers)
    block_costs = {
        block: cost([layer for layer in layers if layer.block == block]) for block in blocks
    }
    model, seen = tried(layers)
    costs: dict[str, float] = {}
    returned: set[str] = set()
    if not seen.within(max_drop):
        costs = {layer.name: cost([layer]) for layer in layers}
        order = sorted(costs, key=lambda name: -costs[name])
        count = 1
        while not seen.within(max_drop):
            if count > len(order) // 2:
                raise ArtifactError(
                    f"with {len(returned)} of {len(order)} layers back in float, INT8 still loses "
                    f"more than {max_drop:g} points ({seen}); give other images, or "
                    "allow more (--max-drop)"
                )
            returned = set(order[:count])
            model, seen = tried([layer for layer in layers if layer.name not in returned])
            count = max(count + 1, count * 3 // 2)
    rows = [
        Row(
            layer.name,
            layer.block,
            block_costs[layer.block],
            costs.get(layer.name),
            layer.name not in returned,
        )
        for layer in layers
    ]
    return Search(model, seen, tuple(rows))


def outcome(model: onnx.ModelProto, trial: Trial, *, resamples: int = 0) -> Outcome:
    """A trial of a graph that is no file yet."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "candidate.onnx"
        onnx.save(model, path)
        session = open_session(path, provider="cpu")
        try:
            return trial.run(session, resamples=resamples)
        finally:
            session.close()
