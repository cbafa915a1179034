"""Resumable downloads over https, which replace a file only by one that passed its check."""

import os
import re
import urllib.request
from collections.abc import Callable, Collection
from http.client import HTTPException, HTTPMessage
from pathlib import Path
from ssl import SSLError
from typing import IO
from urllib.error import HTTPError, URLError
from urllib.parse import urlsplit

from tqdm import tqdm

from datasets.files.checks import file_md5, os_reason
from utils.errors import InputError

MAX_BYTES = 16 << 30
TIMEOUT = 60  # seconds without a byte
_BLOCK = 1 << 18


def download(
    url: str,
    target: Path,
    md5: str | None,
    check: Callable[[Path], object] = lambda path: None,
    allow_unverified: bool = False,
    schemes: Collection[str] = ("https",),
) -> bool:
    """Fetches ``url`` to ``target``; returns False if the right file was there already.

    Bytes go to ``target`` + ``.part``, which a later call resumes. It becomes ``target`` only if it has the
    given MD5 and ``check``, which raises InputError for a file of the wrong kind, accepts it. Without a
    published MD5, ``allow_unverified`` is required, and a file at ``target`` that passes ``check`` is kept.
    ``schemes`` applies to redirections as well.

    Raises:
        InputError: the address is not https, the connection broke and retries bring no more bytes, the file
            is not the right one, or the disk cannot be written. An earlier file at ``target`` is then
            untouched.
    """
    _require_scheme(url, schemes)
    if md5 is None and not allow_unverified:
        raise InputError(f"{url} has no published checksum; --allow_unverified downloads it anyway")
    part = target.with_name(target.name + ".part")
    try:
        if target.is_file() and (md5 is None or file_md5(target) == md5):
            check(target)
            return False
        target.parent.mkdir(parents=True, exist_ok=True)
        _fetch(url, part, schemes)
        if md5 is not None and file_md5(part) != md5:
            raise _WrongFile(f"what {url} sent does not have the published MD5 {md5} and is deleted")
        try:
            check(part)
        except InputError as error:
            raise _WrongFile(f"what {url} sent is not the right file and is deleted: {error}") from error
        os.replace(part, target)
    except _WrongFile:
        part.unlink()  # resuming it could never succeed
        raise
    except OSError as error:
        raise InputError(f"{target} cannot be written: {os_reason(error)}") from error
    return True


class _WrongFile(InputError):
    pass


class _BrokeOff(Exception):
    pass


class _Redirections(urllib.request.HTTPRedirectHandler):
    """Follows a redirection only to an address that could have been given directly."""

    def __init__(self, schemes: Collection[str]) -> None:
        self.schemes = schemes

    def redirect_request(
        self,
        req: urllib.request.Request,
        fp: IO[bytes],
        code: int,
        msg: str,
        headers: HTTPMessage,
        newurl: str,
    ) -> urllib.request.Request | None:
        _require_scheme(newurl, self.schemes)
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _require_scheme(url: str, schemes: Collection[str]) -> None:
    if urlsplit(url).scheme not in schemes:
        raise InputError(f"{url} is refused: downloads go over {' or '.join(schemes)} only")


def _fetch(url: str, part: Path, schemes: Collection[str]) -> None:
    """Fills ``part`` up to the length that the server reports, and reconnects as long as each try adds
    bytes."""
    opener = urllib.request.build_opener(_Redirections(schemes))
    while True:
        before = part.stat().st_size if part.exists() else 0
        try:
            return _fetch_rest(opener, url, part, before)
        except (_BrokeOff, HTTPException, URLError, SSLError, ConnectionError, TimeoutError) as error:
            have = part.stat().st_size if part.exists() else 0
            if have <= before:
                reason = getattr(error, "reason", None) or error
                raise InputError(
                    f"the download of {url} broke off after {have:,} bytes ({reason}); the same "
                    "command resumes it"
                ) from error


def _fetch_rest(opener: urllib.request.OpenerDirector, url: str, part: Path, start: int) -> None:
    request = urllib.request.Request(url, headers={"Range": f"bytes={start}-"} if start else {})
    try:
        response = opener.open(request, timeout=TIMEOUT)
    except HTTPError as error:
        with error:
            if error.code != 416:
                raise InputError(f"the server refused {url}: {error.code} {error.reason}") from error
            # Nothing follows `start`: the part is complete or of another file, and the check will tell.
            return
    with response:
        resumed = re.fullmatch(r"bytes (\d+)-\d+/(\d+)", response.headers.get("Content-Range", ""))
        if response.status == 206 and resumed and int(resumed[1]) == start:
            total: int | None = int(resumed[2])
        else:  # the server sends the whole file
            start = 0
            length = response.headers.get("Content-Length", "")
            total = int(length) if length.isdecimal() else None
        if (total or 0) > MAX_BYTES:
            raise InputError(f"{url} has {total:,} bytes, above the bound of {MAX_BYTES:,}")
        with (
            open(part, "ab" if start else "wb") as file,
            tqdm(initial=start, total=total, unit="B", unit_scale=True, desc=part.stem, disable=None) as bar,
        ):
            have = start
            while block := response.read(_BLOCK):
                have += len(block)
                if have > MAX_BYTES:
                    raise InputError(f"{url} sends more than the bound of {MAX_BYTES:,} bytes")
                file.write(block)
                bar.update(len(block))
            file.flush()
            os.fsync(file.fileno())
        if total is not None and have < total:
            raise _BrokeOff(f"{have:,} of {total:,} bytes came")
