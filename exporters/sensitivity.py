"""Which layers may be INT8: tried block by block, then layer by layer, on real images.

The cost of a block, or of a layer, is how far detections move when it alone is quantised. The most
expensive layers return to float until what is lost is what the user allows. Knows nothing of the
format of artifacts.
"""

import tempfile
from collections.abc import Callable, Collection, Mapping
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path

from exporters.formats import Choices
from exporters.trials import Outcome, Trial
from rfdetr_edge.backends import open_session, proving_providers
from rfdetr_edge.errors import ArtifactError
from rfdetr_edge.progress import Progress


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

    model: bytes
    outcome: Outcome
    rows: tuple[Row, ...]


def search(choices: Choices, trial: Trial, max_drop: float) -> Search:
    """Quantises as many layers as `max_drop`, in points of AP, allows.

    Raises ArtifactError when too much is lost even with hardly any layer in INT8.
    """
    layers = choices.blocks

    def tried(chosen: Collection[str]) -> tuple[bytes, Outcome]:
        model = choices.build(chosen)
        return model, outcome(model, choices.suffix, trial)

    without_ap = replace(trial, document=None)  # no cost needs it

    def cost(chosen: Collection[str]) -> float:
        seen = outcome(choices.build(chosen), choices.suffix, without_ap)
        return seen.agreement.disagreement

    parts: dict[str, list[str]] = {}
    for layer, block in layers.items():
        parts.setdefault(block, []).append(layer)
    block_costs = _each("search: blocks", parts, cost)
    model, seen = tried([*layers])
    costs: dict[str, float] = {}
    returned: set[str] = set()
    if not seen.within(max_drop):
        costs = _each("search: layers", {layer: [layer] for layer in layers}, cost)
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
            model, seen = tried([layer for layer in layers if layer not in returned])
            count = max(count + 1, count * 3 // 2)
    rows = [
        Row(layer, block, block_costs[block], costs.get(layer), layer not in returned)
        for layer, block in layers.items()
    ]
    return Search(model, seen, tuple(rows))


def _each(
    label: str, parts: Mapping[str, Collection[str]], cost: Callable[[Collection[str]], float]
) -> dict[str, float]:
    """What each part of the network costs. label: of the progress line."""
    costs = {}
    with Progress(label, len(parts)) as progress:
        for name, chosen in parts.items():
            costs[name] = cost(chosen)
            progress.advance()
    return costs


def outcome(model: bytes, suffix: str, trial: Trial) -> Outcome:
    """A trial, without intervals, of an artifact that is no file yet."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"candidate{suffix}"
        path.write_bytes(model)
        with closing(open_session(path, provider=proving_providers(path)[0])) as session:
            return trial.run(session)
