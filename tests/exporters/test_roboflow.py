"""Roboflow: the bundle, and the upload by the real package to a stand-in for its servers."""

import json
import os
import subprocess
import sys
import threading
import zipfile
from collections.abc import Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.util import find_spec
from io import BytesIO
from pathlib import Path

import pytest
import torch

from exporters.roboflow import deploy, write_bundle
from rfdetr_edge.classes import coco_classes, named_classes
from rfdetr_edge.errors import BackendUnavailable, InputError
from rfdetr_edge.keypoint_schema import numbered_schema
from rfdetr_edge.variants import VARIANTS
from trainer.checkpoint import load_checkpoint
from trainer.config import model_config
from trainer.inference import ModelContext
from trainer.model.rfdetr import RFDETR

# The package takes its servers' address from the environment when it is imported.
_DEPLOY = """
import json, sys
sys.path.insert(0, sys.argv[1])
from test_roboflow import tiny_context
from rfdetr_edge.errors import InputError
from exporters.roboflow import deploy

errors = []
for arguments in json.loads(sys.argv[2]):
    try:
        deploy(tiny_context(), "team", "cells", *arguments)
    except InputError as error:
        errors.append(str(error))
print("errors:" + json.dumps(errors))
"""


def tiny_context() -> ModelContext:
    """A network of tiny at 64 pixels with two classes."""
    model = RFDETR(VARIANTS["tiny"], slots=3)
    model.encoder.fix_grid(4, 4)
    classes = named_classes("background-last", ["Zelle", "Blutplättchen"])
    args = model_config("tiny", resolution=64)
    return ModelContext(model, torch.device("cpu"), 64, classes, None, True, args)


def test_the_bundle_has_the_documented_files(tmp_path):
    context = tiny_context()
    folder = tmp_path / "a" / "bundle"
    for _ in range(2):  # existing files are overwritten
        write_bundle(context, folder)
    assert sorted(path.name for path in folder.iterdir()) == ["class_names.txt", "weights.pt"]
    assert (folder / "class_names.txt").read_bytes() == "Zelle\nBlutplättchen".encode()
    data = torch.load(folder / "weights.pt", weights_only=False)
    assert set(data) == {"model", "args"}
    assert "_kp_active_mask" in data["model"]
    assert data["args"].class_names == ["Zelle", "Blutplättchen"]
    assert (data["args"].resolution, data["args"].patch_size, data["args"].num_classes) == (
        *(64, 16, 2),
    )
    found = load_checkpoint(folder / "weights.pt", variant="tiny")
    assert found.classes == context.classes
    assert found.resolution == 64
    for name, tensor in context.model.state_dict().items():
        torch.testing.assert_close(found.model.state_dict()[name], tensor, atol=0, rtol=0)


def test_the_bundle_of_a_keypoint_model_says_which_points_it_has(tmp_path):
    schema = numbered_schema([3], 0.1)
    settings = {"num_keypoints_per_class": [3], "postprocess_trace_alpha": 0.1, "num_classes": 2}
    context = replace(
        tiny_context(),
        model=RFDETR(VARIANTS["keypoint-tiny"], 3, [3]),
        resolution=VARIANTS["keypoint-tiny"].resolution,
        schema=schema,
        args=model_config("keypoint-tiny", **settings),
    )
    write_bundle(context, tmp_path)
    args = torch.load(tmp_path / "weights.pt", weights_only=False)["args"]
    assert {name: vars(args)[name] for name in settings} == settings
    assert args.use_grouppose_keypoints
    assert not args.segmentation_head
    found = load_checkpoint(tmp_path / "weights.pt", variant="keypoint-tiny")
    assert found.schema.counts == (3,)
    assert found.classes == context.classes


def test_the_bundle_of_a_coco_model_names_the_80_classes(tmp_path):
    context = tiny_context()
    context.model, context.classes = RFDETR(VARIANTS["tiny"], slots=91), coco_classes()
    write_bundle(context, tmp_path)
    names = (tmp_path / "class_names.txt").read_text().split("\n")
    assert (len(names), names[0], names[-1]) == (80, "person", "toothbrush")


def test_a_bundle_that_cannot_be_written_is_an_os_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="file"):
        write_bundle(tiny_context(), tmp_path / "file" / "bundle")


def test_a_key_a_size_and_the_package_are_needed(monkeypatch):
    monkeypatch.delenv("ROBOFLOW_API_KEY", raising=False)
    with pytest.raises(InputError, match="set ROBOFLOW_API_KEY"):
        deploy(tiny_context(), "team", "cells", 1, None, "rfdetr-nano")
    monkeypatch.setenv("ROBOFLOW_API_KEY", "k")
    with pytest.raises(InputError, match="no size for this variant"):
        deploy(tiny_context(), "team", "cells", 1, None, None)
    monkeypatch.setitem(sys.modules, "roboflow", None)
    with pytest.raises(BackendUnavailable, match=r"pip install 'rfdetr-edge\[roboflow\]'"):
        deploy(tiny_context(), "team", "cells", 1, None, "rfdetr-nano")


class Roboflow(ThreadingHTTPServer):
    """Answers as Roboflow's API does; one workspace `team`, one project `cells`, one version 3."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.requests: list[str] = []
        self.uploads: list[bytes] = []

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class _Handler(BaseHTTPRequestHandler):
    server: Roboflow

    def do_GET(self) -> None:
        self.server.requests.append(f"{self.command} {self.path}")
        path, _, query = self.path.partition("?")
        if "api_key=secret" not in query:
            self._answer(401, {"message": "wrong key"})
        elif path == "/":
            self._answer(200, {"workspace": "team"})
        elif path == "/team":
            self._answer(200, {"workspace": {"name": "Team", "url": "team", "projects": []}})
        elif path == "/team/cells":
            self._answer(200, {"project": _PROJECT, "versions": [_VERSION]})
        elif path == "/team/cells/3/uploadModel":
            self._answer(200, {"url": f"{self.server.address}/upload"})
        else:
            self._answer(404, {"message": "no such thing"})

    do_POST = do_GET

    def do_PUT(self) -> None:
        self.server.requests.append(f"PUT {self.path}")
        self.server.uploads.append(self.rfile.read(int(self.headers["Content-Length"])))
        self._answer(200, {})

    def _answer(self, status: int, document: object) -> None:
        body = json.dumps(document).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


_PROJECT = {
    "id": "team/cells",
    "name": "Cells",
    "type": "object-detection",
    "annotation": "cells",
    "classes": {},
    "colors": {},
    "created": 0.0,
    "updated": 0.0,
    "images": 3,
    "public": False,
    "splits": {},
    "unannotated": 0,
}
_VERSION = {
    "id": "team/cells/3",
    "created": 0.0,
    "images": 3,
    "augmentation": {},
    "preprocessing": {},
    "splits": {},
}


@pytest.fixture
def roboflow() -> Iterator[Roboflow]:
    with Roboflow() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def _deploy(address: str, home: Path, *cases: tuple[int | str, str, str]) -> list[str]:
    """The errors of deployments in a process of their own; a case is version, key and size."""
    done = subprocess.run(
        [sys.executable, "-c", _DEPLOY, str(Path(__file__).parent), json.dumps(cases)],
        env={**os.environ, "API_URL": address, "HOME": str(home)},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    errors: list[str] = json.loads(done.stdout.rpartition("errors:")[2])
    return errors


@pytest.mark.skipif(find_spec("roboflow") is None, reason="needs the roboflow extra")
def test_the_package_uploads_the_bundle(roboflow, tmp_path):
    assert _deploy(roboflow.address, tmp_path, (3, "secret", "rfdetr-nano")) == []
    assert roboflow.requests[-2:] == [
        "GET /team/cells/3/uploadModel?api_key=secret&modelType=rfdetr-nano&nocache=true",
        "PUT /upload",
    ]
    with zipfile.ZipFile(BytesIO(roboflow.uploads[0])) as archive:
        assert sorted(archive.namelist()) == ["class_names.txt", "weights.pt"]
        assert "Blutplättchen" in archive.read("class_names.txt").decode()
        archive.extract("weights.pt", tmp_path)
    assert load_checkpoint(tmp_path / "weights.pt", variant="tiny").model.slots == 3


@pytest.mark.skipif(find_spec("roboflow") is None, reason="needs the roboflow extra")
def test_what_roboflow_refuses_is_one_error(roboflow, tmp_path):
    errors = _deploy(
        roboflow.address,
        tmp_path,
        ("3", "another", "rfdetr-nano"),
        (4, "secret", "rfdetr-nano"),
        (3, "secret", "rfdetr-tiny"),
        (3, "secret", "rfdetr-seg-nano"),
    )
    reasons = ["wrong key", "number 4 is not found", "'rfdetr-tiny' is not supp", "task 'seg'"]
    for error, reason in zip(errors, reasons, strict=True):
        assert error.startswith("Roboflow did not take the model: ")
        assert reason in error
    assert roboflow.uploads == []


@pytest.mark.skipif(find_spec("roboflow") is None, reason="needs the roboflow extra")
def test_offline_the_error_does_not_give_the_key_away(tmp_path):
    (error,) = _deploy("http://127.0.0.1:1", tmp_path, (3, "secret", "rfdetr-nano"))
    assert "api_key=<key>" in error
    assert "secret" not in error
