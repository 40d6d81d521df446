import cv2
import numpy as np
import pytest

from rfdetr_edge import InputError, demo
from rfdetr_edge.images import read_image
from rfdetr_edge.sources import VideoSource
from rfdetr_edge.video import VideoReader, write_video

RATE = 12.5


@pytest.fixture(scope="module")
def photos():
    return [read_image(path, upright=False) for path in demo.photo_paths()]


@pytest.fixture(scope="module")
def avi(tmp_path_factory, photos):
    """A real video of the demo photos, twice over, by OpenCV's own encoder."""
    path = tmp_path_factory.mktemp("video") / "cells.avi"
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"MJPG"), RATE, (640, 480))
    for photo in photos * 2:
        writer.write(cv2.cvtColor(photo, cv2.COLOR_RGB2BGR))
    writer.release()
    return path


def mean_difference(image, other):
    return np.abs(image.astype(int) - other).mean()


def test_frames_come_as_rgb_with_index_time_and_rate(avi, photos):
    frames = list(VideoSource(avi).frames())
    assert [frame.index for frame in frames] == list(range(6))
    assert [frame.time for frame in frames] == pytest.approx([i / RATE for i in range(6)])
    assert {(frame.rate, frame.name) for frame in frames} == {(RATE, str(avi))}
    for frame, photo in zip(frames, photos * 2, strict=True):
        assert mean_difference(frame.image, photo) < 3
        assert mean_difference(frame.image[:, :, ::-1], photo) > 9


def test_the_length_is_known_before_reading(avi):
    reader = VideoReader(avi)
    assert (reader.count, reader.rate) == (6, RATE)
    assert VideoSource(avi).length() == 6


@pytest.mark.parametrize(("height", "width"), [(480, 640), (479, 639)])
def test_a_written_video_reads_back_in_order_and_colour(tmp_path, photos, height, width):
    path = tmp_path / "out.mp4"
    with write_video(path, size=(height, width), rate=RATE) as append:
        for photo in photos:
            append(photo[:height, :width])
        assert not path.exists()
    frames = [image for image, _ in VideoReader(path).frames()]
    assert len(frames) == 3
    for frame, photo in zip(frames, photos, strict=True):
        assert frame.shape == (480, 640, 3)  # an odd side is padded
        assert mean_difference(frame[:height, :width], photo[:height, :width]) < 5
    assert list(tmp_path.iterdir()) == [path]


def test_a_video_that_fails_on_the_way_leaves_no_file(tmp_path, photos):
    def fail():
        with write_video(tmp_path / "out.mp4", size=(480, 640), rate=RATE) as append:
            append(photos[0])
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("content", [b"", b"no video at all"])
def test_what_is_no_video_is_an_error(tmp_path, content):
    path = tmp_path / "not.mp4"
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"not\.mp4 cannot be opened"):
        list(VideoSource(path).frames())
    assert VideoSource(path).length() is None


def test_a_missing_video_and_a_missing_camera_are_errors(tmp_path):
    with pytest.raises(InputError, match="no such video file"):
        VideoReader(tmp_path / "gone.mp4")
    with pytest.raises(InputError, match="camera 97 cannot be opened"):
        VideoReader(97)


def test_a_video_that_breaks_off_gives_its_frames_and_then_an_error(avi, tmp_path):
    path = tmp_path / "half.avi"
    path.write_bytes(avi.read_bytes()[: avi.stat().st_size // 2])
    frames = []
    with pytest.raises(InputError, match=r"breaks off after \d of 6 frames"):
        frames.extend(VideoSource(path).frames())
    assert [frame.index for frame in frames] == list(range(len(frames)))
    assert frames
