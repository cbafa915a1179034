"""Fetches a data set's files: a download that is checked before it is used, and the unpacking of archives."""

import os
import shutil
import tarfile
import tempfile
from collections.abc import Callable
from http.client import HTTPException
from pathlib import Path

import torch
from torchvision.datasets.utils import check_integrity

from utils.errors import InputError, first_line


def download(
    url: str, target: Path, md5: str | None, check: Callable[[Path], object] = lambda path: None
) -> None:
    """Downloads ``url`` to ``target``, unless the right file is there already.

    The file takes its name only once it has the MD5 sum (if one is published) and ``check``, which raises
    InputError for a file of the wrong kind, accepts it.

    Raises:
        InputError: the connection breaks, the file is not the right one, or the disk cannot be written. A
            file that was at ``target`` is then unchanged.
    """
    try:
        if check_integrity(target, md5):
            return
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".downloading-", dir=target.parent) as scratch:
            part = Path(scratch, target.name)
            torch.hub.download_url_to_file(url, str(part))
            if not check_integrity(part, md5):
                raise InputError(f"what {url} sent does not have the published MD5 {md5}; try again")
            check(part)
            os.replace(part, target)
    except (OSError, HTTPException) as error:  # URLError is an OSError
        raise InputError(f"{url} cannot be downloaded to {target}: {first_line(error)}") from error


def unpack(archive: Path, target: Path) -> None:
    """Unpacks a tar or zip archive into the folder ``target``. Nothing outside it is written, no file
    replaced, and a damaged archive leaves nothing behind.

    Raises:
        InputError: the archive is missing, damaged, of another kind, or a tar with links or members that
            leave the folder (those of a zip are skipped); a file exists already; or the disk cannot be
            written.
    """
    try:
        target.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".unpacking-", dir=target) as scratch:
            if not tarfile.is_tarfile(archive):
                shutil.unpack_archive(archive, scratch, "zip")
            elif hasattr(tarfile, "data_filter"):
                shutil.unpack_archive(archive, scratch, "tar", filter="data")
            else:
                raise InputError(
                    f"unpack {archive} in {target} by hand, or use Python 3.10.12, 3.11.4 or newer: this one "
                    "cannot keep an archive inside its folder"
                )
            for member in Path(scratch).iterdir():
                _move(member, target / member.name)
    except InputError:
        raise
    except Exception as error:  # zlib, tarfile and zipfile have many kinds for a damaged archive
        raise InputError(f"the archive {archive} cannot be unpacked: {first_line(error)}") from error


def _move(source: Path, target: Path) -> None:
    """Moves a file or a whole folder; what is in a folder that exists already is moved into it."""
    if not os.path.lexists(target):
        os.rename(source, target)
    elif source.is_dir() and target.is_dir():
        for inner in source.iterdir():
            _move(inner, target / inner.name)
    else:
        raise InputError(f"{target} exists already; move it away to unpack again")
