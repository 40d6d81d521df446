"""The benchmark command reports every stage, with enough said to make its figures figures."""

import argparse
import json
import subprocess
import sys

import pytest

from benchmarks.cli import benchmark, table
from benchmarks.stages import MIN_P99, WARM_UP, measure


def _parse(*arguments: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    benchmark.add_arguments(parser)
    return parser.parse_args(arguments)


def test_json_holds_stages_and_environment(capsys: pytest.CaptureFixture[str]) -> None:
    assert benchmark.run(_parse("--runs", "3", "--json")) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["environment"]["threads"] == "1"
    assert all(report["environment"].values())
    assert len(report["stages"]) == 3
    for row in report["stages"]:
        assert (row["n"], row["warm_up"], row["p99_ms"]) == (3, WARM_UP, None)
        assert 0 < row["median_ms"] <= row["p90_ms"]


def test_stages_run_in_turn_and_warm_up_is_not_counted() -> None:
    calls: list[str] = []
    stages = {"first": lambda: calls.append("first"), "second": lambda: calls.append("second")}
    latencies = measure(stages, 5)
    assert calls == ["first", "second"] * (WARM_UP + 5)
    assert [(row.stage, row.n) for row in latencies] == [("first", 5), ("second", 5)]


def test_p99_needs_enough_runs() -> None:
    few, enough = (measure({"stage": int}, runs)[0] for runs in (MIN_P99 - 1, MIN_P99))
    assert few.p99_ms is None
    assert enough.p99_ms is not None
    assert enough.p99_ms >= enough.p90_ms


def test_table_refuses_p99_of_few_runs() -> None:
    row = {
        "stage": "resize",
        "warm_up": 20,
        "n": 5,
        "median_ms": 1.5,
        "p90_ms": 2.0,
        "p99_ms": None,
    }
    text = table({"environment": {"cpu": "some"}, "stages": [row]})
    assert text.splitlines()[0] == "cpu: some"
    assert text.splitlines()[-1].split() == ["resize", "20", "5", "1.500", "2.000", "-"]


@pytest.mark.parametrize("runs", ["0", "-3", "many"])
def test_runs_must_be_a_positive_number(runs: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        _parse("--runs", runs)
    assert stopped.value.code == 2
    assert "--runs" in capsys.readouterr().err


def test_command_module_loads_nothing_heavy() -> None:
    code = "import sys, benchmarks.cli; print(*sys.modules)"
    child = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    heavy = {"benchmarks.stages", "cv2", "onnxruntime", "onnx", "torch"}
    assert not heavy & set(child.stdout.split())
