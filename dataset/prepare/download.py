"""Downloads that resume where they broke off."""

import http.client
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from http import HTTPStatus
from pathlib import Path, PurePosixPath

from tqdm import tqdm

from dataset.prepare.disk import require_space, writing
from utils.errors import PansError

CHUNK = 1 << 20
TIMEOUT_SECONDS = 60.0
# Some servers refuse urllib's own name.
HEADERS = {"User-Agent": "PAnS dataset.prepare"}


class ConnectionBroken(Exception):
    """The rest of a file did not arrive this time."""


def size_of(url: str) -> int | None:
    """Size in bytes of a file on a server; None if the server does not report it."""
    request = urllib.request.Request(url, headers=HEADERS, method="HEAD")
    try:
        with urllib.request.urlopen(request, timeout=TIMEOUT_SECONDS) as response:
            return int(response.headers["Content-Length"])
    # The download will report what is wrong with the server.
    except (OSError, http.client.HTTPException, ValueError, TypeError):
        return None


def download(url: str, path: Path, *, attempts: int = 5, wait_seconds: float = 2.0) -> None:
    """Download a file, resuming from `path` + ".part" if it exists.

    Args:
        attempts: consecutive connections without progress before giving up.

    Raises:
        PansError: the server refuses, or the connection keeps breaking; the file does not fit.
    """
    part = path.with_name(path.name + ".part")
    with writing(part):
        part.touch()
    failures = 0
    while True:
        size_before = part.stat().st_size
        try:
            _download_rest(url, part)
        except ConnectionBroken as error:
            size = part.stat().st_size
            failures = 0 if size > size_before else failures + 1
            if failures == attempts:
                raise PansError(
                    f"{url} broke off at byte {size} ({error}); check the network and run the "
                    "same command again to resume from there, or fetch it by other means and use "
                    "--from"
                ) from error
            print(f"{path.name}: broke off at byte {size} ({error}); trying again")
            time.sleep(wait_seconds)
        else:
            part.replace(path)
            return


def _download_rest(url: str, part: Path) -> None:
    start = part.stat().st_size
    # No check whether the file has changed since: the md5 sum would reveal it.
    rest = {"Range": f"bytes={start}-"} if start else {}
    request = urllib.request.Request(url, headers=HEADERS | rest)
    try:
        with urllib.request.urlopen(request, timeout=TIMEOUT_SECONDS) as response:
            _append(response, part, start)
    except urllib.error.HTTPError as error:
        if error.code == HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:
            return  # nothing is left to fetch; the md5 sum shows whether it is right
        if error.code >= HTTPStatus.INTERNAL_SERVER_ERROR:
            raise ConnectionBroken(str(error)) from error
        raise PansError(
            f"{url} cannot be fetched (HTTP {error.code} {error.reason}); fetch "
            f"{PurePosixPath(url).name} by other means and name its folder with --from"
        ) from error
    except (OSError, http.client.HTTPException) as error:
        raise ConnectionBroken(str(error) or type(error).__name__) from error


def _append(response: http.client.HTTPResponse, part: Path, start: int) -> None:
    if response.status != HTTPStatus.PARTIAL_CONTENT:
        start = 0  # the server sends the whole file again
    # Not every server sends the length; then the end of the stream or the md5 sum decides.
    total = None if response.length is None else start + response.length
    with (
        writing(part),
        part.open("r+b") as file,
        tqdm(desc=part.stem, initial=start, total=total, unit="B", unit_scale=True) as bar,
    ):
        file.truncate(start)
        file.seek(start)
        require_space(part.parent, response.length or 0)
        for chunk in _chunks(response):
            file.write(chunk)
            bar.update(len(chunk))
    if response.length:
        raise ConnectionBroken(f"the server closed the connection before byte {total}")


def _chunks(response: http.client.HTTPResponse) -> Iterator[bytes]:
    try:
        while chunk := response.read(CHUNK):
            yield chunk
    except (OSError, http.client.HTTPException) as error:
        raise ConnectionBroken(str(error) or type(error).__name__) from error
