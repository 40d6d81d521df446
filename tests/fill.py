"""Deterministic weights and images, so that golden data need not store them. Needs only numpy.

    from fill import fill_state_dict, make_images, normalize
    weights = fill_state_dict(shapes, seed=0)                     # name -> float32 array
    images = make_images(seed=0, batch=2, height=384, width=384)  # uint8 NHWC, RGB
    x = normalize(images)                                         # float32 NCHW, ImageNet mean, std

Every tensor has its own stream: PCG64 seeded by the SHA-256 of "<seed>:<name>". Only raw 64-bit
words of the bit generator are used (numpy promises that stream never changes); each word gives one
bell-shaped value as the sum of its four 16-bit parts, which is exact integer arithmetic. So the
arrays are the same bits on every machine and under every numpy version.
"""

import hashlib
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

# Sum of four uniform 16-bit integers: mean 4 * 65535 / 2, variance 4 * (65536**2 - 1) / 12.
_MEAN = 131070.0
_STD = float(np.sqrt(4 * (65536.0**2 - 1) / 12.0))
IMAGENET_MEAN = np.array([0.485, 0.456, 0.406], np.float32)
IMAGENET_STD = np.array([0.229, 0.224, 0.225], np.float32)


def _words(key: str, count: int) -> NDArray[np.uint64]:
    digest = hashlib.sha256(key.encode("utf-8")).digest()
    entropy = [int.from_bytes(digest[i : i + 4], "little") for i in range(0, 32, 4)]
    return np.random.PCG64(np.random.SeedSequence(entropy)).random_raw(count)


def bell(key: str, shape: Sequence[int]) -> NDArray[np.float64]:
    """Float64 array of bell-shaped values: mean 0, standard deviation 1, never beyond +-3.47."""
    count = int(np.prod(shape, dtype=np.int64))
    w = np.asarray(_words(key, max(count, 1)), np.uint64)[:count]
    m = np.uint64(0xFFFF)
    total = (w & m) + ((w >> np.uint64(16)) & m) + ((w >> np.uint64(32)) & m) + (w >> np.uint64(48))
    return ((total.astype(np.float64) - _MEAN) / _STD).reshape(shape)


def uniform(key: str, shape: Sequence[int]) -> NDArray[np.float64]:
    """Float64 array, uniform on [0, 1) with 53 bits."""
    count = int(np.prod(shape, dtype=np.int64))
    w = np.asarray(_words(key, max(count, 1)), np.uint64)[:count]
    return ((w >> np.uint64(11)).astype(np.float64) / 2.0**53).reshape(shape)


# (pattern, offset, scale, divide the scale by sqrt(fan_in)?); the first pattern that matches wins.
# fan_in is the product of all axes but the first.
_RULES = [
    (r"class_embed(\.\d+)?\.weight$", 0.0, 1.5, True),
    (r"class_embed(\.\d+)?\.bias$", -4.0, 0.75, False),
    (r"bbox_embed(\.\d+)?\.layers\.2\.weight$", 0.0, 0.5, True),
    (r"bbox_embed(\.\d+)?\.layers\.2\.bias$", "box", 0.1, False),
    (r"keypoint_embed(\.\d+)?\.layers\.2\.weight$", 0.0, 0.3, True),
    (r"keypoint_embed(\.\d+)?\.layers\.2\.bias$", 0.0, 0.2, False),
    (r"refpoint_embed\.weight$", 0.0, 0.2, False),
    (r"query_feat\.weight$", 0.0, 0.5, False),
    (r"sampling_offsets\.bias$", 0.0, 1.0, False),
    (
        r"(cls_token|mask_token|position_embeddings|register_tokens|keypoint_pos_embed)$",
        0.0,
        0.5,
        False,
    ),
    (r"keypoint_query_initializer(_enc)?\.queries$", 0.0, 1.0, False),
    (r"adaLN_modulation\.2\.weight$", 0.0, 0.5, True),
    (r"(lambda1|instance_kp_layer_scale)$", 0.5, 0.1, False),
    (r"query_features_proj\.weight$", 0.0, 0.1, True),
    (r"(^|[._])bias$|in_proj_bias$", 0.0, 0.1, False),
]


def fill_array(name: str, shape: Sequence[int], seed: int) -> NDArray[np.float32]:
    """One float32 array for the parameter `name`."""
    z = bell(f"{seed}:{name}", shape)
    offset, scale, by_fan_in = _rule(name, shape)
    if by_fan_in:
        scale = scale / np.sqrt(float(np.prod(shape[1:], dtype=np.int64)))
    # box head: a larger width and height than the proposal's
    start = np.array([0.0, 0.0, 0.7, 0.7]) if offset == "box" else offset
    return (start + scale * z).astype(np.float32)


def _rule(name: str, shape: Sequence[int]) -> tuple[Any, float, bool]:
    for pattern, offset, scale, by_fan_in in _RULES:
        if re.search(pattern, name):
            return offset, scale, by_fan_in
    # one axis is the scale of a normalisation layer
    return (1.0, 0.1, False) if len(shape) <= 1 else (0.0, 1.0, True)


def fill_state_dict(manifest: Mapping[str, Any], seed: int = 0) -> dict[str, NDArray[np.float32]]:
    """Name -> float32 array for all entries of a manifest except its buffers.

    manifest: `{"state_dict": name -> shape, "buffers": names}`, or a plain dict name -> shape.
    """
    shapes = manifest.get("state_dict", manifest)
    skip = set(manifest.get("buffers", ()))
    return {
        name: fill_array(name, tuple(shape), seed)
        for name, shape in shapes.items()
        if name not in skip
    }


def make_images(
    seed: int, batch: int, height: int, width: int, cell: int = 24, channels: int = 3
) -> NDArray[np.uint8]:
    """uint8 (batch, height, width, channels): a coarse colour grid of `cell` pixels plus noise."""
    gh, gw = -(-height // cell), -(-width // cell)
    coarse = np.floor(uniform(f"{seed}:images:coarse", (batch, gh, gw, channels)) * 192.0)
    coarse = coarse.repeat(cell, axis=1).repeat(cell, axis=2)[:, :height, :width]
    noise = np.floor(uniform(f"{seed}:images:noise", (batch, height, width, channels)) * 64.0)
    return (coarse + noise).astype(np.uint8)


def normalize(images: NDArray[np.uint8]) -> NDArray[np.float32]:
    """uint8 NHWC -> float32 NCHW: divided by 255, minus the mean, by the standard deviation."""
    x = images.astype(np.float32) / np.float32(255.0)
    x = (x - IMAGENET_MEAN) / IMAGENET_STD
    return np.ascontiguousarray(x.transpose(0, 3, 1, 2))


def digest(arrays: Mapping[str, NDArray[Any]]) -> str:
    """SHA-256 over the sorted names and bytes of arrays, to check that two fills agree."""
    h = hashlib.sha256()
    for name in sorted(arrays):
        h.update(name.encode("utf-8"))
        h.update(np.ascontiguousarray(arrays[name]).astype("<f4").tobytes())
    return h.hexdigest()
