"""Writes `members.json`: what the Python modules of several TensorRT versions have, by name.

    python tests/tensorrt_members/make_snapshots.py

Needs pip, a package registry, gcc, and the Python that the wheels below are for. The wheels hold
NVIDIA's bindings without the libraries that these link to (which no registry has); libraries of the
same names, whose functions do nothing, let them be imported and looked at. Nothing else works then,
and nothing else is done. Only names are kept.
"""

import json
import os
import re
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

WHEELS = {  # of CPython 3.11 on x86-64 Linux
    "10.3": "tensorrt_cu12_bindings==10.3.0",
    "10.13": "tensorrt_cu13_bindings==10.13.3.9",
    "10.16": "tensorrt_cu13_bindings==10.16.1.11",
    "11.0": "tensorrt_cu13_bindings==11.0.0.114",
    "11.4": "tensorrt_cu13_bindings==11.4.0.106",
    "rtx-1.7": "tensorrt_rtx_cu13_bindings==1.7.1.116",
}
CLASSES = (  # what building and running an engine has to do with
    *("Builder", "BuilderFlag", "DataType", "EngineInspector", "IBuilderConfig", "ICudaEngine"),
    *("IExecutionContext", "IHostMemory", "ILayer", "ILogger", "INetworkDefinition"),
    *("IOptimizationProfile", "IOutputAllocator", "IProfiler", "IProgressMonitor", "ITensor"),
    *("ITimingCache", "LayerInformationFormat", "LayerType", "Logger", "MemoryPoolType"),
    *("NetworkDefinitionCreationFlag", "OnnxParser", "OnnxParserFlag", "ParserError"),
    *("ProfilingVerbosity", "Runtime", "TensorFormat", "TensorIOMode", "TensorLocation"),
)
FUNCTIONS = (
    *("createInferBuilder_INTERNAL", "createInferRefitter_INTERNAL", "createInferRuntime_INTERNAL"),
    *("createNvOnnxParserRefitter_INTERNAL", "createNvOnnxParser_INTERNAL", "getPluginRegistry"),
    *("getBuilderPluginRegistry", "getNvOnnxParserVersion", "initLibNvInferPlugins"),
)
LOOKING = """
import importlib, json, sys
module = importlib.import_module(sys.argv[1])
classes = {n: c for n, c in vars(module).items() if isinstance(c, type)}
members = {n: sorted(m for m in dir(c) if m[0] != "_") for n, c in classes.items()}
members[""] = sorted(n for n in vars(module) if n[0] != "_" or n == "__version__")
print(json.dumps(members))
"""


def members(requirement: str, folder: Path) -> dict[str, list[str]]:
    """Class -> its public members, "" -> those of the module, of one wheel."""
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "download", "--quiet"]
    subprocess.run([*pip, "--no-deps", "--dest", folder, requirement], check=True)
    [wheel] = folder.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder)
    [binding] = folder.glob("tensorrt*bindings/tensorrt*.so")
    _fill_in(binding, folder / "libraries")
    done = subprocess.run(
        [sys.executable, "-c", LOOKING, binding.parent.name],
        cwd=folder,
        env={**os.environ, "LD_LIBRARY_PATH": str(folder / "libraries")},
        stdout=subprocess.PIPE,
        check=True,
    )
    found: dict[str, list[str]] = json.loads(done.stdout)
    return {name: found[name] for name in ("", *CLASSES)}


def _fill_in(binding: Path, folder: Path) -> None:
    """Libraries of the names that the binding asks for, with functions that do nothing."""
    folder.mkdir()
    source = folder / "nothing.c"
    source.write_text("".join(f"void *{name}(void) {{ return 0; }}\n" for name in FUNCTIONS))
    asked = subprocess.run(["readelf", "-d", binding], check=True, capture_output=True, text=True)
    for library in re.findall(r"NEEDED.*\[(lib(?:nv|tensorrt)\S+)\]", asked.stdout):
        command = ["gcc", "-shared", "-fPIC", f"-Wl,-soname,{library}", source]
        subprocess.run([*command, "-o", folder / library], check=True)


def main() -> None:
    """Looks at all wheels."""
    snapshots = {}
    for version, requirement in WHEELS.items():
        with tempfile.TemporaryDirectory() as folder:
            snapshots[version] = members(requirement, Path(folder))
    lines = (
        f' "{version}": {{\n'
        + ",\n".join(f"  {json.dumps(k)}: {json.dumps(v)}" for k, v in found.items())
        + "\n }"
        for version, found in snapshots.items()
    )
    Path(__file__).with_name("members.json").write_text("{\n" + ",\n".join(lines) + "\n}\n")


if __name__ == "__main__":
    main()
