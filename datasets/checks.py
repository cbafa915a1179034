"""Checks of a file, or of a file name found in a text, before it is used."""

import os
import posixpath
import re
import stat
from pathlib import Path

from utils.errors import InputError

_CONTROL_CHARACTER = re.compile(r"[\x00-\x1f\x7f]")


def require_file(path: Path, what: str) -> None:
    """Checks that ``path`` is a file that can be read; ``what`` says in messages what it is for.

    Raises:
        InputError: it is missing, not a regular file (a pipe would block for ever), or not readable.
    """
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):
            raise InputError(f"{what} {path} is not a file")
        with open(path, "rb"):  # otherwise a missing permission would later look like damage
            pass
    except OSError as error:
        raise InputError(f"{what} {path} cannot be read: {os_reason(error)}") from error


def os_reason(error: Exception) -> str:
    """Returns the operating system's words alone (the caller names the file), e.g. ``No such file or
    directory``."""
    return getattr(error, "strerror", None) or str(error) or type(error).__name__


def inner_path(name: str) -> str:
    """Returns ``name``, a path inside some folder, normalised. Links on the disk are not looked at.

    Raises:
        ValueError: the path is empty or absolute, contains ``..``, or has a control character in it, such as
            a line break.
    """
    if name.startswith("/"):
        raise ValueError("is an absolute path")
    if _CONTROL_CHARACTER.search(name):
        raise ValueError("has a control character in it")
    if ".." in name.split("/"):
        raise ValueError("climbs out of its folder")
    normal = posixpath.normpath(name)
    if normal == ".":
        raise ValueError("names no file")
    return normal


def shown(text: str) -> str:
    """Quotes text from a file or the disk for a message: escaped, and cut to 80 characters."""
    return repr(text if len(text) <= 80 else text[:80] + "...")
