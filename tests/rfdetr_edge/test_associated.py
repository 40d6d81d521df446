"""The document in and beside a .tflite: any bytes will do for the model."""

import errno
import json
import time
import zipfile
from pathlib import Path

import pytest
from graphs import metadata

from rfdetr_edge.associated import (
    DOCUMENT,
    model_of,
    read_document,
    sidecar_path,
    with_document,
    write_sidecar,
)
from rfdetr_edge.errors import MetadataError

MODEL = bytes(range(256)) * 50
TEXT = metadata().to_json()


def test_the_model_comes_first_and_any_zip_reader_finds_the_document(tmp_path):
    path = tmp_path / "model.tflite"
    path.write_bytes(with_document(MODEL, TEXT))
    assert path.read_bytes().startswith(MODEL)
    with zipfile.ZipFile(path) as archive:
        assert archive.namelist() == [DOCUMENT]
        assert json.loads(archive.read(DOCUMENT)) == json.loads(TEXT)
        assert archive.getinfo(DOCUMENT).compress_type == zipfile.ZIP_STORED
    assert read_document(path) == TEXT


@pytest.mark.parametrize("content", [MODEL, with_document(MODEL, TEXT)])
def test_the_model_comes_back_without_what_is_behind_it(content):
    assert model_of(content) == MODEL


def test_the_same_content_gives_the_same_bytes(monkeypatch):
    first = with_document(MODEL, TEXT)
    monkeypatch.setattr(time, "time", lambda: 2e9)
    assert with_document(MODEL, TEXT) == first != with_document(MODEL, "{}")


def test_the_sidecar_serves_a_file_that_lost_its_archive_and_no_other(tmp_path):
    path = tmp_path / "model.tflite"
    path.write_bytes(MODEL)
    assert read_document(path) is None
    write_sidecar(path, TEXT)
    assert sidecar_path(path).name == "model.tflite.json"
    assert json.loads(read_document(path)) == json.loads(TEXT)
    path.write_bytes(with_document(MODEL, "{}"))
    assert read_document(path) == "{}"


def test_files_of_others_in_the_archive_are_no_document(tmp_path):
    path = tmp_path / "model.tflite"
    path.write_bytes(MODEL)
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("labels.txt", "RBC\nWBC\n")
    assert read_document(path) is None


def test_a_damaged_document_is_named(tmp_path):
    path = tmp_path / "model.tflite"
    path.write_bytes(with_document(MODEL, TEXT).replace(b'"schema"', b'"scheme"'))
    with pytest.raises(MetadataError, match=r"inside .*model\.tflite is damaged .*export it again"):
        read_document(path)
    path.write_bytes(MODEL)
    sidecar_path(path).write_bytes(b"\xff\xfe{")
    with pytest.raises(MetadataError, match=r"model\.tflite\.json cannot be read"):
        read_document(path)


@pytest.mark.parametrize("kept", range(0, 1400, 7))
def test_an_archive_cut_anywhere_is_none(tmp_path, kept):
    path = tmp_path / "model.tflite"
    whole = with_document(MODEL, TEXT)
    assert len(whole) - len(MODEL) < 1400
    path.write_bytes(whole[: min(len(MODEL) + kept, len(whole) - 1)])
    assert read_document(path) is None


def test_a_sidecar_on_a_full_disk_leaves_the_older_one(tmp_path, monkeypatch):
    path = tmp_path / "model.tflite"
    path.write_bytes(MODEL)
    write_sidecar(path, TEXT)

    def fail(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_text", fail)
    with pytest.raises(OSError, match=r"No space left.*model\.tflite\.json"):
        write_sidecar(path, "{}")
    assert {file.name for file in tmp_path.iterdir()} == {"model.tflite", "model.tflite.json"}
    assert read_document(path) == TEXT + "\n"
