"""The documented API: RFDETRNano, RFDETRSmall, ...; thin names over one class.

A method checks and translates its arguments and calls the module that does the work.
"""

import copy
import errno
import os
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar, TypeAlias

import numpy as np
import supervision as sv
import torch
from numpy.typing import NDArray

from rfdetr_edge.errors import InputError
from rfdetr_edge.keypoint_schema import numbered_schema
from rfdetr_edge.pretrained import ensure_weights
from rfdetr_edge.variants import VARIANTS
from trainer import inference
from trainer.checkpoint import Checkpoint, build_model, load_checkpoint
from trainer.checkpoint_classes import find_classes
from trainer.config import ModelConfig, TrainConfig, model_config, train_config
from trainer.fit import fit
from trainer.inference import Image, ModelContext
from trainer.model.rfdetr import RFDETR as Network

Found: TypeAlias = sv.Detections | sv.KeyPoints

_RANDOM = "random"  # in place of a file's SHA-256


class RFDETR:
    """A model of one variant, to predict with, train and export.

    Keyword arguments are the settings of `ModelConfig`; `pretrain_weights` may be a path, the name
    of a published file, or None for random weights. Raises InputError (a ValueError) for settings
    and ArtifactError (a ValueError) for a checkpoint that does not fit.

    model_config: the settings. model: the ModelContext: network, device, classes, resolution.
    """

    variant: ClassVar[str]
    size: ClassVar[str | None]

    def __init__(self, *, trust_checkpoint: bool = False, **kwargs: Any) -> None:
        self.model_config = self.get_model_config(**kwargs)
        self._take(_start(self.model_config, trust=trust_checkpoint))

    def _take(self, checkpoint: Checkpoint) -> None:
        self._checkpoint = checkpoint
        self.model = _context(self.model_config, checkpoint)

    @classmethod
    def from_checkpoint(
        cls, path: str | os.PathLike[str], *, trust_checkpoint: bool = False, **kwargs: Any
    ) -> "RFDETR":
        """The model of a checkpoint; its class follows from the file (training.md section 10).

        kwargs: settings of `ModelConfig`, which win over the file's. The file's class count is not
        counted as set, so that `train` may adapt the head to a data set.
        trust_checkpoint: opens files that pickle objects, which can run code; tensors, plain values
        and legacy Namespaces need no trust.
        Raises FileNotFoundError, and ArtifactError (a ValueError) when the file is no checkpoint or
        does not say which class it is.
        """
        path = Path(path)
        if not path.exists():
            raise FileNotFoundError(errno.ENOENT, "no such checkpoint", str(path))
        checkpoint = load_checkpoint(path, trust=trust_checkpoint)
        model = object.__new__(CLASSES[checkpoint.variant.api_name])
        model.model_config = model.get_model_config(**{**kwargs, "pretrain_weights": str(path)})
        model._take(_fitted(model.model_config, checkpoint))
        return model

    @property
    def class_names(self) -> list[str]:
        """The classes in order, without background; the 80 names of COCO for its checkpoints."""
        return self.model.class_names

    def get_model_config(self, **kwargs: Any) -> ModelConfig:
        """The settings of this variant with the given ones. Raises InputError."""
        return model_config(self.variant, **kwargs)

    def get_train_config(self, **kwargs: Any) -> TrainConfig:
        """The settings of a training run with the given ones. Raises InputError."""
        return train_config(VARIANTS[self.variant].task, **kwargs)

    def get_model(self, config: ModelConfig) -> ModelContext:
        """The context of another configuration: network, device, classes, resolution."""
        return _context(config, _start(config, trust=False))

    def maybe_download_pretrain_weights(self) -> None:
        """Sees to it that the file of `model_config.pretrain_weights` is there, and keeps its path.

        Raises InputError when it has to be fetched and cannot: it says which file to put where.
        """
        _fetch(self.model_config)

    def predict(
        self,
        images: Image | list[Image] | tuple[Image, ...],
        threshold: float = 0.5,
        shape: tuple[int, int] | None = None,
        patch_size: int | None = None,
        include_source_image: bool = True,
    ) -> "Found | list[Found]":
        """See `trainer.inference.predict`."""
        return inference.predict(
            self.model, images, threshold, shape, patch_size, include_source_image
        )

    def optimize_for_inference(
        self, compile: bool = True, batch_size: int = 1, dtype: torch.dtype | str = torch.float32
    ) -> None:
        """See `trainer.inference.optimize`."""
        inference.optimize(self.model, compile=compile, batch_size=batch_size, dtype=dtype)

    def remove_optimized_model(self) -> None:
        """Goes back to the plain network; does nothing when there is no optimized one."""
        self.model.optimized = None

    def train(self, **kwargs: Any) -> Path:
        """Trains on a data set; afterwards this object holds the trained weights.

        Returns checkpoint_best_total.pth of the output folder.

        kwargs: settings of `TrainConfig`, and
        resolution: side of the square input in pixels; it stays changed in `model_config`.
        device: "cpu", "cuda", "cuda:1", "mps", or a torch.device, for Lightning's accelerator.
        callbacks, start_epoch, do_benchmark: deprecated, warned of and dropped; Lightning's
        callbacks go to `trainer.fit.fit`.
        Raises InputError (a ValueError) for settings or a data set that cannot be used.
        """
        for name, advice in _DEPRECATED.items():
            value = kwargs.pop(name, None)
            if name == "callbacks" and isinstance(value, dict):
                value = any(value.values())
            if value or (name == "start_epoch" and value is not None):
                text = f"train({name}=...) is deprecated and ignored; {advice}"
                warnings.warn(text, DeprecationWarning, stacklevel=2)
        side = kwargs.pop("resolution", None)
        if side is not None:
            if isinstance(side, bool) or not isinstance(side, int | np.integer) or side <= 0:
                raise InputError("resolution must be a positive integer")
            fitting = self.get_model_config(resolution=int(side))
            self.model_config.resolution = self.model.resolution = fitting.resolution
        config = self.get_train_config(**{**_accelerator(kwargs.pop("device", None)), **kwargs})
        # from random weights a run depends on its seed alone
        start = None if self._checkpoint.sha256 == _RANDOM else self.model.model
        fitted = fit(start, self.model_config, config)
        self._take(_fitted(self.model_config, fitted.last))
        return fitted.best

    def export(
        self,
        output_dir: str | os.PathLike[str] = "output",
        infer_dir: str | os.PathLike[str] | None = None,
        backbone_only: bool = False,
        opset_version: int = 17,
        verbose: bool = True,
        shape: tuple[int, int] | None = None,
        batch_size: int = 1,
        dynamic_batch: bool = False,
        patch_size: int | None = None,
        format: str = "onnx",
        quantization: str | None = None,
        calibration_data: str | NDArray[np.float32] | None = None,
        max_images: int = 100,
        *,
        notes: object = None,
    ) -> Path:
        """Writes `<output_dir>/<size>.onnx`, compared with this model before it is handed out.

        infer_dir: image or folder to compare on (default: the embedded photos).
        backbone_only: `<size>-backbone.onnx`, with the projector's maps as `features`, ...
        shape: (height, width) in pixels, multiples of patch size times windows.
        patch_size: must be the model's, when given. verbose: prints what the comparison saw.
        quantization, calibration_data, max_images: for formats other than onnx, as documented.
        notes: any JSON value; goes into the metadata and, as upstream has it, `rfdetr_notes`.
        Raises InputError (a ValueError), ArtifactError when the artifact differs from the model.
        """
        # the one way back up the layers (pyproject.toml, import contracts)
        from exporters.onnx_export import OnnxOptions, export_into  # noqa: PLC0415

        if format != "onnx":
            raise InputError(f"format {format!r} is not supported; this version exports onnx")
        if self._is_optimized_for_inference:
            raise InputError("the model is optimized; call remove_optimized_model() first")
        options = OnnxOptions(
            shape=inference.input_shape(self.model, shape, patch_size),
            batch="dynamic" if dynamic_batch else batch_size,
            opset=opset_version,
            notes=notes,
        )
        network = copy.deepcopy(self.model.model).cpu().eval()
        checkpoint = replace(self._checkpoint, model=network)
        stem = Path(output_dir) / (self.size or f"rfdetr-{self.variant}")
        path, text = export_into(stem, checkpoint, options, infer_dir, backbone_only)
        if verbose:
            print(f"{path}: {text}")  # noqa: T201  documented
        return path

    def export_for_roboflow(self, output_dir: str | os.PathLike[str]) -> None:
        """Writes weights.pt and class_names.txt, what Roboflow takes, into a folder.

        Raises OSError, PermissionError included, when they cannot be written.
        """
        from exporters.roboflow import write_bundle  # noqa: PLC0415  as in export

        write_bundle(self.model, Path(output_dir))

    def deploy_to_roboflow(
        self,
        workspace: str,
        project_id: str,
        version: int | str,
        api_key: str | None = None,
        size: str | None = None,
    ) -> None:
        """Uploads the model to a version of a Roboflow project.

        api_key: None reads ROBOFLOW_API_KEY. size: the model type; None is this model's own.
        Raises InputError (a ValueError) without a key or a size, BackendUnavailable without the
        `roboflow` extra.
        """
        from exporters.roboflow import deploy  # noqa: PLC0415  as in export

        deploy(self.model, workspace, project_id, version, api_key, self.size or size)

    @property
    def _is_optimized_for_inference(self) -> bool:
        return self.model.optimized is not None

    @property
    def _optimized_has_been_compiled(self) -> bool:
        return self._optimized_batch_size is not None

    @property
    def _optimized_batch_size(self) -> int | None:
        return None if self.model.optimized is None else self.model.optimized.batch_size

    @property
    def _optimized_resolution(self) -> int | None:
        return None if self.model.optimized is None else self.model.optimized.resolution

    @property
    def _optimized_dtype(self) -> torch.dtype | None:
        return None if self.model.optimized is None else self.model.optimized.dtype


_DEPRECATED = {
    "callbacks": "pass Lightning callbacks to trainer.fit.fit",
    "start_epoch": "resume=... continues where a run stopped",
    "do_benchmark": "use `rfdetr-edge benchmark`",
}


def _accelerator(device: str | torch.device | None) -> dict[str, Any]:
    """Lightning's accelerator and devices of a torch device."""
    if device is None:
        return {}
    parsed = _device(device)
    if parsed.type == "cuda":
        return {"accelerator": "gpu", **({"devices": [parsed.index]} if parsed.index else {})}
    if parsed.type in ("cpu", "mps"):
        return {"accelerator": parsed.type}
    warnings.warn(f"device {parsed}: Lightning chooses the accelerator", UserWarning, stacklevel=3)
    return {"accelerator": "auto"}


def _start(config: ModelConfig, *, trust: bool) -> Checkpoint:
    """The checkpoint of a configuration, or random weights as if they were one."""
    weights = _fetch(config)
    if weights is not None:
        return _fitted(config, load_checkpoint(weights, variant=config.variant, trust=trust))
    counts = config.num_keypoints_per_class
    if len(counts) > config.num_classes + 1:
        raise InputError(
            f"num_keypoints_per_class has {len(counts)} entries; {config.num_classes} classes, and "
            "background, take no more than one each"
        )
    network = Network(config.row, config.num_classes + 1, counts)
    network.encoder.fix_grid(*[config.positional_encoding_size] * 2)
    schema = numbered_schema(counts, config.postprocess_trace_alpha) if counts else None
    return Checkpoint(
        model=network.eval(),
        classes=find_classes({}, {}, network.slots, schema, Path()),
        schema=schema,
        resolution=config.resolution,
        antialias=True,
        sha256=_RANDOM,
        notes=None,
    )


def _fetch(config: ModelConfig) -> Path | None:
    if config.pretrain_weights is None:
        return None
    path = ensure_weights(config.pretrain_weights)
    config.adopt(pretrain_weights=str(path))
    return path


def _fitted(config: ModelConfig, checkpoint: Checkpoint) -> Checkpoint:
    """With what the user set of its shape; `config` takes over the rest."""
    classes, schema = checkpoint.classes, checkpoint.schema
    own: dict[str, Any] = {"resolution": checkpoint.resolution, "num_classes": len(classes) - 1}
    if schema is not None:
        own["num_keypoints_per_class"] = list(schema.counts)
        own["postprocess_trace_alpha"] = schema.trace_alpha
    given = config.model_fields_set
    config.adopt(**{name: value for name, value in own.items() if name not in given})
    if config.model_dump(include={*own}) == own:
        return checkpoint
    counts, path = config.num_keypoints_per_class, Path(config.pretrain_weights or "")
    network = build_model(
        config.row,
        checkpoint.model.state_dict(),
        path=path,
        resolution=config.resolution,
        slots=config.num_classes + 1,
        keypoint_counts=counts,
    )
    if schema is not None:
        schema = replace(schema, trace_alpha=config.postprocess_trace_alpha)
        if counts != list(schema.counts):
            schema = numbered_schema(counts, schema.trace_alpha)
    if network.slots != len(classes):
        classes = find_classes({}, {}, network.slots, schema, path)
    return replace(
        checkpoint,
        model=network.eval(),
        classes=classes,
        resolution=config.resolution,
        schema=schema,
    )


def _context(config: ModelConfig, checkpoint: Checkpoint) -> ModelContext:
    device = _device(config.device)
    try:
        network = checkpoint.model.to(device)
    except (AssertionError, RuntimeError) as error:  # a torch without CUDA, a machine without a GPU
        raise InputError(f"device {config.device!r}: {str(error).splitlines()[0]}") from None
    return ModelContext(
        model=network,
        device=device,
        resolution=checkpoint.resolution,
        classes=checkpoint.classes,
        schema=checkpoint.schema,
        antialias=checkpoint.antialias,
        args=config,
    )


def _device(device: str | torch.device) -> torch.device:
    try:
        return torch.device(device)
    except RuntimeError as error:
        raise InputError(f"device {device!r}: {str(error).splitlines()[0]}") from None


_SIZES = {"large-deprecated": "rfdetr-large"}

CLASSES: dict[str, type[RFDETR]] = {
    row.api_name: type(
        row.api_name,
        (RFDETR,),
        {
            "__doc__": f"RF-DETR {name}, {row.resolution} pixels unless told otherwise.",
            "__module__": __name__,
            "variant": name,
            "size": _SIZES.get(name, f"rfdetr-{name}") if row.weights else None,
        },
    )
    for name, row in VARIANTS.items()
}
"""The class of every row of the variant table, by its name: RFDETRNano, RFDETRSmall, ..."""
