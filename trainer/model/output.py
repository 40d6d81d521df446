"""What the network returns."""

from typing import Any, NamedTuple

from torch import Tensor

from rfdetr_edge.postprocess import RawOutputs


class MaskFactors(NamedTuple):
    """Masks as they are trained: logits of query n are `spatial . query[n] + bias[n]`.

    spatial (B, D, h, w), query (B, Q, D), bias (B, Q, 1). All dense masks would not fit in memory.
    """

    spatial: Tensor
    query: Tensor
    bias: Tensor

    def dense(self) -> Tensor:
        """(B, Q, h, w) logits."""
        dim, height, width = (int(side) for side in self.spatial.shape[1:])
        flat = self.query @ self.spatial.reshape(-1, dim, height * width) + self.bias
        return flat.reshape(-1, int(self.query.shape[1]), height, width)


class Prediction(NamedTuple):
    """boxes (B, Q, 4): cxcywh in 0-1, unbounded; logits (B, Q, C): one column per class slot.

    masks: logits (B, Q, H / 4, W / 4), positive inside; in training their factors.
    keypoints: (B, Q, padded points, 8) with the channels of architecture.md section 8.
    None where the variant has none.
    """

    boxes: Tensor
    logits: Tensor
    masks: Tensor | MaskFactors | None = None
    keypoints: Tensor | None = None


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


def raw_outputs(prediction: Prediction) -> RawOutputs:
    """What an artifact of the network gives: float32 arrays, for the runtime's postprocessing."""
    boxes, logits, masks, keypoints = prediction
    if isinstance(masks, MaskFactors):
        masks = masks.dense()
    return RawOutputs(*map(_array, (boxes, logits, masks, keypoints)))


def _array(tensor: Tensor | None) -> Any:
    return None if tensor is None else tensor.detach().float().cpu().numpy()
