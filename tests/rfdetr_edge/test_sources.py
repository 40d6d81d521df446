import shutil
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import numpy as np
import pytest

from rfdetr_edge import InputError, Url, demo
from rfdetr_edge.images import read_image
from rfdetr_edge.sources import (
    CameraSource,
    ImageSource,
    VideoSource,
    open_sources,
    total_length,
)

PHOTOS = demo.photo_paths()


@pytest.fixture
def shots(tmp_path, monkeypatch):
    """A folder with photos, a video, and files that are neither."""
    for name in ("b.jpg", "a.JPG", "deep/c.png"):
        target = tmp_path / "shots" / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(PHOTOS[0], target)
    for name in ("v.mp4", "notes.txt", ".hidden.jpg"):
        (tmp_path / "shots" / name).touch()
    monkeypatch.chdir(tmp_path)
    return Path("shots")


def expand(*arguments):
    return open_sources(arguments, allow_urls=False)


def test_a_folder_stands_for_its_photos_and_videos_by_name(shots):
    assert expand("shots") == [
        ImageSource(shots / "a.JPG"),
        ImageSource(shots / "b.jpg"),
        VideoSource(shots / "v.mp4"),
    ]


def test_a_pattern_stands_for_the_files_it_matches(shots):
    assert expand("shots/?.jpg") == [ImageSource(shots / "b.jpg")]
    assert expand("shots/**/*.png") == [ImageSource(shots / "deep" / "c.png")]


def test_a_name_that_looks_like_a_pattern_or_a_camera_is_a_file_where_it_exists(shots):
    for name in ("shot[1].jpg", "7"):
        shutil.copy(PHOTOS[0], name)
        assert expand(name) == [ImageSource(Path(name))]


def test_arguments_keep_their_order_and_each_file_counts_once(shots):
    found = expand("shots/b.jpg", "shots", "0", "shots/b.jpg")
    names = [source.name for source in found]
    assert names == ["shots/b.jpg", "shots/a.JPG", "shots/v.mp4", "camera 0"]
    assert found[-1] == CameraSource(0)


def test_a_url_is_fetched_only_when_allowed():
    address = "https://example.org/a.jpg"
    with pytest.raises(InputError, match="--allow-urls"):
        expand(address)
    assert open_sources([address], allow_urls=True) == [ImageSource(Url(address))]


@pytest.mark.parametrize("argument", ["gone.jpg", "shots/*.gif", "", "99999999999"])
def test_an_argument_that_names_nothing_is_an_error(shots, argument):
    with pytest.raises(InputError, match=r"no such file|names no file"):
        expand(argument)


def test_a_folder_without_photos_is_an_error(tmp_path):
    with pytest.raises(InputError, match="holds no photo or video"):
        expand(str(tmp_path))


def test_a_photo_is_one_frame_without_a_time():
    source = ImageSource(PHOTOS[0])
    (frame,) = source.frames()
    np.testing.assert_array_equal(frame.image, read_image(PHOTOS[0], upright=True))
    assert (frame.name, frame.index, frame.time, frame.rate) == (str(PHOTOS[0]), 0, None, None)


def test_the_length_of_a_run_is_known_without_cameras_only():
    photos = [ImageSource(path) for path in PHOTOS]
    assert total_length(photos) == 3
    assert total_length([*photos, CameraSource(0)]) is None


def test_a_photo_from_the_web_is_the_photo_served():
    handler = partial(SimpleHTTPRequestHandler, directory=PHOTOS[0].parent)
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{server.server_port}/{PHOTOS[0].name}"
        (source,) = open_sources([address], allow_urls=True)
        (frame,) = source.frames()
        server.shutdown()
    np.testing.assert_array_equal(frame.image, read_image(PHOTOS[0], upright=True))
    assert frame.name == address
