import io
import struct
import sys
import threading
import time
import zlib
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest

from rfdetr_edge import BackendUnavailable, InputError, Url, _fetch
from rfdetr_edge.images import decode_image, image_files, load_image, read_image, write_image

cv2 = pytest.importorskip("cv2")
Image = pytest.importorskip("PIL.Image")
ImageOps = pytest.importorskip("PIL.ImageOps")

PHOTO = Path(__file__).parents[2] / "rfdetr_edge/demo/cells/BloodImage_00007.jpg"
JPEG = PHOTO.read_bytes()


def photo():
    return Image.open(PHOTO).convert("RGB").resize((80, 60))


def encoded(image, kind, **options):
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def sixteen_bit():
    return np.random.default_rng(0).integers(0, 65536, (20, 30), np.uint16)


@pytest.mark.parametrize("mode", ["L", "LA", "P", "RGBA", "1", "RGB"])
@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_every_8_bit_mode_becomes_the_rgb_that_pillow_sees(tmp_path, mode, kind):
    image = photo().convert(mode)
    path = tmp_path / f"image.{kind.lower()}"
    image.save(path)
    pixels = read_image(path, upright=True)
    np.testing.assert_array_equal(pixels, image.convert("RGB"))
    assert pixels.flags.c_contiguous


def test_16_bit_grey_and_colour_keep_the_upper_byte():
    grey = sixteen_bit()
    for kind in (".png", ".tiff"):
        file = cv2.imencode(kind, grey)[1].tobytes()
        np.testing.assert_array_equal(decode_image(file, upright=True)[:, :, 1], grey >> 8)
    bgr = np.dstack([grey, grey.T.reshape(grey.shape), 65535 - grey])
    rgb = decode_image(cv2.imencode(".png", bgr)[1].tobytes(), upright=True)
    np.testing.assert_array_equal(rgb[:, :, ::-1], bgr >> 8)


def test_cmyk_jpeg_is_converted():
    file = encoded(photo().convert("CMYK"), "JPEG", quality=95)
    difference = np.abs(decode_image(file, upright=True).astype(int) - np.asarray(photo()))
    assert np.median(difference) <= 3


@pytest.mark.parametrize("size", [(1, 1), (20000, 10)])
def test_extreme_sizes_are_read(size):
    image = photo().resize(size)
    np.testing.assert_array_equal(decode_image(encoded(image, "PNG"), upright=True), image)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied_when_asked(orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    file = encoded(photo(), "JPEG", exif=exif, quality=95, subsampling=0)
    stored = Image.open(io.BytesIO(file))
    upright = np.asarray(ImageOps.exif_transpose(stored), int)
    # decoders differ by a step or two of rounding; a wrong turn by far more
    assert np.abs(decode_image(file, upright=True) - upright).max() <= 4
    assert np.abs(decode_image(file, upright=False) - np.asarray(stored, int)).max() <= 4


def bomb():
    """A small PNG that announces more pixels than OpenCV allows."""
    chunks = {
        b"IHDR": struct.pack(">IIBBBBB", 2**19, 2**19, 8, 2, 0, 0, 0),
        b"IDAT": zlib.compress(bytes(1000)),
        b"IEND": b"",
    }
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        for kind, body in chunks.items()
    )


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty"),
        (b"hello, this is a text" * 20, "no image"),
        (JPEG[: len(JPEG) // 2], "truncated JPEG"),
        (JPEG[:-2], "truncated JPEG"),
        (encoded(photo(), "JPEG", progressive=True)[:-500], "truncated JPEG"),
        (encoded(photo(), "PNG")[:-500], "truncated"),
        (encoded(photo(), "TIFF")[:-500], "truncated"),
        (encoded(photo(), "WEBP")[:-500], "truncated"),
        (bomb(), "cannot be decoded"),
        (encoded(photo().convert("F"), "TIFF"), "no image"),
    ],
    ids=["empty", "text", "half", "no end", "progressive", "PNG", "TIFF", "WebP", "bomb", "float"],
)
def test_a_broken_file_is_one_clear_error(tmp_path, content, message):
    path = tmp_path / "photo.jpg"
    path.write_bytes(content)
    with pytest.raises(InputError, match=rf"photo\.jpg.*{message}"):
        read_image(path, upright=True)


def test_the_end_of_a_thumbnail_is_not_the_end_of_the_jpeg():
    thumbnail = encoded(photo(), "JPEG")
    segment = b"\xff\xe1" + struct.pack(">H", 2 + len(thumbnail)) + thumbnail
    file = JPEG[:2] + segment + JPEG[2:]
    assert decode_image(file + b"appended by a camera", upright=True).shape == (480, 640, 3)
    with pytest.raises(InputError, match="truncated JPEG"):
        decode_image(file[:-2000], upright=True)


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("nowhere.jpg", "there is no image file nowhere.jpg"),
        (".", "is a folder"),
        ("nul\0.jpg", "cannot read"),
        ("https://example.com/a.jpg", r"rfdetr_edge\.Url"),
    ],
)
def test_a_path_that_is_no_file_is_one_clear_error(path, message):
    with pytest.raises(InputError, match=message):
        read_image(path, upright=True)


def test_bytes_pillow_images_and_arrays_are_images_too():
    image, array = photo(), np.asarray(photo())
    file = encoded(image, "PNG")
    for given in (file, bytearray(file), memoryview(file), image, image.convert("RGBA"), array):
        np.testing.assert_array_equal(load_image(given, upright=True), array)
    grey = Image.fromarray(sixteen_bit())
    np.testing.assert_array_equal(load_image(grey, upright=True)[:, :, 0], sixteen_bit() >> 8)


@pytest.mark.parametrize(
    ("image", "said"),
    [
        (Image.new("F", (4, 3), 0.5), "mode F has no known range"),
        (Image.new("I", (4, 3), 70_000), "must hold 0 to 65535"),
    ],
)
def test_a_pillow_image_that_bytes_cannot_hold_is_refused(image, said):
    with pytest.raises(InputError, match=said):
        load_image(image, upright=True)


@pytest.mark.parametrize("given", [None, 3, {"path": "a.jpg"}])
def test_another_type_is_refused(given):
    with pytest.raises(InputError, match=type(given).__name__):
        load_image(given, upright=True)


def test_a_pillow_image_of_a_truncated_file_is_an_input_error():
    lazy = Image.open(io.BytesIO(encoded(photo(), "PNG")[:-500]))
    with pytest.raises(InputError, match="Pillow"):
        load_image(lazy, upright=True)


class Server(BaseHTTPRequestHandler):
    def do_GET(self):
        if self.path == "/slow.jpg":
            time.sleep(0.6)
        self.send_response(404 if self.path == "/gone.jpg" else 200)
        self.end_headers()
        if self.path == "/photo.jpg":
            self.wfile.write(JPEG)
        if self.path == "/drip.jpg":
            with suppress(BrokenPipeError):  # whoever reads has enough of it
                for _ in range(8):
                    self.wfile.write(b".")
                    time.sleep(0.05)

    def log_message(self, *_):
        pass


@contextmanager
def serving():
    with ThreadingHTTPServer(("127.0.0.1", 0), Server) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def test_a_url_is_fetched_when_wrapped():
    with serving() as host:
        fetched = load_image(Url(f"{host}/photo.jpg"), upright=True)
    np.testing.assert_array_equal(fetched, read_image(PHOTO, upright=True))


def test_a_url_that_fails_is_one_clear_error(monkeypatch):
    monkeypatch.setattr(_fetch, "CONNECT_SECONDS", 0.2)
    monkeypatch.setattr(_fetch, "TOTAL_SECONDS", 0.2)
    monkeypatch.setattr(_fetch, "MAX_BYTES", 1000)
    failures = {"gone": "404", "slow": "timed out", "photo": "larger than", "drip": "took over"}
    with serving() as host:
        for path, message in failures.items():
            with pytest.raises(InputError, match=rf"{path}\.jpg.*{message}"):
                load_image(Url(f"{host}/{path}.jpg"), upright=True)
    with pytest.raises(InputError, match="cannot fetch"):
        load_image(Url(f"{host}/photo.jpg"), upright=True)  # nobody listens any more
    with pytest.raises(InputError, match="no http"):
        Url("file:///etc/passwd")


def test_a_folder_gives_its_images_sorted(tmp_path):
    for name in ("b.PNG", "a.jpg", ".hidden.jpg", "notes.txt"):
        (tmp_path / name).touch()
    (tmp_path / "folder.jpg").mkdir()
    assert [path.name for path in image_files(tmp_path)] == ["a.jpg", "b.PNG"]
    with pytest.raises(InputError, match="holds no images"):
        image_files(tmp_path / "folder.jpg")


def test_images_are_written_whole_or_not_at_all(tmp_path):
    array = np.asarray(photo())
    write_image(tmp_path / "out.png", array)
    np.testing.assert_array_equal(read_image(tmp_path / "out.png", upright=True), array)
    for bad in ("out.xyz", "out", "out.png/below.png", "missing/out.png"):
        with pytest.raises(InputError, match="cannot write"):
            write_image(tmp_path / bad, array)
    assert [path.name for path in tmp_path.iterdir()] == ["out.png"]


def test_a_missing_opencv_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "cv2", None)  # what Python does for a missing module
    with pytest.raises(BackendUnavailable, match=r"rfdetr-edge\[opencv\].*--system-site-packages"):
        read_image(PHOTO, upright=True)
