"""The Java decoder of docs/android finds what `rfdetr_edge.postprocess` finds on golden outputs."""

import shutil
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import golden_outputs
import numpy as np
import pytest
from golden_outputs import keypoint_schema, raw_outputs, source_sizes

from rfdetr_edge.classes import named_classes
from rfdetr_edge.detections import Detections
from rfdetr_edge.keypoint_schema import KeypointSchema, numbered_schema
from rfdetr_edge.postprocess import RawOutputs, postprocess

REPOSITORY = Path(__file__).parents[2]
DECODER = REPOSITORY / "docs" / "android" / "RfDetrDecoder.java"
DRIVER = Path(__file__).parent / "DecodeCases.java"
EVERY_PAIR = -1.0


@dataclass(frozen=True)
class Case:
    """One image to decode."""

    name: str
    outputs: RawOutputs
    source_size: tuple[int, int]
    num_select: int
    threshold: float
    schema: KeypointSchema | None = None

    def decoded(self) -> Detections:
        """By Python; numbers for names, which the decoder does not know."""
        slots = self.outputs.labels.shape[2]
        return postprocess(
            self.outputs,
            source_sizes=[self.source_size],
            classes=named_classes("contiguous", [str(slot) for slot in range(slots)]),
            num_select=self.num_select,
            threshold=self.threshold,
            schema=self.schema,
        )[0]

    def packed(self) -> bytes:
        """As DecodeCases reads it."""
        outputs = self.outputs
        counts = () if self.schema is None else self.schema.counts
        alpha = 0.0 if self.schema is None else self.schema.trace_alpha
        height, width = self.source_size
        grid = (0, 0) if outputs.masks is None else outputs.masks.shape[2:]
        return b"".join(
            [
                _ints(outputs.labels.shape[2], self.num_select, len(counts), *counts),
                np.array(alpha, ">f8").tobytes(),
                _ints(width, height),
                np.array(self.threshold, ">f4").tobytes(),
                _floats(outputs.dets),
                _floats(outputs.labels),
                _floats(outputs.masks),
                _ints(*grid),
                _floats(outputs.keypoints),
            ]
        )


def _ints(*values: int) -> bytes:
    return np.array(values, ">i4").tobytes()


def _floats(values: np.ndarray | None) -> bytes:
    return _ints(0) if values is None else _ints(values.size) + values.astype(">f4").tobytes()


def _golden() -> Iterator[Case]:
    for case in golden_outputs.CASES:
        outputs, schema = raw_outputs(case), keypoint_schema(case)
        for index, size in enumerate(source_sizes(case)):
            one = outputs.of(slice(index, index + 1))
            for threshold in (EVERY_PAIR, *case["thresholds"]):
                name = f"{case['name']}, image {index}, threshold {threshold}"
                yield Case(name, one, size, case["num_select"], threshold, schema)


def _extreme() -> Iterator[Case]:
    """Numbers that a broken model or a foreign one may give."""
    logits = np.array([np.nan, np.inf, -np.inf, 200, -200, 20, 17, 0], np.float32)
    boxes = np.array([[np.nan, 0, 1, 1], [0.5, np.inf, 1, 1], [0.5, 0.5, np.inf, -1]], np.float32)
    labels = np.stack([logits, logits[::-1], np.zeros(8, np.float32)])
    points = np.resize(logits, (1, 3, 4, 8)).astype(np.float32)
    for threshold in (EVERY_PAIR, 0.0, 0.5):
        outputs = RawOutputs(boxes[None], labels[None])
        yield Case(f"extreme at {threshold}", outputs, (30, 50), 20, threshold)
        yield Case(
            f"extreme keypoints at {threshold}",
            outputs._replace(keypoints=points),
            (30, 50),
            20,
            threshold,
            numbered_schema((2, 0)),
        )


CASES = [*_golden(), *_extreme()]


@pytest.fixture(scope="module")
def classes(tmp_path_factory) -> Path:
    """Both Java files, compiled for a language as old as Android reads it."""
    if shutil.which("javac") is None:
        pytest.skip("no javac: the Java decoder is not compiled; install a JDK 11 or newer")
    folder = tmp_path_factory.mktemp("classes")
    # newer compilers warn that Java 8 is old, which is on purpose
    flags = ["-Xlint:all,-options", "-Werror", "--release", "8", "-encoding", "UTF-8"]
    compiled = subprocess.run(
        ["javac", *flags, "-d", str(folder), str(DECODER), str(DRIVER)],
        capture_output=True,
        text=True,
    )
    assert compiled.returncode == 0, compiled.stderr
    return folder


class _Answer:
    """What DecodeCases wrote, read from the front."""

    def __init__(self, content: bytes) -> None:
        self._rest = content

    def array(self, kind: str, *shape: int) -> np.ndarray:
        size = np.dtype(kind).itemsize * int(np.prod(shape))
        taken, self._rest = self._rest[:size], self._rest[size:]
        return np.frombuffer(taken, kind).reshape(shape)

    def number(self) -> int:
        return int(self.array(">i4", 1)[0])

    def at_end(self) -> bool:
        return not self._rest


def _run(classes: Path, cases: Sequence[Case]) -> _Answer:
    given = _ints(len(cases)) + b"".join(case.packed() for case in cases)
    java = ["java", "-Xshare:auto", "-cp", str(classes), "DecodeCases"]
    done = subprocess.run(java, input=given, capture_output=True)
    assert done.returncode == 0, done.stderr.decode()
    return _Answer(done.stdout)


def test_java_finds_what_python_finds(classes):
    answer = _run(classes, CASES)
    rows = points = pixels = 0
    for case in CASES:
        expected = case.decoded()
        assert answer.number() == len(expected), case.name
        for row in range(len(expected)):
            points += _check_row(answer, expected, row, case)
            if expected.masks is not None:
                mask = answer.array("?", *case.source_size)
                np.testing.assert_array_equal(mask, expected[row].mask[0], case.name)
                pixels += int(mask.sum())
        rows += len(expected)
    assert answer.at_end()
    assert min(rows, points, pixels) > 500  # there was something of each to compare


def _check_row(answer: _Answer, expected: Detections, row: int, case: Case) -> int:
    """Compares one detection; gives its number of points."""
    query, class_id = answer.number(), answer.number()
    assert class_id == expected.class_id[row], case.name
    confidence, *corners = answer.array(">f4", 5)
    np.testing.assert_allclose(confidence, expected.confidence[row], 0, 1e-6, err_msg=case.name)
    np.testing.assert_allclose(corners, expected.xyxy[row], 0, 1e-3, err_msg=case.name)
    assert 0 <= query < case.outputs.dets.shape[1]
    count = answer.number()
    assert count == (0 if expected.schema is None else expected.keypoint_count[row]), case.name
    if expected.schema is not None:
        places, sure, covariance = np.split(answer.array(">f4", count, 6), [2, 3], axis=1)
        np.testing.assert_allclose(places, expected.keypoints[row, :count], rtol=1e-6)
        found = expected.keypoint_confidence[row, :count]
        np.testing.assert_allclose(sure[:, 0], found, rtol=0, atol=1e-6)
        whole = expected.covariance[row, :count].reshape(-1, 4)[:, [0, 1, 3]]
        np.testing.assert_allclose(covariance, whole, rtol=1e-5, err_msg=case.name)
    return count


def test_java_says_which_output_has_another_size(classes):
    case = CASES[0]
    outputs = case.outputs._replace(dets=case.outputs.dets[:, :-1])
    broken = Case("broken", outputs, case.source_size, 1, 0.5)
    java = ["java", "-cp", str(classes), "DecodeCases"]
    done = subprocess.run(java, input=_ints(1) + broken.packed(), capture_output=True, text=False)
    assert done.returncode == 1
    assert "dets has 1196 numbers instead of 1200" in done.stderr.decode()
