"""Checks of a file, or of a name found in a file, before anything else is done with it."""

import hashlib
import os
import posixpath
import stat
from pathlib import Path

from utils.errors import InputError


def require_file(path: Path, what: str, max_bytes: int | None = None) -> int:
    """Returns the size of ``path`` in bytes; ``what`` says in messages what the file is for.

    Raises:
        InputError: it is missing, not a regular file (a pipe would block for ever), not readable, or larger
            than ``max_bytes``.
    """
    try:
        status = os.stat(path)
        if not stat.S_ISREG(status.st_mode):
            raise InputError(f"{what} {path} is not a file")
        with open(path, "rb"):  # otherwise a missing permission would later look like damage
            pass
    except InputError:
        raise
    except (OSError, ValueError) as error:
        raise InputError(f"{what} {path} cannot be read: {os_reason(error)}") from error
    if max_bytes is not None and status.st_size > max_bytes:
        raise InputError(f"{what} {path} has {status.st_size:,} bytes, above the bound of {max_bytes:,}")
    return status.st_size


def os_reason(error: Exception) -> str:
    """Returns the operating system's words alone (the caller names the file), e.g. ``No such file or
    directory``."""
    return getattr(error, "strerror", None) or str(error) or type(error).__name__


def inner_path(name: str) -> str:
    """Returns ``name``, a path written by a stranger, normalised.

    Only the text is checked, not links on the disk.

    Raises:
        ValueError: the path is empty or absolute, contains ``..``, or has characters that no listed file
            needs.
    """
    if name.startswith("/") or name[1:2] == ":":
        raise ValueError("is an absolute path")
    if "\\" in name or not name.isprintable():
        raise ValueError("has a backslash or an unprintable character in it")
    if ".." in name.split("/"):
        raise ValueError("climbs out of its folder")
    normal = posixpath.normpath(name) if name else "."
    if normal == ".":
        raise ValueError("names no file")
    return normal


def shown(text: str) -> str:
    """Quotes a stranger's text for a message: escaped, and cut to 80 characters."""
    return repr(text if len(text) <= 80 else text[:80] + "...")


def file_md5(path: Path) -> str:
    """Returns the MD5 sum in hexadecimal, which the data sets' sites publish; it detects damage, not
    forgery."""
    digest = hashlib.md5(usedforsecurity=False)
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
