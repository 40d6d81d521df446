"""Settings of a training run. Unknown names are errors."""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from rfdetr_edge.variants import VARIANTS, Variant

Fraction = Annotated[float, Field(ge=0, le=1)]


class TrainConfig(BaseModel):
    """One training run from random weights or from a checkpoint; defaults suit `tiny` on a CPU.

    dataset: folder with train, valid and test in COCO format.
    resolution: side of the square input in pixels; None is the variant's own.
    warm_resolution: side used for the first `warm_fraction` of the epochs; smaller is faster,
        and most of what a network learns from random weights does not need the pixels.
    precision: "bf16" computes the network in bfloat16 where the CPU or GPU has it.
    ema_decay: decay of the weight average that is validated and kept.
    eval_interval: epochs between validations; the last epoch is always validated.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    variant: str
    dataset: Path
    output: Path = Path("output")
    weights: Path | None = None
    epochs: int = Field(default=100, ge=1)
    batch_size: int = Field(default=4, ge=1)
    lr: float = Field(default=8e-4, gt=0)
    weight_decay: float = Field(default=0.05, ge=0)
    warmup_steps: int = Field(default=100, ge=0)
    clip_max_norm: float = Field(default=0.1, gt=0)
    ema_decay: Fraction = 0.998
    resolution: int | None = None
    warm_resolution: int | None = None
    warm_fraction: Fraction = 0.4
    paste_probability: Fraction = 0.3
    antialias: bool = True
    precision: Literal["fp32", "bf16"] = "fp32"
    eval_interval: int = Field(default=5, ge=1)
    num_workers: int = Field(default=1, ge=0)
    seed: int = 42
    resume: Path | None = None

    @field_validator("variant")
    @classmethod
    def _known(cls, name: str) -> str:
        if name not in VARIANTS:
            raise ValueError(f"unknown variant {name!r}; choose one of {', '.join(VARIANTS)}")
        return name

    @model_validator(mode="after")
    def _divisible(self) -> "TrainConfig":
        block = self.table_entry.block_size
        for side in (self.resolution, self.warm_resolution):
            if side is not None and not self.table_entry.accepts(side):
                below = max(side // block, 1) * block
                raise ValueError(
                    f"resolution {side} is no multiple of {block} (patch size times windows of "
                    f"{self.variant}); the nearest are {below} and {below + block}"
                )
        return self

    @property
    def table_entry(self) -> Variant:
        """The variant's row of the table."""
        return VARIANTS[self.variant]

    @property
    def side(self) -> int:
        """Side of the square input after the warm phase, in pixels."""
        return self.resolution or self.table_entry.resolution

    def side_at(self, epoch: int) -> int:
        """Side of the square input in an epoch (from 0), in pixels."""
        if self.warm_resolution is not None and epoch < self.warm_fraction * self.epochs:
            return self.warm_resolution
        return self.side
