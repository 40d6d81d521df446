"""The size that a header gives is that of the decoded pixels."""

from pathlib import Path

import cv2
import numpy as np
import pytest

from rfdetr_edge import InputError, demo
from rfdetr_edge.image_size import image_size
from rfdetr_edge.images import read_image, write_image

PHOTO = demo.photo_paths()[0]
TURNED = b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x06\0\0\0\0\0\0"


def segment(marker: bytes, content: bytes) -> bytes:
    return marker + (len(content) + 2).to_bytes(2, "big") + content


def written(folder: Path, data: bytes) -> Path:
    path = folder / "photo.jpg"
    path.write_bytes(data)
    return path


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".bmp", ".webp", ".tif"])
def test_every_format_gives_height_and_width(tmp_path, suffix):
    path = tmp_path / f"photo{suffix}"
    image = read_image(PHOTO, upright=False)[:301, :203]
    write_image(path, np.ascontiguousarray(image))
    assert image_size(path) == (301, 203)


def test_a_progressive_jpeg_with_exif_and_thumbnail_gives_the_stored_size(tmp_path):
    image = read_image(PHOTO, upright=False)
    _, data = cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_PROGRESSIVE, 1])
    _, thumbnail = cv2.imencode(".jpg", image[::8, ::8])
    extra = segment(b"\xff\xe1", TURNED) + segment(b"\xff\xe2", thumbnail.tobytes())
    path = written(tmp_path, b"\xff\xd8" + extra + data.tobytes()[2:])
    assert read_image(path, upright=True).shape[:2] == (640, 480)
    assert image_size(path) == (480, 640)


def test_a_header_that_cannot_be_made_out_is_decoded(tmp_path):
    path = written(tmp_path, b"\xff\xd8\xff" + PHOTO.read_bytes()[2:])  # a fill byte
    assert image_size(path) == (480, 640)


def test_bytes_after_the_end_do_no_harm(tmp_path):
    assert image_size(written(tmp_path, PHOTO.read_bytes() + bytes(100))) == (480, 640)


@pytest.mark.parametrize("suffix", [".jpg", ".png"])
@pytest.mark.parametrize("share", [0, 0.001, 0.5, 0.99])
def test_a_file_that_was_cut_off_is_an_error(tmp_path, suffix, share):
    whole = tmp_path / f"whole{suffix}"
    write_image(whole, read_image(PHOTO, upright=False))
    data = whole.read_bytes()
    with pytest.raises(InputError, match=r"photo\.jpg"):
        image_size(written(tmp_path, data[: int(share * len(data))]))


def test_what_is_no_image_is_an_error(tmp_path):
    with pytest.raises(InputError, match=r"photo\.jpg"):
        image_size(written(tmp_path, b"no image"))
    with pytest.raises(InputError, match="no image file"):
        image_size(tmp_path / "gone.jpg")
