"""Every member of TensorRT that our code touches exists in every version that it says it runs with.

The versions' names are in `tests/tensorrt_members`; what is touched is read from the source, by the
names of variables: each of those below always holds an object of that class of TensorRT.
"""

import ast
import json
import re
from pathlib import Path

import pytest

from exporters.trt.dialect import DIALECTS, dialect_of

_ROOT = Path(__file__).parents[2]
_SNAPSHOTS = json.loads((_ROOT / "tests/tensorrt_members/members.json").read_text())
_FILES = [
    path
    for pattern in ("exporters/trt/*.py", "rfdetr_edge/backends/tensorrt_*.py")
    for path in sorted(_ROOT.glob(pattern))
]
# Whose variables of these names are those of ONNX, argparse and sessions.
_WITHOUT = ("preflight.py", "cli.py", "gate.py")
_OWNERS = {
    "module": "",
    "trt": "",
    "builder": "Builder",
    "config": "IBuilderConfig",
    "network": "INetworkDefinition",
    "definition": "INetworkDefinition",
    "parser": "OnnxParser",
    "fault": "ParserError",
    "layer": "ILayer",
    "tensor": "ITensor",
    "profile": "IOptimizationProfile",
    "cache": "ITimingCache",
    "runtime": "Runtime",
    "engine": "ICudaEngine",
    "context": "IExecutionContext",
    "inspector": "EngineInspector",
    # what calls give
    "get_input": "ITensor",
    "get_output": "ITensor",
    "get_output_type": "DataType",
}
_OURS = {("ILogger", "__init__"), ("IProgressMonitor", "__init__")}


def _touched(source: str) -> set[tuple[str, str]]:
    """(class, member) of TensorRT; the class is "" for members of the module."""
    classes = {name for name in _SNAPSHOTS["10.3"] if name}
    found = set()
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.Attribute):
            continue
        base = node.value.func if isinstance(node.value, ast.Call) else node.value
        name = getattr(base, "attr", getattr(base, "id", "")).lstrip("_")
        owner = name if name in classes else _OWNERS.get(name)
        if owner is not None:
            found.add((owner, node.attr))
    return found - _OURS


def _missing(source: str) -> dict[str, list[str]]:
    """Version -> what it does not have."""
    lacks = {
        version: sorted(
            f"{owner}.{member}"
            for owner, member in _touched(source)
            if member not in snapshot[owner]
        )
        for version, snapshot in _SNAPSHOTS.items()
    }
    return {version: names for version, names in lacks.items() if names}


@pytest.mark.parametrize("path", _FILES, ids=lambda path: path.name)
def test_what_is_touched_is_there_in_every_version(path: Path) -> None:
    if path.name not in _WITHOUT:
        assert _missing(path.read_text()) == {}


def test_what_a_build_touches_is_seen() -> None:
    touched = {pair for path in _FILES for pair in _touched(path.read_text())}
    assert {
        ("", "Builder"),
        ("Builder", "build_serialized_network"),
        ("BuilderFlag", "TF32"),
        ("DataType", "name"),
        ("EngineInspector", "get_engine_information"),
        ("IBuilderConfig", "add_optimization_profile"),
        ("IBuilderConfig", "progress_monitor"),
        ("ICudaEngine", "create_engine_inspector"),
        ("ILayer", "get_output_type"),
        ("ILogger", "WARNING"),
        ("INetworkDefinition", "num_layers"),
        ("IOptimizationProfile", "set_shape"),
        ("ITensor", "name"),
        ("ITimingCache", "serialize"),
        ("LayerType", "DEQUANTIZE"),
        ("NetworkDefinitionCreationFlag", "STRONGLY_TYPED"),
        ("OnnxParser", "parse_from_file"),
        ("ParserError", "node_operator"),
        ("Runtime", "deserialize_cuda_engine"),
    } <= touched


@pytest.mark.parametrize("name", _WITHOUT)
def test_files_left_out_have_nothing_of_tensorrt(name: str) -> None:
    assert not re.search(r"\bmodule\b", (_ROOT / "exporters/trt" / name).read_text())


@pytest.mark.parametrize(
    ("source", "versions"),
    [
        ("config.set_flag(module.BuilderFlag.FP16)", {"11.0", "11.4", "rtx-1.7"}),
        ("self._builder.platform_has_fast_fp16", {"11.0", "11.4", "rtx-1.7"}),
        ("network.get_layer(0).get_output(1).dynamic_range", {"11.0", "11.4", "rtx-1.7"}),
        ("engine.max_batch_size", {"10.3", "10.13", "10.16", "11.0", "11.4", "rtx-1.7"}),
        ("cache.queryKeys()", {"10.3"}),
    ],
)
def test_what_some_versions_lack_is_found(source: str, versions: set[str]) -> None:
    assert _missing(source).keys() == versions


def test_the_oldest_of_each_dialect_is_among_the_versions() -> None:
    known = {
        dialect_of("tensorrt-rtx" if "rtx" in version else "tensorrt", version.removeprefix("rtx-"))
        for version in _SNAPSHOTS
    }
    assert known == set(DIALECTS)
    for dialect in DIALECTS:
        prefix = "rtx-" if dialect.family == "tensorrt-rtx" else ""
        assert f"{prefix}{dialect.since[0]}.{dialect.since[1]}" in _SNAPSHOTS
