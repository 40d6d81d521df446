"""What the network returns."""

from typing import NamedTuple

from torch import Tensor


class Prediction(NamedTuple):
    """boxes (B, Q, 4): cxcywh in 0-1, unbounded; logits (B, Q, C): one column per class slot."""

    boxes: Tensor
    logits: Tensor


class ModelOutput(NamedTuple):
    """Predictions after every decoder layer, the last one being the result, and the proposals.

    In training Q covers all query groups, group after group; in evaluation only the first.
    """

    layers: list[Prediction]
    proposals: Prediction

    @property
    def final(self) -> Prediction:
        """The last decoder layer's prediction."""
        return self.layers[-1]
