"""`predict` and its faster form: torch only runs the network.

Pixels become a tensor, and outputs become detections, by the runtime's own code, so that training,
validation and device agree by construction.
"""

import copy
import operator
import os
import warnings
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from rfdetr_edge.classes import ClassTable
from rfdetr_edge.detections import Detections
from rfdetr_edge.errors import ArtifactError, InputError
from rfdetr_edge.images import PilImage, Url, load_image
from rfdetr_edge.keypoint_schema import KeypointSchema
from rfdetr_edge.metadata import InputSpec
from rfdetr_edge.postprocess import RawOutputs, postprocess
from rfdetr_edge.preprocess import check_image, preprocess_batch
from trainer.config import ModelConfig, misfit
from trainer.model.output import ModelOutput, Prediction, raw_outputs
from trainer.model.rfdetr import RFDETR

Image: TypeAlias = str | os.PathLike[str] | PilImage | NDArray[Any] | Tensor
Outputs: TypeAlias = ModelOutput | tuple[Tensor, ...]
Size: TypeAlias = tuple[int, int]

_DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


@dataclass(frozen=True, slots=True, eq=False)
class Optimized:
    """A network made for one square input: images to the parts of a Prediction, all float32.

    batch_size: the only one that a traced model runs; None where any will do.
    resolution: side of the input in pixels. dtype: that of its matrix products.
    """

    model: nn.Module
    batch_size: int | None
    resolution: int
    dtype: torch.dtype


@dataclass(slots=True, eq=False)
class ModelContext:
    """A network and all it takes to use it.

    resolution: side of the square input in pixels. antialias: the resize it was trained with.
    """

    model: RFDETR
    device: torch.device
    resolution: int
    classes: ClassTable
    schema: KeypointSchema | None
    antialias: bool
    args: ModelConfig
    optimized: Optimized | None = None

    @property
    def inference_model(self) -> nn.Module | None:
        """What `predict` runs in place of model, where there is one."""
        return self.optimized.model if self.optimized else None

    @property
    def class_names(self) -> list[str]:
        """The foreground classes in order; of COCO's 91 slots the 80 that have a class."""
        table = zip(self.classes.names, self.classes.category_ids, strict=True)
        return [name for name, category_id in table if category_id is not None]

    def postprocess(self, outputs: Outputs, target_sizes: Tensor) -> list[dict[str, Tensor]]:
        """Every ranked pair of query and class of each image, highest score first.

        outputs: the network's, or boxes (B, Q, 4), cxcywh in 0-1, and logits (B, Q, C), and
            masks or keypoints where the variant has them.
        target_sizes: (B, 2), height and width in pixels.
        Returns scores (N,), labels (N,), which are slots, and boxes (N, 4), xyxy in pixels, on the
        device of the outputs; masks (N, 1, H, W) bool; or keypoints (N, K, 3), x and y in pixels
        and a confidence, and keypoint_precision_cholesky (N, K, 3).
        """
        prediction = _prediction(outputs, self)
        sizes = [(int(height), int(width)) for height, width in target_sizes.tolist()]
        results = []
        for found in _detections(self, raw_outputs(prediction), sizes, threshold=-1.0):
            arrays: dict[str, Any] = {"scores": found.confidence, "labels": found.class_id}
            arrays["boxes"] = found.xyxy
            if found.masks is not None:
                arrays["masks"] = found.masks.to_bool()[:, None]
            if found.schema is not None:
                points: list[Any] = [found.keypoints, found.keypoint_confidence]
                arrays["keypoints"] = np.dstack(points)
                arrays["keypoint_precision_cholesky"] = found.keypoint_precision
            device = prediction.logits.device
            results.append({name: torch.from_numpy(a).to(device) for name, a in arrays.items()})
        return results


def predict(
    context: ModelContext,
    images: Image | list[Image] | tuple[Image, ...],
    threshold: float = 0.5,
    shape: Size | None = None,
    patch_size: int | None = None,
    include_source_image: bool = True,
) -> Any:
    """Detects objects on one image, or on several as one batch.

    images: each a path, an http(s) address, a Pillow image, an HxWx3 RGB array or a 3xHxW tensor
        (uint8, or floats in 0-1), of any sizes. Files and addresses are turned upright by their
        EXIF tag, as the runtime does and upstream does not.
    threshold: 0 to 1; detections with a confidence strictly above it are kept.
    shape: (height, width) in pixels that images are squashed to; None is the model's resolution.
    patch_size: has to be the model's, and changes nothing.

    Returns `supervision.Detections`, highest confidence first: one for one image and, as upstream
    does, for a list of one; a list otherwise. class_id: the slot. data["class_name"]: (N,) objects,
    "" for a slot without a class, `__background__` for background. data["source_shape"]: (N, 2)
    int64 (height, width). metadata["source_image"], if included: HxWx3 uint8 RGB, a copy.
    A segmentation model also gives mask: (N, H, W) bool. A keypoint model gives
    `supervision.KeyPoints` (see `Detections.to_supervision`), whose data["source_image"] lists the
    image once a row.
    Leaves the network in evaluation mode. Raises InputError for what cannot be used, ArtifactError
    when the network gives what is no number.
    """
    size = input_shape(context, shape, patch_size)
    if not (isinstance(threshold, int | float | np.floating) and 0.0 <= threshold <= 1.0):
        raise InputError(f"threshold must be a number from 0 to 1, not {threshold!r}")
    several = images if isinstance(images, list | tuple) else [images]
    if not several:
        raise InputError("the list of images is empty; give at least one")
    network = _network(context, size, len(several))
    arrays = [_load(image, f"image {i} of {len(several)}") for i, image in enumerate(several)]
    tensor = torch.from_numpy(preprocess_batch(arrays, InputSpec(size, context.antialias)))
    with torch.inference_mode(), torch.autocast(context.device.type, enabled=False):
        outputs = raw_outputs(_prediction(network(tensor.to(context.device)), context))
    if not outputs.are_numbers():
        raise ArtifactError(
            "the network gives NaN or infinity: take another checkpoint, or a dtype but float16"
        )
    sizes = [(array.shape[0], array.shape[1]) for array in arrays]
    found = _detections(context, outputs, sizes, float(threshold))
    results = [detections.to_supervision() for detections in found]
    if include_source_image:
        for result, array in zip(results, arrays, strict=True):
            pixels = array if array.dtype == np.uint8 else np.rint(array * 255)
            # a copy: callers draw on it, and Pillow's arrays cannot even be written to
            source = np.array(pixels, np.uint8, order="C")
            if context.schema is None:
                result.metadata["source_image"] = source
            else:  # KeyPoints have no metadata
                result.data["source_image"] = [source] * len(result)
    return results if len(results) > 1 else results[0]


def optimize(
    context: ModelContext,
    compile: bool = True,
    batch_size: int = 1,
    dtype: torch.dtype | str = torch.float32,
) -> None:
    """Gives the context a copy of the network that is faster, at its present resolution alone.

    compile: traces the copy for `batch_size` images; otherwise any number will do.
    dtype: float32, or float16 or bfloat16 for matrix products alone, boxes and norms stay float32.
    An earlier copy is removed first, and a failure leaves the ordinary network in use.
    Raises TypeError for another dtype, InputError for a batch_size or resolution that does not fit.
    """
    chosen = _DTYPES.get(dtype) if isinstance(dtype, str) else dtype
    if chosen not in _DTYPES.values():
        raise TypeError(f"dtype must be a torch.dtype of {', '.join(_DTYPES)}, not {dtype!r}")
    if compile and (type(batch_size) is not int or batch_size < 1):
        raise InputError(f"batch_size must be an integer of at least 1, not {batch_size!r}")
    side, _ = input_shape(context, None, None)
    context.optimized = None
    model: Any = _InferenceForm(context.model.to(context.device).eval(), side, chosen)
    if compile:
        example = torch.zeros(batch_size, 3, side, side, device=context.device)
        with torch.no_grad(), warnings.catch_warnings():
            # Sizes other than the batch are meant to become constants (trainer.model.layers).
            warnings.simplefilter("ignore", torch.jit.TracerWarning)
            # Upstream's documented form, which torch would rather see replaced by torch.export.
            warnings.filterwarnings("ignore", ".*torch.jit.trace", DeprecationWarning)
            model = torch.jit.trace(model, example, check_trace=False)
    context.optimized = Optimized(model, batch_size if compile else None, side, chosen)


def input_shape(context: ModelContext, shape: object, patch_size: object) -> Size:
    """The input (height, width) that a caller asked for; without a shape, the model's resolution.

    Raises InputError when it, or a given patch_size, does not fit the variant.
    """
    row = context.args.row
    if patch_size is not None and (type(patch_size) is not int or patch_size != row.patch_size):
        raise InputError(f"patch_size of {row.name} is {row.patch_size}, not {patch_size!r}")
    given: Any = (context.resolution,) * 2 if shape is None else shape
    try:
        height, width = (operator.index(side) for side in given)
    except (TypeError, ValueError):
        height = width = 0
    if min(height, width) < 1:
        raise InputError(f"shape must be two positive integers (height, width), not {given!r}")
    for side in (height, width):
        if not row.accepts(side):
            raise InputError(f"shape ({height}, {width}) does not fit: {misfit(row, side)}")
    return height, width


class _InferenceForm(nn.Module):
    """A copy of the network as a function of one tensor, with the position table of one input."""

    def __init__(self, model: RFDETR, side: int, dtype: torch.dtype) -> None:
        super().__init__()
        self.model, self.dtype = copy.deepcopy(model), dtype
        cells = side // model.variant.patch_size
        self.model.encoder.fix_grid(cells, cells)
        for layer in self.model.modules():
            if isinstance(layer, nn.Linear | nn.Conv2d | nn.ConvTranspose2d):
                layer.to(dtype)

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        half = self.dtype is not torch.float32
        # Casts what goes into a layer. A cached cast would be missing from the trace.
        with torch.autocast(images.device.type, self.dtype, enabled=half, cache_enabled=False):
            prediction = self.model(images).final
        return tuple(part.float() for part in prediction if part is not None)


def _network(context: ModelContext, size: Size, count: int) -> nn.Module:
    """What runs the batch. Raises InputError when the optimised network cannot."""
    if (optimized := context.optimized) is None:
        return context.model.to(context.device).eval()
    side, batch = optimized.resolution, optimized.batch_size or count
    if (count, *size) != (batch, side, side):
        what = "batch size" if size == (side, side) else "resolution"
        raise InputError(
            f"{what} mismatch: the optimised model takes {batch} images of {side}x{side} pixels, "
            f"not {count} of {size[0]}x{size[1]}; call remove_optimized_model() or optimise again"
        )
    return optimized.model


def _prediction(outputs: Outputs, context: ModelContext) -> Prediction:
    if isinstance(outputs, ModelOutput):
        return outputs.final
    boxes, logits, *extra = outputs
    third = {"masks" if context.schema is None else "keypoints": part for part in extra}
    return Prediction(boxes, logits, **third)


def _detections(
    context: ModelContext, outputs: RawOutputs, sizes: list[Size], threshold: float
) -> list[Detections]:
    return postprocess(
        outputs,
        source_sizes=sizes,
        classes=context.classes,
        num_select=context.args.row.num_select,
        threshold=threshold,
        schema=context.schema,
    )


def _load(image: Any, name: str) -> NDArray[Any]:
    if isinstance(image, str) and image.lower().startswith(("http://", "https://")):
        image = Url(image)
    try:
        array = _pixels(image) if isinstance(image, Tensor) else load_image(image, upright=True)
        check_image(array)
    except InputError as error:
        raise InputError(f"{name}: {error}") from error
    return array


def _pixels(image: Tensor) -> Any:
    """(3, H, W) as an HxWx3 array."""
    shape = tuple(image.shape)
    if len(shape) != 3 or shape[0] != 3:
        raise InputError(f"got an image tensor of shape {shape}; wanted (C, H, W) with 3 channels")
    pixels = image.detach().cpu().permute(1, 2, 0)
    # NumPy knows no bfloat16, and the runtime takes no float16
    return (pixels.float() if pixels.is_floating_point() else pixels).numpy()
