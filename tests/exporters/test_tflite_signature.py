"""A converted file says of its tensors what ours do, and its own kernels get it right."""

from pathlib import Path

import numpy as np
import pytest
import tflite_graphs

from exporters.tflite.signature import signed
from rfdetr_edge.backends import open_session
from rfdetr_edge.errors import ArtifactError

tfl = tflite_graphs.tfl
X = np.random.default_rng(0).normal(size=(1, 6, 4)).astype(np.float32)
ADDED = np.arange(4, dtype=np.float32)


def _reshaped_twice(read: str) -> bytes:
    """y = (|x| + added) - |x|, of which the first |x| is reshaped.

    read: what is subtracted: "reshape" another reshaped one, "source" as it is, "nothing" zeros.
    """
    graph = tflite_graphs.Graph()
    shape = graph.constant("shape", np.array([1, 6, 4], np.int32))
    x = graph.tensor("x", (1, 6, 4))
    size = graph.node("ABS", [x], graph.tensor("size", (1, 6, 4)))
    zeros = graph.constant("zeros", np.zeros(4, np.float32))
    source = graph.tensor("source", (1, 6, 4))
    graph.node("ADD", [size, zeros], source, table="AddOptions")  # it lies where `size` lay
    first = graph.node("RESHAPE", [source, shape], graph.tensor("first", (1, 6, 4)))
    added = graph.constant("added", ADDED)
    total = graph.tensor("total", (1, 6, 4))
    graph.node("ADD", [first, added], total, table="AddOptions")
    subtracted = {"source": source, "nothing": zeros}
    if read == "reshape":
        second = graph.tensor("second", (1, 6, 4))
        subtracted["reshape"] = graph.node("RESHAPE", [source, shape], second)
    y = graph.tensor("y", (1, 6, 4))
    graph.node("SUB", [total, subtracted[read]], y, table="SubOptions")
    return graph.packed({"x": x}, {"y": y}, signature=False)


def _run(model: bytes, folder: Path, provider: str) -> np.ndarray:
    path = folder / "model.tflite"
    path.write_bytes(model)
    session = open_session(path, provider=provider)
    return session.run({session.inputs[0].name: X})["y"]


def _operators(model: bytes) -> list[int]:
    file = tfl.ModelT.InitFromPackedBuf(model)
    return [
        file.operatorCodes[node.opcodeIndex].builtinCode for node in file.subgraphs[0].operators
    ]


@pytest.mark.parametrize("read", ["reshape", "source", "nothing"])
def test_what_is_reshaped_and_needed_again_is_copied(tmp_path, read):
    model = _reshaped_twice(read)
    expected = np.abs(X) + ADDED - (0 if read == "nothing" else np.abs(X))
    for provider in ("xnnpack", "builtin", "reference"):
        found = _run(signed(model, ["y"]), tmp_path, provider)
        np.testing.assert_allclose(found, expected, atol=1e-6)
    copies = _operators(signed(model, ["y"])).count(tfl.BuiltinOperator.MAXIMUM)
    assert copies == (0 if read == "nothing" else 1)


@pytest.mark.parametrize("provider", ["builtin", "reference"])
def test_litert_overwrites_it_otherwise(tmp_path, provider):
    """Should this fail with a newer LiteRT, exporters.tflite.aliases can go."""
    found = _run(_reshaped_twice("reshape"), tmp_path, provider)
    np.testing.assert_array_equal(found, 0)


def test_open_sizes_are_fixed_and_outputs_ordered(tmp_path):
    path = tmp_path / "model.tflite"
    path.write_bytes(signed(tflite_graphs.detector(batch=None, scores_first=True), OUTPUTS))
    session = open_session(path)
    assert [str(spec) for spec in (*session.inputs, *session.outputs)] == [
        "input float32 (1, 3, 64, 96)",
        "dets float32 (1, 24, 4)",
        "labels float32 (1, 24, 4)",
    ]


OUTPUTS = ("dets", "labels")


@pytest.mark.parametrize(
    ("outputs", "wanted"),
    [(("a", "b"), OUTPUTS), (OUTPUTS, ("dets",)), (OUTPUTS, (*OUTPUTS, "masks"))],
)
def test_other_outputs_are_named(outputs, wanted):
    with pytest.raises(
        ArtifactError, match=f"1 inputs and .*; wanted are one and {', '.join(wanted)}$"
    ):
        signed(tflite_graphs.detector(outputs=outputs), wanted)
