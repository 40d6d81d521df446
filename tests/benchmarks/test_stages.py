"""The stages around the model are measured in turn, on one thread, and reported by name."""

import json
import subprocess
import sys

import pytest

from benchmarks.stages import WARM_UP, main, measure, table


def test_json_holds_stages_and_environment(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["stages", "--runs", "3", "--json"])
    main()
    report = json.loads(capsys.readouterr().out)
    assert report["environment"]["threads"] == "1"
    assert all(report["environment"].values())
    assert report["warm_up"] == WARM_UP
    assert len(report["stages"]) == 3
    for latency in report["stages"].values():
        assert (latency["n"], latency["p99"]) == (3, None)
        assert 0 < latency["p50"] <= latency["p90"] <= latency["max"]


@pytest.mark.parametrize("runs", ["0", "-3", "many"])
def test_runs_must_be_a_positive_number(
    runs: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["stages", "--runs", runs])
    with pytest.raises(SystemExit) as stopped:
        main()
    assert stopped.value.code == 2
    assert "--runs" in capsys.readouterr().err


def test_stages_run_in_turn_and_warm_up_is_not_counted() -> None:
    calls: list[str] = []
    stages = {"first": lambda: calls.append("first"), "second": lambda: calls.append("second")}
    latencies = measure(stages, 5)
    assert calls == ["first", "second"] * (WARM_UP + 5)
    assert {name: latency.n for name, latency in latencies.items()} == {"first": 5, "second": 5}


def test_table_refuses_p99_of_few_runs() -> None:
    latency = {"n": 5, "mean": 1.6, "p50": 1.5, "p90": 2.0, "p95": 2.1, "p99": None, "max": 2.2}
    text = table({"environment": {"cpu": "some"}, "stages": {"resize": latency}})
    assert text.splitlines()[0] == "cpu: some"
    assert text.splitlines()[-1].split() == [
        *("resize", "5", "1.600", "1.500", "2.000", "2.100", "-", "2.200")
    ]


def test_command_module_loads_nothing_heavy() -> None:
    code = "import sys, benchmarks.cli; print(*sys.modules)"
    child = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    heavy = {"benchmarks.measure", "benchmarks.stages", "cv2", "onnxruntime", "onnx", "torch"}
    assert not heavy & set(child.stdout.split())
