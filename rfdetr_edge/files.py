"""Output files appear whole or not at all: written beside their place, then renamed into it."""

import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rfdetr_edge.errors import InputError


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Gives a temporary path in the folder of `path`, with its suffix, to write to.

    It becomes `path` when the block ends, and is removed when the block raises. Raises InputError
    when `path` cannot be a regular file there, OSError that names `path` when writing fails.
    """
    check_place(path)
    target = path.resolve()  # a link stays a link
    temporary = target.with_name(f".{target.stem}.{os.getpid()}.part{target.suffix}")
    try:
        with naming(path):
            yield temporary
            temporary.replace(target)
    finally:
        temporary.unlink(missing_ok=True)


def check_place(path: Path) -> None:
    """Raises InputError when `path` cannot be a regular file there; before work that takes long."""
    target = path.resolve()
    if target.exists() and not target.is_file():
        raise InputError(f"cannot write {path}: it is no regular file; choose another name")
    if not target.parent.is_dir():
        raise InputError(f"cannot write {path}: {path.parent} is no folder; create it first")


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Adds `path` to an OSError that names no file, as those of writes on a full disk do not."""
    try:
        yield
    except OSError as error:
        if error.filename is not None or error.errno is None:
            raise
        raise OSError(error.errno, error.strerror, str(path)) from error


def make_folder(path: Path) -> Path:
    """Creates the folder and its parents. Raises InputError where a file is in the way."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError):
        raise InputError(
            f"cannot write into {path}: it is, or lies below, a file; choose another folder"
        ) from None
    return path


def file_sha256(path: Path) -> str:
    """SHA-256 of a file's bytes as hexadecimal text."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()
