"""Published weights: found where they lie, or fetched from a real server on the loopback."""

import hashlib
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from rfdetr_edge.errors import InputError
from rfdetr_edge.pretrained import PUBLISHED, ensure_weights, weights_path
from rfdetr_edge.variants import PublishedWeights

NAME = "rf-detr-nano.pth"
CONTENT = bytes(range(256)) * 4096  # 1 MiB
MD5 = hashlib.md5(CONTENT).hexdigest()


class Server(ThreadingHTTPServer):
    """Serves CONTENT at any path; `requests` are the Range headers it was sent."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.requests: list[str | None] = []
        self.cut_after: int | None = None  # bytes of the next answer before the connection ends
        self.ranges = True

    def published(self, md5: str = MD5) -> PublishedWeights:
        return PublishedWeights(NAME, f"http://127.0.0.1:{self.server_port}/nano/{NAME}", md5)


class _Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        wanted = self.headers["Range"]
        self.server.requests.append(wanted)
        start = int(wanted[len("bytes=") : -1]) if wanted and self.server.ranges else 0
        if start >= len(CONTENT):
            self.send_error(416)
            return
        self.send_response(206 if start else 200)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(CONTENT) - 1}/{len(CONTENT)}")
        self.send_header("Content-Length", str(len(CONTENT) - start))
        self.end_headers()
        cut, self.server.cut_after = self.server.cut_after, None
        self.wfile.write(CONTENT[start : None if cut is None else start + cut])

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def server() -> Iterator[Server]:
    with Server() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch) -> Path:
    """The folder of bare names; it does not exist yet."""
    monkeypatch.setenv("RF_HOME", str(tmp_path / "cache" / "models"))
    return tmp_path / "cache" / "models"


def _files(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.suffix != ".lock")


def test_bare_names_lie_in_the_folder_of_the_environment(tmp_path, home, monkeypatch):
    assert weights_path(NAME) == home / NAME
    monkeypatch.setenv("ROBOFLOW_HOME", "/elsewhere")
    assert weights_path(NAME) == home / NAME
    monkeypatch.delenv("RF_HOME")
    assert weights_path(NAME) == Path("/elsewhere") / NAME
    monkeypatch.setenv("RF_HOME", "~/rf")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert weights_path(NAME) == tmp_path / "rf" / NAME
    monkeypatch.delenv("RF_HOME")
    monkeypatch.delenv("ROBOFLOW_HOME")
    assert weights_path(NAME) == tmp_path / ".roboflow" / "models" / NAME


def test_paths_with_a_folder_and_files_of_this_folder_stay(tmp_path, home, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert weights_path(f"runs/{NAME}") == Path("runs") / NAME
    assert weights_path(tmp_path / NAME) == tmp_path / NAME
    assert weights_path(f"./{NAME}") == Path(NAME)
    assert weights_path("best.pth") == home / "best.pth"
    for name in ("best.pth", NAME):
        Path(name).write_bytes(b"x")
    assert weights_path("best.pth") == Path("best.pth")
    assert weights_path(NAME) == home / NAME  # a published name is the published file


def test_an_absent_file_is_fetched_once(server, home):
    path = ensure_weights(NAME, server.published())
    assert path == home / NAME
    assert path.read_bytes() == CONTENT
    assert ensure_weights(NAME, server.published()) == path
    assert server.requests == [None]
    assert _files(home) == [NAME]


def test_a_path_with_a_folder_is_fetched_there(server, tmp_path):
    path = ensure_weights(tmp_path / "a" / "b" / NAME, server.published())
    assert path == tmp_path / "a" / "b" / NAME
    assert path.read_bytes() == CONTENT


def test_a_download_that_was_cut_off_goes_on(server, home):
    server.cut_after = 300_000
    with pytest.raises(InputError, match=rf"cannot download {NAME} from http.*RF_HOME chooses"):
        ensure_weights(NAME, server.published())
    assert _files(home) == [f"{NAME}.part"]
    assert ensure_weights(NAME, server.published()).read_bytes() == CONTENT
    assert server.requests == [None, "bytes=300000-"]
    assert _files(home) == [NAME]


def test_a_server_that_cannot_go_on_starts_anew(server, home):
    server.ranges = False
    home.mkdir(parents=True)
    (home / f"{NAME}.part").write_bytes(b"of another kind")
    assert ensure_weights(NAME, server.published()).read_bytes() == CONTENT
    assert server.requests == ["bytes=15-"]


def test_a_part_that_is_too_long_is_thrown_away(server, home):
    home.mkdir(parents=True)
    (home / f"{NAME}.part").write_bytes(CONTENT + b"x")
    assert ensure_weights(NAME, server.published()).read_bytes() == CONTENT
    assert server.requests == [f"bytes={len(CONTENT) + 1}-", None]


def test_a_part_that_is_whole_needs_no_server(home):
    home.mkdir(parents=True)
    (home / f"{NAME}.part").write_bytes(CONTENT)
    path = ensure_weights(NAME, PublishedWeights(NAME, "http://127.0.0.1:1/", MD5))
    assert path.read_bytes() == CONTENT
    assert _files(home) == [NAME]


def test_content_with_another_md5_is_deleted(server, home):
    with pytest.raises(InputError, match=rf"is not {NAME}: its MD5 is not {'0' * 32}.*try again"):
        ensure_weights(NAME, server.published(md5="0" * 32))
    assert _files(home) == []


def test_offline_it_says_which_file_to_put_where(server, home):
    published = server.published()
    server.server_close()
    with pytest.raises(InputError) as error:
        ensure_weights(NAME, published)
    for part in (published.url, str(home / NAME), "RF_HOME"):
        assert part in str(error.value)
    assert _files(home) == []


def test_two_at_once_make_one_download(server, home):
    found: list[Path] = []
    threads = [
        threading.Thread(target=lambda: found.append(ensure_weights(NAME, server.published())))
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [home / NAME] * 4
    assert (home / NAME).read_bytes() == CONTENT
    assert server.requests == [None]


def test_a_present_file_is_kept_and_warned_of_when_its_md5_differs(home, caplog):
    home.mkdir(parents=True)
    (home / NAME).write_bytes(b"fine-tuned")
    assert ensure_weights(NAME) == home / NAME
    assert (home / NAME).read_bytes() == b"fine-tuned"
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "not the published file of this name" in caplog.text
    caplog.clear()
    (home / "mine.pth").write_bytes(b"mine")
    assert ensure_weights("mine.pth") == home / "mine.pth"
    ensure_weights(NAME, PublishedWeights(NAME, "", hashlib.md5(b"fine-tuned").hexdigest()))
    assert not caplog.records


def test_an_absent_file_that_is_not_published_is_refused(home, tmp_path):
    for name in ("rf-detr-huge.pth", tmp_path / "best.pth", tmp_path):
        with pytest.raises(InputError, match=r"is no file.*rf-detr-nano\.pth, rf-detr-small"):
            ensure_weights(name)
    assert not home.exists()


def test_every_published_name_has_an_address_and_an_md5():
    assert len(PUBLISHED) == 14
    for name, published in PUBLISHED.items():
        assert published.filename == name
        assert published.url.startswith("https://")
        assert len(published.md5) == 32
