"""Contenders in processes of their own: who has a turn when, what is told, and how they end."""

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks.contender import Contender, Running, artifact_contenders
from benchmarks.meters import Rapl
from benchmarks.nothing import STAGES
from benchmarks.overhead import NANO_MS, overhead, share
from benchmarks.turns import joined, take_turns
from rfdetr_edge import demo
from rfdetr_edge.errors import BackendError, InputError

IMAGE = Path("some.jpg")

# a contender whose answers show what it was asked; `load` may fail
TOLD = """
import os
from benchmarks.protocol import Refused
class Told:
    def __init__(self, log): self.log = log
    def turn(self, path, mark):
        print("noise")
        open(self.log, "a").write(f"{path}\\n")
        if path == "bad.jpg": raise Refused("bad.jpg is no image", by_input=True)
        if path == "end.jpg": raise SystemExit(3)
        if path == "busy.jpg":
            from time import process_time
            until = process_time() + 0.05
            while process_time() < until: pass
        mark("all")
        return 1
    def about(self): return {}
    def scenarios(self):
        return {"twice": lambda number: {"number": 2 * number},
                "process": lambda: {"id": os.getpid()}}
def load(options):
    if options["log"] == "": raise Refused("cannot run here", by_input=False)
    if options["log"] == "missing": raise ModuleNotFoundError("no onnxruntime", name="onnxruntime")
    return Told(options["log"])
"""


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("modules")
    (folder / "told.py").write_text(TOLD)
    return {"PYTHONPATH": str(folder)}


@pytest.fixture
def told(environment: dict[str, str], tmp_path: Path) -> Iterator[Running]:
    log = {"log": str(tmp_path / "log")}
    with Running(Contender("told", "told", log, environment=environment), IMAGE) as running:
        yield running


def test_each_begins_a_round_in_turn_and_all_see_the_same(
    environment: dict[str, str], tmp_path: Path
) -> None:
    log = {"log": str(tmp_path / "log")}
    first, second, third = (Path(f"{name}.jpg") for name in "abc")
    advanced: list[None] = []
    with (
        Running(Contender("x", "told", log, environment=environment), IMAGE) as x,
        Running(Contender("y", "told", log, environment=environment), IMAGE) as y,
    ):
        rounds = take_turns(
            [x, y],
            [first, second, third],
            range(1, 5),
            warm_up=1,
            advance=lambda: advanced.append(None),
        )
    seen = (tmp_path / "log").read_text().split()[2:]  # after the first image of each
    assert seen == [f"{name}.jpg" for name in "aabbccaabb"]
    assert len(advanced) == 5
    assert [len(row) for row in rounds.turns] == [4, 4]
    assert rounds.totals().shape == (4, 2)
    assert len(rounds.spans) == 4
    assert sum(rounds.spans) * 1e3 > rounds.totals().sum()
    assert rounds.cpu_seconds > 0


def test_a_turn_tells_its_stages_and_its_cpu_in_between(told: Running) -> None:
    turn = told.turn(IMAGE)
    assert list(turn.stages) == ["all"]
    assert 0 < turn.stages["all"] <= turn.total_ms
    assert turn.detections == 1
    busy = told.turn(Path("busy.jpg"))
    assert busy.total_ms >= 50
    assert told.turn(IMAGE).idle_cpu_ms < 25  # what a turn takes itself is none of it


class _Meter:
    """Two joules from each look to the next."""

    def __init__(self) -> None:
        self._looks = 0

    def joules(self) -> float:
        self._looks += 1
        return 2.0 * self._looks


def test_energy_is_of_the_turns_that_count(monkeypatch: pytest.MonkeyPatch) -> None:
    nothing = Contender("nothing", "benchmarks.nothing")
    with Running(nothing, IMAGE) as x, Running(nothing, IMAGE) as y:
        assert take_turns([x], [IMAGE], range(1), warm_up=0, advance=int).joules is None or Rapl()
        monkeypatch.setattr("benchmarks.turns.Rapl", _Meter)
        three = take_turns([x, y], [IMAGE], range(3), warm_up=5, advance=int)
        assert three.joules == [6.0, 6.0]
        assert joined([three, three]).joules == [12.0, 12.0]


def test_scenarios_are_asked_by_name(told: Running) -> None:
    assert told.ask("twice", number=21) == {"number": 42}
    about = told.ask("about")
    assert about["scenarios"] == ["process", "twice"]
    assert about["versions"]["python"] == sys.version.split()[0]
    usage = told.ask("usage")
    assert usage["cpu"] > 0
    if sys.platform == "linux":
        assert 1 < usage["steady_mb"] <= usage["peak_mb"] < 500


def test_what_a_contender_refuses_is_an_error_with_its_name(told: Running) -> None:
    with pytest.raises(InputError, match=r"^told: bad.jpg is no image$"):
        told.turn(Path("bad.jpg"))


def test_a_contender_that_ends_is_an_error(
    told: Running, capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(BackendError, match="process of told ended with 3"):
        told.turn(Path("end.jpg"))
    with pytest.raises(BackendError, match="ended"):
        told.turn(IMAGE)


@pytest.mark.parametrize(
    ("log", "error", "message"),
    [
        ("", BackendError, "cannot run here"),
        ("missing", ModuleNotFoundError, "told needs onnxruntime"),
    ],
)
def test_a_contender_that_does_not_load(
    environment: dict[str, str], log: str, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        Running(Contender("told", "told", {"log": log}, environment=environment), IMAGE)


def test_an_interrupt_ends_the_processes(told: Running) -> None:
    process = told.ask("process")["id"]
    with pytest.raises(KeyboardInterrupt), told:
        raise KeyboardInterrupt
    with pytest.raises(ProcessLookupError):
        os.kill(process, 0)


def test_names_are_short_where_that_is_enough(tmp_path: Path) -> None:
    paths = [tmp_path / "a" / "m.onnx", tmp_path / "b" / "m.onnx", tmp_path / "n.onnx"]
    for path in paths:
        path.parent.mkdir(exist_ok=True)
        path.touch()
    found = artifact_contenders([*paths, paths[2]], 1)
    assert [one.name for one in found[:2]] == [str(path) for path in paths[:2]]
    assert len({one.name for one in found}) == 4
    assert found[2].file == paths[2]
    with pytest.raises(InputError, match=r"o\.onnx: no such file"):
        artifact_contenders([tmp_path / "o.onnx"], None)


def test_the_overhead_is_measured() -> None:
    cost = overhead(20)
    assert 0 < cost < 1000
    assert share(cost) == pytest.approx(cost / NANO_MS)
    assert share(1.7) == pytest.approx(0.01)
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.overhead"], capture_output=True, text=True, check=True
    )
    milliseconds = float(done.stdout.split()[0])
    assert milliseconds > 0
    assert f"{share(milliseconds):.2%}"[:3] in done.stdout


def test_nothing_has_the_stages_of_something() -> None:
    with Running(Contender("nothing", "benchmarks.nothing"), IMAGE) as running:
        turn = running.turn(IMAGE)
        assert tuple(turn.stages) == STAGES
        assert turn.detections == 0
        assert running.start.cold_ms > running.start.import_ms + running.start.first_ms


def test_the_threads_of_a_model_rest_while_others_have_their_turn() -> None:
    [contender] = artifact_contenders([demo.model_path()], 2)
    photo = demo.photo_paths()[0]
    with Running(contender, photo) as running:
        assert running.ask("about")["settings"].startswith("threads 2, spinning")
        running.turn(photo)
        time.sleep(0.2)
        # ONNX Runtime's threads would go on spinning for some 20 ms each
        assert running.turn(photo).idle_cpu_ms < 10
