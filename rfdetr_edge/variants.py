"""The variants of RF-DETR as one frozen table: sizes differ by values, not by subclasses.

Values of the published variants are those of upstream rfdetr 1.11.2. `tiny` and `mini` are ours:
the same architecture with smaller numbers, for training on a CPU.
"""

from dataclasses import dataclass
from functools import partial
from types import MappingProxyType
from typing import Any, Literal

Task = Literal["detection", "segmentation", "keypoint"]
MASK_STRIDE = 4
"""Pixels of the input for one cell of a mask: the mask grid is the resolution over this."""


@dataclass(frozen=True, slots=True)
class Encoder:
    """A windowed DINOv2 vision transformer without register tokens."""

    width: int
    heads: int
    depth: int = 12


@dataclass(frozen=True, slots=True)
class PublishedWeights:
    """A published checkpoint: its file name, where it lies, and the MD5 of its bytes."""

    filename: str
    url: str
    md5: str


@dataclass(frozen=True, slots=True)
class Variant:
    """Everything that tells one variant from another.

    taps: hidden states handed to the projector; `k` is the state after k blocks. Blocks whose
        *index* is listed attend globally, the others inside windows.
    levels: projector scales relative to the patch grid (2.0 = P3, 1.0 = P4, 0.5 = P5).
    position_grid: side of the square position-embedding table, in patches.
    num_select: query-class pairs that survive before the threshold.
    groups: parallel query groups in training; only the first runs at inference.
    keypoint_counts: keypoints of each class from slot 0, where no data set says otherwise.
    """

    name: str
    api_name: str
    encoder: Encoder
    taps: tuple[int, ...]
    hidden_dim: int
    decoder_layers: int
    self_heads: int
    cross_heads: int
    points: int
    resolution: int
    patch_size: int
    windows: int
    position_grid: int
    levels: tuple[float, ...] = (1.0,)
    num_queries: int = 300
    num_select: int = 300
    num_classes: int = 90
    feedforward: int = 2048
    groups: int = 13
    task: Task = "detection"
    keypoint_counts: tuple[int, ...] = ()
    weights: PublishedWeights | None = None

    @property
    def block_size(self) -> int:
        """Height and width of an input must be multiples of this, in pixels."""
        return self.patch_size * self.windows

    def accepts(self, side: int) -> bool:
        """Whether an input may be this high or wide, in pixels."""
        return side >= self.block_size and side % self.block_size == 0

    def position_grid_at(self, resolution: int) -> int:
        """Side of the position table of a model that is made for a resolution, in patches.

        It follows the resolution, but for base and large-deprecated, whose published 37 x 37 table
        serves every resolution (architecture.md section 11).
        """
        follows = self.position_grid == self.resolution // self.patch_size
        return resolution // self.patch_size if follows else self.position_grid

    def upstream_settings(self) -> dict[str, Any]:
        """What upstream's model settings call the facts of this row."""
        return {
            "encoder": f"dinov2_windowed_{'base' if self.encoder.width == 768 else 'small'}",
            "out_feature_indexes": list(self.taps),
            "dec_layers": self.decoder_layers,
            "projector_scale": [{2.0: "P3", 1.0: "P4", 0.5: "P5"}[level] for level in self.levels],
            "hidden_dim": self.hidden_dim,
            "patch_size": self.patch_size,
            "num_windows": self.windows,
            "sa_nheads": self.self_heads,
            "ca_nheads": self.cross_heads,
            "dec_n_points": self.points,
            "num_queries": self.num_queries,
            "num_select": self.num_select,
            "group_detr": self.groups,
            "dim_feedforward": self.feedforward,
            "num_channels": 3,
            "two_stage": True,
            "bbox_reparam": True,
            "lite_refpoint_refine": True,
            "layer_norm": True,
            "ia_bce_loss": True,
            "segmentation_head": self.task == "segmentation",
            "mask_downsample_ratio": MASK_STRIDE,
            "use_grouppose_keypoints": self.task == "keypoint",
            "dual_projector": self.task == "keypoint",
            "dual_projector_kp_only": self.task == "keypoint",
            "keypoint_cross_attn": True,
            "inter_instance_kp_attn": False,
            "grouppose_keypoint_dim_downscale": 1,
            "gradient_checkpointing": False,
        }


_SMALL = Encoder(width=384, heads=6)
_BASE = Encoder(width=768, heads=12)
_HOST = "https://storage.googleapis.com/rfdetr/"


def _published(filename: str, path: str, md5: str) -> PublishedWeights:
    return PublishedWeights(filename, _HOST + path, md5)


def _current(
    name: str,
    api_name: str,
    decoder_layers: int,
    resolution: int,
    weights: PublishedWeights,
    *,
    task: Task = "detection",
    queries: int = 300,
    windows: int = 2,
) -> Variant:
    """The published families; masks and keypoints come with smaller patches and fewer queries."""
    patch_size = 16 if task == "detection" else 12
    return Variant(
        name=name,
        api_name=api_name,
        encoder=_SMALL,
        taps=(3, 6, 9, 12),
        hidden_dim=256,
        decoder_layers=decoder_layers,
        self_heads=8,
        cross_heads=16,
        points=2,
        resolution=resolution,
        patch_size=patch_size,
        windows=windows,
        position_grid=resolution // patch_size,
        num_queries=queries,
        num_select=queries,
        task=task,
        keypoint_counts=(17,) if task == "keypoint" else (),
        weights=weights,
    )


def _ours(
    name: str,
    api_name: str,
    encoder: Encoder,
    taps: tuple[int, ...],
    hidden_dim: int,
    *,
    queries: int,
    num_select: int,
    groups: int = 5,
    task: Task = "detection",
) -> Variant:
    """The same architecture with smaller numbers."""
    return Variant(
        name=name,
        api_name=api_name,
        encoder=encoder,
        taps=taps,
        hidden_dim=hidden_dim,
        decoder_layers=2,
        self_heads=4,
        cross_heads=8,
        points=2,
        resolution=352,
        patch_size=16,
        windows=2,
        position_grid=22,
        num_queries=queries,
        num_select=num_select,
        feedforward=512,
        groups=groups,
        task=task,
        keypoint_counts=(17,) if task == "keypoint" else (),
    )


_tiny = partial(
    _ours, encoder=Encoder(width=192, heads=3, depth=6), taps=(2, 3, 5, 6), hidden_dim=128
)

_TABLE = (
    _tiny("tiny", "RFDETRTiny", queries=60, num_select=100),
    _tiny("seg-tiny", "RFDETRSegTiny", queries=60, num_select=60, task="segmentation"),
    # every keypoint of every query of every group is a token: fewer, so that a CPU can train it
    _tiny(
        "keypoint-tiny", "RFDETRKeypointTiny", queries=40, num_select=40, groups=3, task="keypoint"
    ),
    _ours(
        "mini",
        "RFDETRMini",
        encoder=Encoder(width=256, heads=4, depth=8),
        taps=(2, 4, 6, 8),
        hidden_dim=192,
        queries=100,
        num_select=100,
    ),
    _current(
        "nano",
        "RFDETRNano",
        2,
        384,
        _published(
            "rf-detr-nano.pth",
            "nano_coco/checkpoint_best_regular.pth",
            "fb6504cce7fbdc783f7a46991f07639f",
        ),
    ),
    _current(
        "small",
        "RFDETRSmall",
        3,
        512,
        _published(
            "rf-detr-small.pth",
            "small_coco/checkpoint_best_regular.pth",
            "fb37061c1af7bace359c91b723a8d5c1",
        ),
    ),
    _current(
        "medium",
        "RFDETRMedium",
        4,
        576,
        _published(
            "rf-detr-medium.pth",
            "medium_coco/checkpoint_best_regular.pth",
            "7223f764a87b863f02eb8d52bf0ce2ee",
        ),
    ),
    _current(
        "large",
        "RFDETRLarge",
        4,
        704,
        _published(
            "rf-detr-large-2026.pth",
            "rf-detr-large-2026.pth",
            "5cb72153541cbcb9aa6efa26222acc75",
        ),
    ),
    Variant(
        name="base",
        api_name="RFDETRBase",
        encoder=_SMALL,
        taps=(2, 5, 8, 11),
        hidden_dim=256,
        decoder_layers=3,
        self_heads=8,
        cross_heads=16,
        points=2,
        resolution=560,
        patch_size=14,
        windows=4,
        position_grid=37,
        weights=_published(
            "rf-detr-base.pth", "rf-detr-base-coco.pth", "b4d3ce46099eaed50626ede388caf979"
        ),
    ),
    Variant(
        name="large-deprecated",
        api_name="RFDETRLargeDeprecated",
        encoder=_BASE,
        taps=(2, 5, 8, 11),
        hidden_dim=384,
        decoder_layers=3,
        self_heads=12,
        cross_heads=24,
        points=4,
        resolution=560,
        patch_size=14,
        windows=4,
        position_grid=37,
        levels=(2.0, 0.5),
        weights=_published(
            "rf-detr-large.pth", "rf-detr-large.pth", "992c8e862aa733a7bb2777e45d49f1a0"
        ),
    ),
    _current(
        "seg-preview",
        "RFDETRSegPreview",
        4,
        432,
        _published(
            "rf-detr-seg-preview.pt",
            "rf-detr-seg-preview.pt",
            "e35820c28fb86080558123e47a5e49ca",
        ),
        task="segmentation",
        queries=200,
    ),
    _current(
        "seg-nano",
        "RFDETRSegNano",
        4,
        312,
        _published(
            "rf-detr-seg-nano.pt",
            "rf-detr-seg-n-ft.pth",
            "9995497791d0ff1664a1d9ddee9cfd20",
        ),
        task="segmentation",
        queries=100,
        windows=1,
    ),
    _current(
        "seg-small",
        "RFDETRSegSmall",
        4,
        384,
        _published(
            "rf-detr-seg-small.pt",
            "rf-detr-seg-s-ft.pth",
            "0a2a3006381d0c42853907e700eadd08",
        ),
        task="segmentation",
        queries=100,
    ),
    _current(
        "seg-medium",
        "RFDETRSegMedium",
        5,
        432,
        _published(
            "rf-detr-seg-medium.pt",
            "rf-detr-seg-m-ft.pth",
            "a49af1562c3719227ad43d0ca53b4c7a",
        ),
        task="segmentation",
        queries=200,
    ),
    _current(
        "seg-large",
        "RFDETRSegLarge",
        5,
        504,
        _published(
            "rf-detr-seg-large.pt",
            "rf-detr-seg-l-ft.pth",
            "275f7b094909544ed2841c94a677d07e",
        ),
        task="segmentation",
        queries=200,
    ),
    _current(
        "seg-xlarge",
        "RFDETRSegXLarge",
        6,
        624,
        _published(
            "rf-detr-seg-xlarge.pt",
            "rf-detr-seg-xl-ft.pth",
            "3693b35d0eea86ebb3e0444f4a611fba",
        ),
        task="segmentation",
        queries=300,
    ),
    _current(
        "seg-2xlarge",
        "RFDETRSeg2XLarge",
        6,
        768,
        _published(
            "rf-detr-seg-xxlarge.pt",
            "rf-detr-seg-2xl-ft.pth",
            "040bc3412af840fa8a47e0ff69b552ba",
        ),
        task="segmentation",
        queries=300,
    ),
    _current(
        "keypoint-preview",
        "RFDETRKeypointPreview",
        4,
        576,
        _published(
            "rf-detr-keypoint-preview-xlarge.pth",
            "rf-detr-keypoint-preview-xlarge.pth",
            "6de511943ee85a547d4c5cb527daf0eb",
        ),
        queries=100,
        task="keypoint",
    ),
)

VARIANTS = MappingProxyType({variant.name: variant for variant in _TABLE})
