"""What flows through a graph is what a plain run of it gives."""

import numpy as np
import pytest
from int8_graphs import normal, parsed

from exporters.onnx_precision.activations import activations

BODY = "a = Identity(x)  s = Add(one, one)  b = Mul(a, s)  c = Relu(b)  y = MatMul(c, w)"
WEIGHTS = normal(3, 2)


def _values(names: list[str], images: list[np.ndarray], batch: int | str) -> list[dict]:
    model = parsed(
        f"(float[{batch},3] x) => (float[{batch},2] y)",
        BODY,
        one=np.ones(3, np.float32),
        w=WEIGHTS,
    )
    return list(activations(model, names, images))


@pytest.mark.parametrize(("batch", "copies"), [("N", 1), (1, 1), (4, 4)])
def test_every_tensor_named_has_its_value_for_each_image_in_turn(batch: int | str, copies: int):
    images = [normal(1, 3, seed=seed) for seed in range(3)]
    # the input, what optimisations would remove, and an output
    found = _values(["x", "a", "s", "b", "y"], images, batch)
    assert len(found) == 3
    for image, values in zip(images, found, strict=True):
        assert [*values] == ["x", "a", "s", "b", "y"]
        several = image.repeat(copies, axis=0)
        np.testing.assert_array_equal(values["x"], several)
        np.testing.assert_array_equal(values["a"], several)
        np.testing.assert_array_equal(values["s"], np.full(3, 2, np.float32))
        np.testing.assert_array_equal(values["b"], 2 * several)
        wanted = np.maximum(2 * several, 0) @ WEIGHTS
        np.testing.assert_allclose(values["y"], wanted, rtol=1e-5, atol=1e-6)


def test_an_image_is_read_when_its_values_are_wanted():
    read = []

    def images():
        for seed in range(3):
            read.append(seed)
            yield normal(1, 3, seed=seed)

    model = parsed("(float[1,3] x) => (float[1,3] y)", "y = Relu(x)")
    values = activations(model, ["y"], images())
    next(values)
    assert read == [0]
