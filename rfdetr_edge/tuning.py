"""How ONNX Runtime shall run one artifact on one machine, as `rfdetr-edge tune` measured it.

Beside `nano.onnx` that is `nano.onnx.tuned.json`, and `nano.tuned.onnx` where it helps: the model
as ONNX Runtime rewrites it for this very CPU. Both are of use here alone, so the file says for
which machine, which version and which bytes it was made:

    {"schema": 1,
     "tuning": {"threads": 2, "spinning": false, "arena": true, "optimization": "all",
                "optimized": "nano.tuned.onnx"},
     "machine": {"cpu": "AMD EPYC", "vector": ["avx", "avx2", "fma"], "cores": 2},
     "onnxruntime": "1.31.1",
     "artifact": {"bytes": 107685886, "mtime_ns": 1795275960123456789, "sha256": "..."},
     "optimized": {"bytes": ..., "mtime_ns": ..., "sha256": "..."},
     "figures": {...}}

`optimized` is null without such a model. The figures are for people and for later comparisons; the
runtime does not read them. Knows nothing of images, and imports no ONNX Runtime.
"""

import json
import logging
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from rfdetr_edge.errors import InputError, MetadataError
from rfdetr_edge.files import file_sha256, replacing
from rfdetr_edge.machine import Machine, this_machine

SCHEMA = 1
MAX_THREADS = 1024  # more than any device has; with 100,000 ONNX Runtime does not return

Optimization = Literal["none", "basic", "extended", "all"]

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Tuning:
    """Settings of ONNX Runtime; without arguments its own defaults.

    Between runs no thread waits in a loop, whatever they are.

    threads: CPU threads of one run; None for one a core, each bound to its own.
    spinning: while a run goes on, idle threads wait for work in a loop, which takes the CPU from
        others.
    arena: memory of a run is kept for the next one.
    optimization: the level at which ONNX Runtime rewrites the graph.
    optimized: a file in the artifact's folder, the graph rewritten so and saved, to be loaded
        instead of the artifact; None to rewrite at each start.
    Raises InputError for threads or a level that do not exist.
    """

    threads: int | None = None
    spinning: bool = True
    arena: bool = True
    optimization: Optimization = "all"
    optimized: str | None = None

    def __post_init__(self) -> None:
        if self.threads is not None and not 1 <= self.threads <= MAX_THREADS:
            raise InputError(f"threads must be 1 to {MAX_THREADS}, not {self.threads}")
        levels = get_args(Optimization)
        if self.optimization not in levels:
            known = ", ".join(levels)
            raise InputError(f"optimization must be one of {known}, not {self.optimization!r}")

    def __str__(self) -> str:
        count = "a thread a core" if self.threads is None else f"threads {self.threads}"
        spinning = "spinning" if self.spinning else "no spinning"
        arena = "arena" if self.arena else "no arena"
        saved = "" if self.optimized is None else ", saved"
        return f"{count}, {spinning}, {arena}, optimization {self.optimization}{saved}"


@dataclass(frozen=True, slots=True)
class Stamp:
    """Which bytes a file had."""

    bytes: int
    mtime_ns: int
    sha256: str

    @classmethod
    def of(cls, path: Path) -> "Stamp":
        """Of a file as it is now."""
        found = path.stat()
        return cls(found.st_size, found.st_mtime_ns, file_sha256(path))

    def fits(self, path: Path) -> bool:
        """Whether the file still has these bytes.

        A file of the same size and time is taken to be the same, as by make and rsync: a digest of
        100 MB would cost each start 0.1 to 0.3 s. One with another time, as a copy has, is read.
        """
        try:
            found = path.stat()
        except FileNotFoundError:
            return False
        if found.st_size != self.bytes:
            return False
        return found.st_mtime_ns == self.mtime_ns or file_sha256(path) == self.sha256


@dataclass(frozen=True, slots=True)
class Tuned:
    """The whole document; see above. optimized: of the file that the tuning names."""

    tuning: Tuning
    machine: Machine
    onnxruntime: str
    artifact: Stamp
    optimized: Stamp | None
    figures: Mapping[str, Any]

    def misfit(self, artifact: Path, onnxruntime: str) -> str | None:
        """Why it is not for this artifact here and now; None when it is.

        onnxruntime: the version that would run it.
        """
        here = this_machine()
        if self.machine != here:
            return f"it was measured on {self.machine}, and this is {here}"
        if self.onnxruntime != onnxruntime:
            return f"it was measured with onnxruntime {self.onnxruntime}, and this is {onnxruntime}"
        if not self.artifact.fits(artifact):
            return f"{artifact.name} is another file than the one that was measured"
        if self.tuning.optimized is None or self.optimized is None:
            return None
        if not self.optimized.fits(artifact.parent / self.tuning.optimized):
            return f"{self.tuning.optimized} is gone, or another file than the one measured"
        return None


def tuning_path(artifact: Path) -> Path:
    """Where the tuning of an artifact lies."""
    return artifact.parent / f"{artifact.name}.tuned.json"


def optimized_path(artifact: Path) -> Path:
    """Where the saved model of a tuning lies."""
    return artifact.parent / f"{artifact.stem}.tuned.onnx"


def fitting(artifact: Path, onnxruntime: str) -> Tuning | None:
    """The tuning beside an artifact; None without one, or where it does not fit.

    onnxruntime: the version that will run it. What does not fit is said in one INFO line.
    Raises MetadataError for a file that is damaged or of another schema.
    """
    path = tuning_path(artifact)
    if not path.is_file():
        return None
    tuned = read_tuned(artifact)
    reason = tuned.misfit(artifact, onnxruntime)
    if reason is not None:
        logger.info("%s is not used: %s; %s", path, reason, _remedy(artifact))
        return None
    logger.info("%s is used: %s", path, tuned.tuning)
    return tuned.tuning


def read_tuned(artifact: Path) -> Tuned:
    """The document beside an artifact. Raises MetadataError when it cannot be read or used."""
    path = tuning_path(artifact)
    try:
        return _parse(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, RecursionError) as error:  # ours are ValueErrors too
        raise MetadataError(
            f"{path} is damaged ({error}); {_remedy(artifact)}, or delete it"
        ) from None


def write_tuned(artifact: Path, tuned: Tuned) -> None:
    """Writes the document beside an artifact, whole or not at all."""
    with replacing(tuning_path(artifact)) as temporary:
        document = json.dumps({"schema": SCHEMA, **asdict(tuned)}, indent=1, allow_nan=False)
        temporary.write_text(document + "\n", encoding="utf-8")


def _remedy(artifact: Path) -> str:
    return f"run `rfdetr-edge tune {artifact}` again"


def _parse(document: Any) -> Tuned:
    if not isinstance(document, dict):
        raise MetadataError("it is no JSON object")
    schema = _field(document, "schema", int)
    if schema != SCHEMA:
        raise MetadataError(f"it has schema {schema}, and this rfdetr-edge reads {SCHEMA}")
    tuning, machine = _field(document, "tuning", dict), _field(document, "machine", dict)
    optimized = _field(document, "optimized", dict, type(None))
    name = _field(tuning, "optimized", str, type(None))
    if (name is None) != (optimized is None):
        raise MetadataError("it contradicts itself on whether there is an optimized model")
    if name is not None and Path(name).name != name:
        raise MetadataError(f"field 'optimized' must name a file beside the artifact, not {name!r}")
    return Tuned(
        tuning=Tuning(
            threads=_field(tuning, "threads", int, type(None)),
            spinning=_field(tuning, "spinning", bool),
            arena=_field(tuning, "arena", bool),
            optimization=_field(tuning, "optimization", str),
            optimized=name,
        ),
        machine=Machine(
            cpu=_field(machine, "cpu", str),
            vector=tuple(map(str, _field(machine, "vector", list))),
            cores=_field(machine, "cores", int),
        ),
        onnxruntime=_field(document, "onnxruntime", str),
        artifact=_stamp(_field(document, "artifact", dict)),
        optimized=None if optimized is None else _stamp(optimized),
        figures=_field(document, "figures", dict),
    )


def _stamp(source: Mapping[str, Any]) -> Stamp:
    return Stamp(
        bytes=_field(source, "bytes", int),
        mtime_ns=_field(source, "mtime_ns", int),
        sha256=_field(source, "sha256", str),
    )


def _field(source: Mapping[str, Any], name: str, *kinds: type) -> Any:
    value = source.get(name)
    if type(value) not in kinds:  # not isinstance: true is no number here
        raise MetadataError(f"field {name!r} cannot be {value!r}")
    return value
