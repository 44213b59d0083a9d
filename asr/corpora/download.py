"""One file from the network: what comes, how large and under which licence is said first, a checksum decides.

Only ``https`` (and ``http`` on this machine, for tests and mirrors) is followed, redirects included. The
file takes its name only when it is whole and its checksum is right; what a broken download left is removed.
No more than twice the announced size is ever read. Resuming is not attempted: whoever wants tens of
gigabytes over an unsteady line fetches the archive with a tool made for that and names it by ``--source``.
"""

import dataclasses
import hashlib
import http.client
import os
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from typing import IO, Any

from asr import files
from asr.errors import AsrError, InputError

Say = Callable[[str], None]
"""Takes one line for the user; the command line prints it on standard error."""

TIMEOUT = 30.0  # seconds without a byte
_BLOCK = 1 << 16
_REPORT_SECONDS = 2.0
_LOOPBACK = ("127.0.0.1", "::1", "localhost")


@dataclasses.dataclass(frozen=True)
class Archive:
    """A published archive: its address, its size in bytes, its SHA-256 or MD5 where a trusted one is known."""

    url: str
    size: int
    sha256: str | None = None
    md5: str | None = None  # enough against damage on the way, not against intent


def download(
    archive: Archive, path: str | os.PathLike[str], *, licence: str, say: Say, timeout: float = TIMEOUT
) -> str:
    """Fetch `archive` to `path` and return the SHA-256 of what came.

    Raises:
        InputError: the address is neither https nor loopback http, the checksum differs, or more than twice
            the expected size comes.
        AsrError: no connection, an HTTP error, a connection that breaks or stalls `timeout` seconds, no room.
    """
    check_url(archive.url)
    check = "checksum known" if archive.sha256 or archive.md5 else "no published checksum; the recordings are checked"
    say(f"downloading {archive.url}: {_megabytes(archive.size)}, {check}; licence: {licence}")
    response = _open(archive.url, timeout)
    digest, older = hashlib.sha256(), hashlib.md5(usedforsecurity=False)
    with response, files.atomic(path) as file:
        for block in _blocks(response, archive, say):
            digest.update(block)
            older.update(block)
            file.write(block)
        for name, found, known in (("SHA-256", digest, archive.sha256), ("MD5", older, archive.md5)):
            if known and found.hexdigest() != known:
                raise InputError(
                    f"{archive.url}: wrong checksum ({name} {found.hexdigest()}, expected {known}); "
                    "nothing kept; try again, or get the corpus yourself and give --source"
                )
    return digest.hexdigest()


def check_url(url: str) -> None:
    """Refuse whatever is not https, or http on this machine. Raises InputError."""
    try:
        parts = urllib.parse.urlsplit(url)
        allowed = parts.scheme == "https" or (parts.scheme == "http" and parts.hostname in _LOOPBACK)
    except ValueError:
        allowed = False
    if not allowed or not parts.hostname:
        raise InputError(f"{url}: not an https address; nothing was fetched")


class _CheckedRedirects(urllib.request.HTTPRedirectHandler):
    """Follows a redirect only where the first address could have gone."""

    def redirect_request(
        self,
        req: urllib.request.Request,
        fp: IO[bytes],
        code: int,
        msg: str,
        headers: http.client.HTTPMessage,
        newurl: str,
    ) -> urllib.request.Request | None:
        check_url(newurl)
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _open(url: str, timeout: float) -> Any:
    """The response to a GET of `url`; only its body is left to read."""
    handlers: list[Any] = [_CheckedRedirects()]
    if urllib.parse.urlsplit(url).hostname in _LOOPBACK:
        handlers.append(urllib.request.ProxyHandler({}))
    request = urllib.request.Request(url, headers={"User-Agent": "asr (corpus download)"})
    try:
        return urllib.request.build_opener(*handlers).open(request, timeout=timeout)
    except urllib.error.HTTPError as error:
        error.close()
        raise AsrError(
            f"{url}: the server answers {error.code} {error.reason}; get it elsewhere, give --source"
        ) from error
    except (OSError, http.client.HTTPException) as error:
        reason = getattr(error, "reason", None) or error
        raise AsrError(f"{url}: no connection ({reason}); get it elsewhere, give --source") from error


def _blocks(response: Any, archive: Archive, say: Say) -> Iterator[bytes]:
    """The body in blocks; raises where it is cut, stalls or grows beyond twice the expected size."""
    announced = response.headers.get("Content-Length", "")
    expected = int(announced) if announced.isdecimal() else None
    limit, got, reported = 2 * archive.size, 0, time.monotonic()
    if expected is not None and expected > limit:
        raise InputError(f"{archive.url}: announces {expected} bytes, expected {archive.size}; nothing kept")
    while block := _read(response, archive.url, got):
        got += len(block)
        if got > limit:
            raise InputError(f"{archive.url}: more than {limit} bytes, expected {archive.size}; nothing kept")
        if time.monotonic() - reported >= _REPORT_SECONDS:
            reported = time.monotonic()
            say(f"downloading: {_megabytes(got)} of {_megabytes(expected or archive.size)}")
        yield block
    if expected is not None and got != expected:
        raise AsrError(f"{archive.url}: the connection was cut after {got} of {expected} bytes; try again")


def _read(response: Any, url: str, got: int) -> bytes:
    try:
        return bytes(response.read(_BLOCK))
    except (OSError, http.client.HTTPException) as error:
        raise AsrError(f"{url}: the connection broke after {got} bytes ({error}); try again") from error


def _megabytes(size: int) -> str:
    return f"{size / 1e6:.1f} MB"
