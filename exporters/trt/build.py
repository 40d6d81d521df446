"""From an ONNX file to an engine, by TensorRT's builder or by trtexec. Knows nothing of detectors.

TF32 is off: it rounds the factors of FP32 products to 10 bits, and what is asked for as FP32, be it
the whole network or what FP16 leaves in it, is to be that.
"""

import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx

from exporters.trt.dialect import Installed
from exporters.trt.graph_products import graph_products
from exporters.trt.inspector import PRECISIONS, inspect
from exporters.trt.log import checked
from exporters.trt.monitor import watched
from exporters.trt.network import Network, outputs, parse, products
from exporters.trt.options import Batch, EngineOptions
from rfdetr_edge.errors import ArtifactError, BackendError, InputError
from rfdetr_edge.files import check_place, replacing
from rfdetr_edge.metadata import Precision

_MIB = 1 << 20
# Fusing joins layers, and not evenly: this much of the network's share of layers that give the
# precision must be left in the engine. Far above the few casts of one that is something else; no
# engine of ours has been inspected yet.
_SHARE_LEFT = 0.5
# What an engine must have none of. FP16 has FP32 in it, and INT8 both: what would lose too much.
_FORBIDDEN: Mapping[Precision, tuple[Precision, ...]] = {
    "fp32": ("fp16", "int8"),
    "fp16": ("int8",),
}


@dataclass(frozen=True, slots=True, eq=False)
class Built:
    """An engine in memory.

    plan: its bytes, as TensorRT's IHostMemory. layers: how many give what, as the engine inspector
    says; None where there is no GPU to load it. seconds: of the build, None where it is not known.
    """

    plan: Any
    batch: Batch
    layers: Mapping[str, int] | None
    seconds: float | None


def build(
    tensorrt: Installed,
    source: Path,
    precision: Precision,
    options: EngineOptions,
    *,
    has_gpu: bool,
) -> Built:
    """Builds an engine of an ONNX file whose graph has this precision.

    has_gpu: whether the engine can be loaded here, to see what became of it.
    Raises InputError for options that do not fit the graph or the TensorRT, BackendError for what
    TensorRT cannot do, and ArtifactError for a network or engine of another precision, or one that
    does not tell.
    """
    check_options(tensorrt, options, has_gpu=has_gpu)
    module = tensorrt.module
    parsed = _parsed(tensorrt, source, precision)
    batch = options.fitting_batch(parsed.image[1][0])
    config = _configured(module, parsed, options, batch)
    start = time.perf_counter()
    with watched(module, config, "building"):
        builder = parsed.builder
        plan = builder.build_serialized_network(parsed.definition, config)
    scarce = "" if options.workspace is None else "; a larger --workspace may help"
    checked(module, plan, f"build an engine of {source}{scarce}")
    seconds = time.perf_counter() - start
    if options.timing_cache is not None:
        _keep_timings(module, config, options.timing_cache)
    layers = _inspected(tensorrt, source, precision, parsed, plan, batch) if has_gpu else None
    return Built(plan, batch, layers, seconds)


def adopt(
    tensorrt: Installed, source: Path, plan: bytes, precision: Precision, options: EngineOptions
) -> Built:
    """An engine that trtexec built of this ONNX file, checked as `build` does; needs a GPU.

    plan: its bytes. Raises what `build` raises, and BackendError for an engine that does not load.
    """
    parsed = _parsed(tensorrt, source, precision)
    batch = options.fitting_batch(parsed.image[1][0])
    layers = _inspected(tensorrt, source, precision, parsed, plan, batch)
    return Built(plan, batch, layers, None)


def check_options(tensorrt: Installed, options: EngineOptions, *, has_gpu: bool) -> None:
    """What `build` raises before it looks at a graph: for a missing GPU, and timings in vain."""
    if tensorrt.dialect.needs_gpu and not has_gpu:
        raise BackendError(
            f"{tensorrt} builds engines on the GPU that will run them, and there is none here; "
            "build on the device, use --dialect tensorrt-rtx, or see --print-trtexec"
        )
    if options.timing_cache is not None and not tensorrt.dialect.keeps_timings:
        raise InputError(f"{tensorrt} times nothing while it builds; leave --timing-cache out")
    if options.timing_cache is not None:
        check_place(options.timing_cache)


def _parsed(tensorrt: Installed, source: Path, precision: Precision) -> Network:
    parsed = parse(tensorrt, source)
    _check_network(precision, source, products(tensorrt.module, parsed.definition))
    return parsed


def _inspected(
    tensorrt: Installed,
    source: Path,
    precision: Precision,
    parsed: Network,
    plan: Any,
    batch: Batch,
) -> Mapping[str, int]:
    name, shape = parsed.image
    smallest, best, largest = ((size, *shape[1:]) for size in batch)
    image = (name, (smallest, best, largest)) if shape[0] < 0 else None
    layers = inspect(tensorrt, plan, image)
    _check_engine(precision, source, layers, outputs(tensorrt.module, parsed.definition))
    return layers


def _check_network(asked: Precision, source: Path, found: Mapping[Precision, int]) -> None:
    """found: how many products of the parsed network compute in what."""
    what = f"the network of {source}"
    _require(asked, found, what)
    wanted = graph_products(onnx.load(source))
    if any(found.get(kind, 0) < count for kind, count in wanted.items()):
        raise ArtifactError(
            f"{what} is not what the graph says: {_counts(wanted)} became {_counts(found)}; use "
            "another TensorRT, or run the .onnx artifact"
        )


def _check_engine(
    asked: Precision, source: Path, layers: Mapping[str, int], parsed: Mapping[Precision, int]
) -> None:
    """layers: of the engine, as `inspect` counts them. parsed: the same of the parsed network."""
    what = f"the engine of {source}"
    found = {PRECISIONS[kind]: count for kind, count in layers.items()}
    if not found:
        raise ArtifactError(
            f"TensorRT's engine inspector tells no data type of {what}, so that nobody knows its "
            "precision; use another TensorRT, or run the .onnx artifact"
        )
    _require(asked, found, what, _SHARE_LEFT * parsed.get(asked, 0) / sum(parsed.values()))


def _require(
    asked: Precision, found: Mapping[Precision, int], what: str, share: float = 0.0
) -> None:
    """share: of the asked precision, the least that is enough; one is needed in any case."""
    wrong = [kind for kind in _FORBIDDEN.get(asked, ()) if found.get(kind)]
    held = found.get(asked, 0)
    if wrong or not held or held < share * sum(found.values()):
        raise ArtifactError(
            f"{what} is not {asked}, but has {_counts(found)}; make the artifact again"
        )


def _counts(found: Mapping[Precision, int]) -> str:
    return ", ".join(f"{count} layers in {kind}" for kind, count in found.items()) or "none"


def _configured(module: Any, parsed: Network, options: EngineOptions, batch: Batch) -> Any:
    """TensorRT's IBuilderConfig."""
    builder = parsed.builder
    config = checked(module, builder.create_builder_config(), "create a configuration")
    config.clear_flag(module.BuilderFlag.TF32)
    config.profiling_verbosity = module.ProfilingVerbosity.DETAILED  # for the inspector
    if options.workspace is not None:
        config.set_memory_pool_limit(module.MemoryPoolType.WORKSPACE, options.workspace * _MIB)
    name, shape = parsed.image
    if shape[0] < 0:
        profile = checked(module, builder.create_optimization_profile(), "create a profile")
        profile.set_shape(name, *((size, *shape[1:]) for size in batch))
        if config.add_optimization_profile(profile) < 0:
            raise BackendError(f"TensorRT takes no profile of {batch} images for {name} {shape}")
    if options.timing_cache is not None:
        _use_timings(module, config, options.timing_cache)
    return config


def _use_timings(module: Any, config: Any, path: Path) -> None:
    kept = path.read_bytes() if path.exists() else b""
    cache = checked(module, config.create_timing_cache(kept), f"read the timing cache {path}")
    task = f"use the timing cache {path}, of another GPU or TensorRT; give another file"
    checked(module, config.set_timing_cache(cache, False), task)


def _keep_timings(module: Any, config: Any, path: Path) -> None:
    cache = checked(module, config.get_timing_cache(), "give its timing cache")
    times = checked(module, cache.serialize(), "write its timing cache")
    with replacing(path) as temporary:
        temporary.write_bytes(memoryview(times))
