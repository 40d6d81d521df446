"""Fetches a file over http(s). Imported on first use, since urllib costs 35 ms of every start."""

import http.client
import time
import urllib.request

from rfdetr_edge.errors import InputError

CONNECT_SECONDS = 10.0
TOTAL_SECONDS = 60.0
MAX_BYTES = 64 * 2**20
_CHUNK = 2**16


def fetch(address: str) -> bytes:
    """The body behind an http(s) address.

    Raises InputError when the server cannot be reached, answers with an error, stays silent for
    10 seconds, takes over 60 seconds in all, or sends over 64 MiB.
    """
    deadline = time.monotonic() + TOTAL_SECONDS
    request = urllib.request.Request(address, headers={"User-Agent": "rfdetr-edge"})
    body = bytearray()
    try:
        with urllib.request.urlopen(request, timeout=CONNECT_SECONDS) as response:
            while chunk := response.read1(_CHUNK):
                body += chunk
                if len(body) > MAX_BYTES:
                    raise InputError(
                        f"{address} is larger than {MAX_BYTES // 2**20} MiB; download it first"
                    )
                if time.monotonic() > deadline:
                    raise InputError(
                        f"{address} took over {TOTAL_SECONDS:.0f} s; download it first"
                    )
    except InputError:
        raise
    except (OSError, http.client.HTTPException, ValueError) as error:
        raise InputError(f"cannot fetch {address}: {error}") from error
    return bytes(body)
