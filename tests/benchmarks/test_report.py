"""A report as JSON, table, page and picture, and the files it goes to."""

import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import cv2
import numpy as np
import pytest
from latency_reports import STAGES, accuracy, report, result

from benchmarks.chart import ap_interval
from benchmarks.outputs import writable
from benchmarks.page import page
from benchmarks.plot import plot
from benchmarks.result import SCHEMA, Camera, Report
from benchmarks.statistics import summary
from benchmarks.table import aligned, digits, tables, text
from rfdetr_edge.errors import InputError


@pytest.fixture(scope="module")
def full() -> Report:
    """Two models with all that can be measured; the second takes half the time."""
    rng = np.random.default_rng(0)
    totals = rng.uniform(19, 21, 40)
    ages = summary(np.array([30.0, 40.0]))
    fp32 = result(
        "fp32 <a>.onnx", totals, accuracy=accuracy(0.6), camera=Camera(10.0, 40, 3, 2, ages)
    )
    int8 = result("int8.onnx", totals / 2, first=fp32, accuracy=accuracy(0.59, (1.0, 0.4, 1.6)))
    return report([fp32, int8], doubts=["it was <hot>"])


def _cells(line: str) -> list[str]:
    return re.split(r"\s{2,}", line.strip())


def test_json_has_everything_with_its_samples(full: Report) -> None:
    document = json.loads(full.to_json())
    assert document["schema"] == SCHEMA
    assert document["doubts"] == ["it was <hot>"]
    first, second = document["results"]
    assert len(first["samples"]["total"]) == 40
    assert sum(first["samples"]["stages"][name][7] for name in first["stages"]) == pytest.approx(
        first["samples"]["total"][7]
    )
    assert first["fps"] == pytest.approx(1e3 / np.mean(first["samples"]["total"]))
    assert first["latency"]["p99"] is None
    assert first["accuracy"]["every"]["bbox"]["per_class"] == {"RBC": 0.6, "never seen": None}
    assert first["ratio"] is None
    assert second["ratio"]["value"] == pytest.approx(0.5)


def test_a_report_gets_its_accuracies(full: Report) -> None:
    plain = report([result("a", [1.0, 2.0]), result("b", [1.0, 2.0])])
    found = plain.with_accuracies(Path("test"), [accuracy(0.3), accuracy(0.2)])
    assert [one.accuracy.ap for one in found.results if one.accuracy] == [0.3, 0.2]
    assert found.settings["dataset"] == "test"
    assert "Accuracy" not in tables(plain)
    assert "Accuracy" in tables(found)


def test_the_table_refuses_what_is_not_known(full: Report) -> None:
    latency = tables(full)["Image file to detections, ms"]
    rows = [dict(zip(latency[0], row, strict=True)) for row in latency[1:]]
    assert [row["p99"] for row in rows] == ["-", "-"]
    assert (rows[0]["ratio"], rows[1]["ratio"]) == ("-", "0.500")
    assert rows[1]["95 %"] == "0.500 to 0.500"
    assert (rows[0]["n"], rows[0]["pipelined"], rows[0]["precision"]) == ("40", "55.00", "fp32")
    [cameras] = [rows for title, rows in tables(full).items() if "10 frames a second" in title]
    assert cameras[1][1:5] == ["40", "3", "2", "35.00"]
    assert set(cameras[2][1:]) == {"-"}
    start = tables(full)["Start, ms, and memory"]
    assert start[1][1:] == ["360.0", "205.0", "85.00", "40.50", "15.80", "140.0", "130.0", "-"]
    assert tables(full)["Accuracy"][2][-1] == "1.00 (0.40 to 1.60)"


def test_the_stages_compare_the_models_alone(full: Report) -> None:
    first, second = full.results
    samples = second.samples
    slower = {**samples.stages, "infer": [2 * value for value in samples.stages["infer"]]}
    doubled = replace(second, samples=replace(samples, stages=slower))
    names, *rows = tables(replace(full, results=[first, doubled]))["Stages, median ms"]
    assert [row[names.index("infer: ratio")] for row in rows] == ["-", "1.000"]
    assert [row[names.index("95 %")] for row in rows] == ["-", "1.000 to 1.000"]
    unknown = replace(first, stages={"predict": first.latency})
    names, *_ = tables(replace(full, results=[unknown, second]))["Stages, median ms"]
    assert "infer: ratio" not in names


def test_text_says_what_the_figures_mean_nothing_without(full: Report) -> None:
    shown = text(full)
    assert "cpu: Some <CPU>" in shown
    assert "affinity: 0, 1" in shown
    assert "fp32 <a>.onnx, int8.onnx: threads 1; python 3.11.7" in shown
    assert "a turn of nothing: 0.125 ms" in shown
    assert shown.splitlines()[-1] == "warning: it was <hot>"
    stages = [line for line in shown.splitlines() if line.startswith("int8.onnx  ")][1]
    numbers = [float(cell) for cell in _cells(stages)[1 : 1 + len(STAGES)]]
    assert sum(numbers) == pytest.approx(full.results[1].latency.p50, rel=0.01)


def test_columns_are_aligned() -> None:
    assert aligned([["a", "n"], ["long", "12345"]]) == "a         n\nlong  12345"
    assert [digits(value) for value in (None, 0.12345, 12.345, 1234.5)] == [
        "-",
        "0.123",
        "12.35",
        "1234.5",
    ]


class _Page(HTMLParser):
    """Tags that are opened and closed, and what links out."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.links: list[str] = []
        self.tags: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.links += [value or "" for name, value in attrs if name in ("href", "src")]
        if tag not in ("meta", "path", "polyline", "circle"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag in self.open:
            assert self.open.pop() == tag


def test_the_page_stands_alone_and_escapes_names(full: Report) -> None:
    document, parser = page(full), _Page()
    parser.feed(document)
    assert parser.open == []
    assert parser.links == []
    assert "script" not in parser.tags
    assert parser.tags.count("svg") == 2
    assert "fp32 &lt;a&gt;.onnx" in document
    assert "it was &lt;hot&gt;" in document
    assert "<a>" not in document
    numbers = re.findall(r"points='([^']*)'", document)
    assert all(0 <= float(n) <= 760 for line in numbers for n in re.split("[ ,]", line))


def test_the_page_of_a_single_model_without_accuracy() -> None:
    parser = _Page()
    parser.feed(page(report([result("one.onnx", [5.0] * 3)])))
    assert parser.tags.count("svg") == 1


def test_the_interval_of_an_ap_is_the_firsts_minus_what_is_lost(full: Report) -> None:
    first, second = (one.accuracy for one in full.results)
    assert first is not None
    assert second is not None
    assert ap_interval(full.results, first) == (0.6, 0.6)
    assert ap_interval(full.results, second) == pytest.approx((0.584, 0.596))


def test_the_picture(full: Report) -> None:
    picture = cv2.imdecode(np.frombuffer(plot(full), np.uint8), cv2.IMREAD_COLOR)
    assert picture.shape == (500, 800, 3)
    for bgr in ((0xB5, 0x7F, 0x4A), (0x3A, 0x80, 0xC9)):  # a mark in the colour of each
        assert np.count_nonzero((picture == bgr).all(axis=2)) > 10


def test_files_appear_whole_or_not_at_all(tmp_path: Path) -> None:
    done, other = tmp_path / "done.json", tmp_path / "other.html"
    with writable([done, other], keep=[]) as files:
        for file in files:
            file.write_text("all of it")
        assert not done.exists()
    assert done.read_text() == other.read_text() == "all of it"
    with pytest.raises(RuntimeError), writable([done], keep=[]) as files:
        raise RuntimeError
    assert sorted(tmp_path.iterdir()) == [done, other]
    assert done.read_text() == "all of it"


def test_places_that_cannot_be_written_are_refused_at_once(tmp_path: Path) -> None:
    model = tmp_path / "model.onnx"
    model.write_text("weights")
    for paths, message in (
        ([model], "used already"),
        ([tmp_path / "a", tmp_path / "b" / ".." / "a"], "used already"),
        ([tmp_path], "no regular file"),
        ([tmp_path / "none" / "a.json"], "is no folder"),
        ([tmp_path / ("long" * 100)], "cannot write"),
    ):
        (tmp_path / "b").mkdir(exist_ok=True)
        with pytest.raises(InputError, match=message), writable(paths, keep=[model]):
            pytest.fail("nothing was refused")
    assert sorted(tmp_path.iterdir()) == [tmp_path / "b", model]
    assert model.read_text() == "weights"
