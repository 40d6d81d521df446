"""Tensors equal upstream's, from any image an array can hold (tests/golden/README.md)."""

import json
from pathlib import Path

import numpy as np
import pytest
from fill import make_images

from rfdetr_edge.errors import InputError
from rfdetr_edge.metadata import InputSpec
from rfdetr_edge.preprocess import check_image, preprocess, preprocess_batch

GOLDEN = np.load(Path(__file__).parents[1] / "golden" / "preprocess.npz")
CASES = json.loads(str(GOLDEN["cases"]))
BYTE_STEP = 1.001 / 255 / 0.224  # in the normalised tensor, of the channel with the smallest std
TOLERANCES = {"aaF": 1e-5, "aaT": 1e-5, "pil": BYTE_STEP}
BOTH = pytest.mark.parametrize("antialias", [False, True])


def _photo(height: int = 48, width: int = 64) -> np.ndarray:
    return make_images(7, 1, height, width, cell=5)[0]


@pytest.mark.parametrize("tag", TOLERANCES)
@pytest.mark.parametrize("resolution", [384, 512])
@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case['height']}x{case['width']}")
def test_tensor_equals_golden(case: dict, resolution: int, tag: str) -> None:
    image = make_images(case["image_seed"], 1, case["height"], case["width"], cell=case["cell"])[0]
    tensor = preprocess(image, InputSpec((resolution, resolution), antialias=tag != "aaF"))
    assert tensor.dtype == np.float32
    assert tensor.flags.c_contiguous
    parts = {
        "stride16": tensor[:, ::16, ::16],
        "edge_rows": tensor[:, [0, -1], ::3],
        "edge_cols": tensor[:, ::3][:, :, [0, -1]],
    }
    key = f"{case['height']}x{case['width']}_{resolution}_{tag}"
    for part, values in parts.items():
        np.testing.assert_allclose(values, GOLDEN[f"{key}_{part}"], rtol=0, atol=TOLERANCES[tag])
    if tag != "pil":  # byte rounding is biased, so its sums differ
        wide = tensor.astype(np.float64)
        sums = [wide.sum(), np.abs(wide).sum()]
        np.testing.assert_allclose(sums, GOLDEN[f"{key}_sum"], rtol=1e-5)


@pytest.mark.parametrize(
    ("name", "image", "resolution"),
    [
        ("gray_L_384", GOLDEN["gray_in"][..., None].repeat(3, axis=2), (384, 384)),
        ("rgba_384", GOLDEN["rgba_in"][..., :3], (384, 384)),
        ("float_hwc_384x512", GOLDEN["float_in"], (384, 512)),
    ],
)
def test_converted_image_equals_golden(
    name: str, image: np.ndarray, resolution: tuple[int, int]
) -> None:
    tensor = preprocess(image, InputSpec(resolution, antialias=False))
    expected = GOLDEN[f"{name}_aaF_stride16"]
    np.testing.assert_allclose(tensor[:, ::16, ::16], expected, rtol=0, atol=1e-5)


@BOTH
def test_any_strides_give_the_same_tensor(antialias: bool) -> None:
    spec = InputSpec((30, 50), antialias)
    rgb = _photo()
    expected = preprocess(rgb, spec)
    bgr = rgb[..., ::-1].copy()
    planes = rgb.transpose(2, 0, 1).copy()
    framed = np.pad(rgb, ((3, 3), (5, 5), (0, 0)))
    mirrored = rgb[::-1, ::-1].copy()
    for view in (
        bgr[..., ::-1],
        planes.transpose(1, 2, 0),
        framed[3:-3, 5:-5],
        mirrored[::-1, ::-1],
        np.asfortranarray(rgb),
    ):
        np.testing.assert_array_equal(preprocess(view, spec), expected)


@BOTH
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_float_image_equals_its_bytes(antialias: bool, dtype: type) -> None:
    spec = InputSpec((30, 50), antialias)
    image = _photo()
    tensor = preprocess((image / 255).astype(dtype), spec)
    np.testing.assert_allclose(tensor, preprocess(image, spec), rtol=0, atol=1e-5)


@BOTH
@pytest.mark.parametrize("shape", [(20000, 10), (10, 20000), (1, 1), (1, 700), (700, 1)])
def test_extreme_shapes_keep_a_constant_colour(antialias: bool, shape: tuple[int, int]) -> None:
    spec = InputSpec((64, 96), antialias)
    colour = np.array([10, 128, 255], np.uint8)
    tensor = preprocess(np.broadcast_to(colour, (*shape, 3)), spec)
    expected = (colour / 255 - spec.mean) / spec.std
    np.testing.assert_allclose(
        tensor, np.broadcast_to(expected[:, None, None], tensor.shape), atol=1e-5
    )


def test_mean_and_std_of_the_spec_are_used() -> None:
    spec = InputSpec((8, 8), antialias=False, mean=(0.0, 0.5, 0.25), std=(1.0, 0.5, 0.25))
    image = np.full((4, 4, 3), 255, np.uint8)
    tensor = preprocess(image, spec)
    np.testing.assert_allclose(tensor[:, 0, 0], [1.0, 1.0, 3.0], rtol=1e-6)


def test_batch_of_different_sizes_equals_single_images() -> None:
    spec = InputSpec((40, 24), antialias=True)
    images = [_photo(48, 64), _photo(7, 5), _photo(200, 90)[..., ::-1]]
    batch = preprocess_batch(images, spec)
    assert batch.shape == (3, 3, 40, 24)
    for image, tensor in zip(images, batch, strict=True):
        np.testing.assert_array_equal(tensor, preprocess(image, spec))


@pytest.mark.parametrize(
    ("image", "said"),
    [
        (np.zeros((4, 4), np.uint8), r"shape \(4, 4\).*\(height, width, 3\)"),
        (np.zeros((1, 4, 4, 3), np.uint8), r"shape \(1, 4, 4, 3\)"),
        (np.zeros((3, 4, 5), np.uint8), r"shape \(3, 4, 5\)"),
        (np.zeros((4, 4, 4), np.uint8), r"shape \(4, 4, 4\)"),
        (np.zeros((0, 4, 3), np.uint8), r"shape \(0, 4, 3\)"),
        (np.zeros((4, 4, 3), np.uint16), r"uint16.*65535"),
        (np.zeros((4, 4, 3), np.int64), "int64"),
        (np.zeros((4, 4, 3), bool), "bool"),
        (np.zeros((4, 4, 3), np.float16), "float16"),
        (np.full((4, 4, 3), np.nan, np.float32), "NaN"),
        (np.full((4, 4, 3), np.inf), "inf"),
        (np.full((4, 4, 3), -0.1), "from -0.1 to -0.1"),
        (np.full((4, 4, 3), 200.0, np.float32), "to 200.*Divide"),
    ],
)
def test_unusable_array_is_one_clear_error(image: np.ndarray, said: str) -> None:
    with pytest.raises(InputError, match=said):
        check_image(image)
    with pytest.raises(InputError, match=said):
        preprocess(image, InputSpec((8, 8), antialias=False))


def test_one_bad_value_in_a_good_image_is_found() -> None:
    image = (_photo() / 255).astype(np.float32)
    check_image(image)
    image[-1, -1, -1] = np.nan
    with pytest.raises(InputError, match="NaN"):
        check_image(image)
