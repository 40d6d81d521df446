"""The published checkpoints: where they lie on this machine, and how they come there."""

import hashlib
import http.client
import logging
import os
import urllib.error
import urllib.request
from http import HTTPStatus
from pathlib import Path

from filelock import FileLock
from tqdm import tqdm

from rfdetr_edge.errors import InputError
from rfdetr_edge.files import make_folder
from rfdetr_edge.variants import VARIANTS, PublishedWeights

PUBLISHED = {row.weights.filename: row.weights for row in VARIANTS.values() if row.weights}

_SILENCE_SECONDS = 30.0
_CHUNK = 2**18

logger = logging.getLogger(__name__)


def weights_path(name_or_path: str | Path) -> Path:
    """A path with a folder as it is; a bare name in $RF_HOME, $ROBOFLOW_HOME, ~/.roboflow/models.

    A bare name that is not published is the file of this name in the working directory, if any.
    """
    path = Path(name_or_path).expanduser()
    bare = path.name == str(name_or_path)  # Path drops the folder of ./name
    if not bare or (path.name not in PUBLISHED and path.is_file()):
        return path
    home = os.environ.get("RF_HOME") or os.environ.get("ROBOFLOW_HOME") or "~/.roboflow/models"
    return Path(home).expanduser() / path


def ensure_weights(name_or_path: str | Path, published: PublishedWeights | None = None) -> Path:
    """The path of a checkpoint, which is downloaded first if it is a published one and absent.

    published: where to get it; None looks the file's name up in `PUBLISHED`. A file that is there
    is never replaced, but warned of when its MD5 is not the published one's. A download appears
    whole or not at all; one that was cut off goes on where it ended, from `<name>.part`.
    Raises InputError when an absent file is not published or cannot be fetched.
    """
    path = weights_path(name_or_path)
    published = published or PUBLISHED.get(path.name)
    if path.is_file():
        if published and _md5(path) != published.md5:
            logger.warning("%s is not the published file of this name: its MD5 differs", path)
        return path
    if published is None:
        raise InputError(
            f"{path} is no file, and no published checkpoint has this name; give another path, or "
            f"one of {', '.join(PUBLISHED)}"
        )
    make_folder(path.parent)
    with FileLock(path.with_name(f".{path.name}.lock")):
        if not path.is_file():  # else another process brought it in the meantime
            _download(published, path)
    return path


def _download(published: PublishedWeights, path: Path) -> None:
    part = path.with_name(f"{path.name}.part")
    try:
        if not part.is_file() or _md5(part) != published.md5:
            _receive(published.url, part)
    except (OSError, http.client.HTTPException) as error:
        raise InputError(
            f"cannot download {path.name} from {published.url}: {error}. Try again, or put the "
            f"file at {path}; for a bare name, RF_HOME chooses the folder"
        ) from error
    if _md5(part) != published.md5:
        part.unlink()
        raise InputError(
            f"what {published.url} sends is not {path.name}: its MD5 is not {published.md5}. It "
            "was deleted; try again"
        )
    part.replace(path)


def _receive(url: str, part: Path) -> None:
    """Appends what is missing of a file, or writes it anew where the server cannot go on."""
    have = part.stat().st_size if part.is_file() else 0
    request = urllib.request.Request(url, headers={"Range": f"bytes={have}-"} if have else {})
    try:
        response = urllib.request.urlopen(request, timeout=_SILENCE_SECONDS)
    except urllib.error.HTTPError as error:
        error.close()
        if error.code != HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE or not have:
            raise
        part.unlink()  # it is longer than the file
        return _receive(url, part)
    with response:
        have = have if response.status == HTTPStatus.PARTIAL_CONTENT else 0
        total = have + response.length if response.length is not None else None
        bar = tqdm(None, part.stem, total, initial=have, unit="B", unit_scale=True, disable=None)
        with part.open("ab" if have else "wb") as file, bar:
            while chunk := response.read(_CHUNK):
                bar.update(file.write(chunk))
            if total is not None and file.tell() < total:
                raise http.client.IncompleteRead(b"", total - file.tell())


def _md5(path: Path) -> str:
    digest = hashlib.md5(usedforsecurity=False)
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()
