"""Settings of a model and of a training run, under upstream's names. Unknown names are errors.

Upstream documents many more settings (training.md section 12). Those that are constants here are
accepted at their value only, so that existing calls work and no call is silently ignored.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    JsonValue,
    ValidationError,
    field_validator,
    model_validator,
)

from rfdetr_edge.errors import InputError
from rfdetr_edge.keypoint_schema import TRACE_ALPHA
from rfdetr_edge.variants import VARIANTS, Task, Variant
from rfdetr_edge.yaml_file import read_yaml
from trainer.data.augmentation import Augmentation, advice, read_augmentation

S = TypeVar("S", bound="_Settings")

Fraction = Annotated[float, Field(ge=0, le=1)]
Rate = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Count = Annotated[int, Field(ge=1)]

# Documented name -> its only value, and where, or why, it is fixed.
_CONSTANTS = {
    name: (value, home)
    for home, values in read_yaml(Path(__file__).with_name("fixed_settings.yaml")).items()
    for name, value in values.items()
}


class _Settings(BaseModel):
    model_config = ConfigDict(extra="forbid", validate_assignment=True, protected_namespaces=())

    @model_validator(mode="before")
    @classmethod
    def _only_known(cls, values: Any) -> Any:
        """Drops constants given at their value; names the nearest setting for an unknown one."""
        if not isinstance(values, Mapping):
            return values
        constants = cls._constants(values)
        kept = {}
        for name, value in values.items():
            if name in cls.model_fields:
                kept[name] = value
            elif name not in constants:
                hint = advice(name, [*cls.model_fields, *constants])
                raise ValueError(f"{cls.__name__} has no setting {name!r}; {hint}")
            elif value != (fixed := constants[name][0]):
                raise ValueError(
                    f"{name} is {fixed!r} here and cannot be set to {value!r}; "
                    f"leave it out ({constants[name][1]})"
                )
        return kept

    @classmethod
    def _constants(cls, values: Mapping[str, Any]) -> Mapping[str, tuple[Any, str]]:
        return {}


class ModelConfig(_Settings):
    """Which network, with which weights.

    variant: its name in the variant table; what the table says is accepted, never changed.
    resolution: side of the square input in pixels, a multiple of the variant's block size.
    num_classes: classes without background; a data set's count replaces it in `train` unless it
        was given (it then stands in `model_fields_set`).
    pretrain_weights: a checkpoint, or the bare name of a published file; None is random weights.
    device: "cpu", "cuda", "cuda:1", "mps".
    freeze_encoder: trains everything but the encoder.
    num_keypoints_per_class: of a keypoint variant, by class slot; a data set's replace them.
    postprocess_trace_alpha: how much uncertain keypoints lower a detection's confidence.
    """

    variant: str = Field(frozen=True)
    resolution: int
    num_classes: Count
    pretrain_weights: str | None = None
    device: str = "cpu"
    freeze_encoder: bool = False
    num_keypoints_per_class: list[Annotated[int, Field(ge=0)]] = Field(default_factory=list)
    postprocess_trace_alpha: Rate = TRACE_ALPHA

    @classmethod
    def _constants(cls, values: Mapping[str, Any]) -> Mapping[str, tuple[Any, str]]:
        row = VARIANTS.get(str(values.get("variant")))
        facts = row.upstream_settings() if row else {}
        return {name: (value, "rfdetr_edge/variants.py") for name, value in facts.items()}

    @field_validator("variant")
    @classmethod
    def _known(cls, name: str) -> str:
        if name not in VARIANTS:
            raise ValueError(f"unknown variant {name!r}; choose one of {', '.join(VARIANTS)}")
        return name

    @model_validator(mode="after")
    def _fits(self) -> "ModelConfig":
        if not self.row.accepts(self.resolution):
            raise ValueError(misfit(self.row, self.resolution))
        if any(self.num_keypoints_per_class) != (self.row.task == "keypoint"):
            raise ValueError(
                f"num_keypoints_per_class {self.num_keypoints_per_class} does not fit "
                f"{self.variant}, a {self.row.task} variant"
            )
        return self

    def adopt(self, **values: Any) -> None:
        """Takes values that the user did not give, so they do not count as set."""
        given = set(self.model_fields_set)
        for name, value in values.items():
            setattr(self, name, value)
        self.model_fields_set.intersection_update(given)

    @property
    def row(self) -> Variant:
        """The variant's row of the table."""
        return VARIANTS[self.variant]

    @property
    def patch_size(self) -> int:
        """Side of a patch in pixels."""
        return self.row.patch_size

    @property
    def num_windows(self) -> int:
        """Windows along each side of the patch grid."""
        return self.row.windows

    @property
    def positional_encoding_size(self) -> int:
        """Side of the position table in patches: it follows the resolution, but for base."""
        return self.row.position_grid_at(self.resolution)


def checked(kind: type[S], settings: Mapping[str, Any]) -> S:
    """`kind(**settings)`, whose first validation error becomes an InputError of one line."""
    try:
        return kind(**settings)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"])
        text = first["msg"].removeprefix("Value error, ")
        raise InputError(f"{place + ': ' if place else ''}{text}") from None


def model_config(variant: str, **settings: Any) -> ModelConfig:
    """The settings of a variant; what is not given is the variant's own and not marked as set.

    Raises InputError, of one line, for settings that do not fit.
    """
    own = {}
    if row := VARIANTS.get(variant):
        own = {
            "resolution": row.resolution,
            "num_classes": row.num_classes,
            "pretrain_weights": row.weights.filename if row.weights else None,
            "num_keypoints_per_class": list(row.keypoint_counts),
        }
    config = checked(ModelConfig, {**own, **settings, "variant": variant})
    config.model_fields_set.intersection_update(settings)
    return config


# What upstream's settings class of a task has instead of the defaults below.
_DEFAULTS: Mapping[Task, Mapping[str, Any]] = {
    "keypoint": {
        "cls_loss_coef": 2.0,
        **{f"keypoint_{part}_loss_coef": 1.0 for part in ("l1", "findable", "visible", "nll")},
        "skip_best_epochs": 10,
        "smooth_alpha": 0.5,
    }
}


def train_config(task: Task, **settings: Any) -> "TrainConfig":
    """The settings of a run; what is not given has the task's default. Errors: `model_config`."""
    return checked(TrainConfig, {**_DEFAULTS.get(task, {}), **settings})


def misfit(row: Variant, side: int) -> str:
    """Why a side is no input of a variant, with the nearest ones that are."""
    block = row.block_size
    below = max(side // block, 1) * block
    return (
        f"resolution {side} is no multiple of {block} (patch size times windows of {row.name}); "
        f"the nearest are {below} and {below + block}"
    )


class TrainConfig(_Settings):
    """One training run. The defaults are upstream's.

    dataset_dir: folder with train, valid and test. dataset_file: its layout, "roboflow" (COCO or
        YOLO, whichever is found), "coco" (train2017, annotations/instances_*.json) or "yolo".
    batch_size: images a device and step, or "auto" (CUDA only), which also chooses
        grad_accum_steps so that auto_batch_target_effective images make one optimizer step.
    lr, lr_encoder: rates of the new parts and of the encoder; lr_component_decay and
        lr_vit_layer_decay lower them by part and by block (training.md section 4).
    lr_scheduler: "step" (lr_scheduler_kwargs lr_drop: epoch of the drop to a tenth) or "cosine"
        (min_factor: share of the rate at the end); warmup_epochs come before.
    multi_scale: "per-batch" draws a side for every batch; True and False as upstream.
    warm_resolution: side used for the first warm_fraction of the epochs; smaller is faster, and
        most of what a network learns from random weights does not need the pixels.
    aug_config: see trainer/data/augmentation.py. scale_jitter: resize and crop half the images.
    antialias: the resize of training and validation, which the checkpoint passes on.
    ema_decay, ema_tau: weight average and its warm-up in optimizer steps (0: none).
    cls_loss_coef and the other _coef: weights of the losses; `train_config` has a keypoint
        variant's own.
    keypoint_flip_pairs: flat list of the points that a mirror image swaps, [1, 2, 3, 4]; left out,
        left_x and right_x are pairs. keypoint_oks_sigmas: one a point, for OKS. Both count
        through the points of all classes, class after class.
    smooth_alpha: share of the last smoothed metric in the one that chooses the best weights.
    eval_interval: epochs between validations; the last epoch is always validated.
    checkpoint_interval: epochs between kept checkpoint_<epoch>.ckpt; last.ckpt is every epoch's.
    resume: a last.ckpt, or "last" for that of output_dir.
    amp_dtype: "auto" is bf16 or fp16 on CUDA and None (float32) elsewhere.
    accelerator, devices, strategy, num_nodes: passed to Lightning.
    notes: any JSON value; it travels in every checkpoint and artifact.
    """

    dataset_dir: Path
    output_dir: Path = Path("output")
    dataset_file: Literal["roboflow", "coco", "yolo"] = "roboflow"
    class_names: list[str] | None = None
    epochs: Count = 100
    batch_size: Count | Literal["auto"] = 4
    grad_accum_steps: Count = 1
    auto_batch_target_effective: Count = 16
    lr: Rate = 1e-4
    lr_encoder: Rate = 1.5e-4
    lr_vit_layer_decay: Fraction = 0.8
    lr_component_decay: Fraction = 0.7
    weight_decay: Rate = 1e-4
    clip_max_norm: Rate = 0.1
    lr_scheduler: Literal["step", "cosine"] = "step"
    lr_scheduler_kwargs: dict[Literal["lr_drop", "min_factor"], Rate] = Field(default_factory=dict)
    warmup_epochs: Rate = 0.0
    cls_loss_coef: Rate = 1.0
    mask_ce_loss_coef: Rate = 5.0
    mask_dice_loss_coef: Rate = 5.0
    keypoint_l1_loss_coef: Rate = 0.0
    keypoint_findable_loss_coef: Rate = 0.0
    keypoint_visible_loss_coef: Rate = 0.0
    keypoint_nll_loss_coef: Rate = 0.0
    keypoint_flip_pairs: list[Annotated[int, Field(ge=0)]] = Field(default_factory=list)
    keypoint_oks_sigmas: list[Annotated[float, Field(gt=0)]] | None = None
    drop_path: Annotated[float, Field(ge=0, lt=1)] = 0.0
    multi_scale: Literal["off", "per-batch"] | bool = "per-batch"
    expanded_scales: bool = True
    warm_resolution: int | None = None
    warm_fraction: Fraction = 0.4
    aug_config: Augmentation | None = None
    scale_jitter: bool = True
    antialias: bool = True
    use_ema: bool = True
    ema_decay: Fraction = 0.993
    ema_tau: Annotated[float, Field(ge=0)] = 100.0
    early_stopping: bool = False
    early_stopping_patience: Count = 10
    early_stopping_min_delta: Rate = 0.001
    skip_best_epochs: Annotated[int, Field(ge=0)] = 0
    smooth_alpha: Annotated[float, Field(ge=0, lt=1)] = 0.0
    best_model_metric: Literal["map", "mar"] = "map"
    eval_interval: Count = 1
    eval_max_dets: Count = 500
    checkpoint_interval: Count = 10
    resume: Path | None = None
    run_test: bool = False
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 42
    num_workers: Annotated[int, Field(ge=0)] = 2
    amp_dtype: Literal["auto", "bf16", "fp16"] | None = "auto"
    accelerator: str = "auto"
    devices: int | list[int] | str = 1
    num_nodes: Count = 1
    strategy: str = "auto"
    tensorboard: bool = True
    progress_bar: Literal["tqdm", "rich"] | None = None
    save_dataset_grids: bool = False
    notes: JsonValue = None

    @classmethod
    def _constants(cls, values: Mapping[str, Any]) -> Mapping[str, tuple[Any, str]]:
        return _CONSTANTS

    @field_validator("aug_config", mode="before")
    @classmethod
    def _read_augmentation(cls, value: Any) -> Any:
        return value if value is None else read_augmentation(value)

    @field_validator("seed", mode="before")
    @classmethod
    def _no_seed_is_42(cls, value: Any) -> Any:
        return 42 if value is None else value

    @field_validator("keypoint_flip_pairs")
    @classmethod
    def _in_pairs(cls, flat: list[int]) -> list[int]:
        if len(flat) % 2:
            raise ValueError(f"must be pairs in a row, such as [1, 2, 3, 4]; not {flat}")
        return flat

    @property
    def coefficients(self) -> dict[str, float]:
        """The weight of every loss, by its name."""
        return {
            "loss_ce": self.cls_loss_coef,
            "loss_bbox": 5.0,
            "loss_giou": 2.0,
            "loss_mask_ce": self.mask_ce_loss_coef,
            "loss_mask_dice": self.mask_dice_loss_coef,
            "loss_keypoints_l1": self.keypoint_l1_loss_coef,
            "loss_keypoints_findable": self.keypoint_findable_loss_coef,
            "loss_keypoints_visible": self.keypoint_visible_loss_coef,
            "loss_keypoints_nll": self.keypoint_nll_loss_coef,
        }

    @property
    def scales_vary(self) -> bool:
        """Whether every batch draws its side."""
        return self.multi_scale in ("per-batch", True)

    @property
    def resume_path(self) -> Path | None:
        """The checkpoint to go on from."""
        return self.output_dir / "last.ckpt" if self.resume == Path("last") else self.resume
