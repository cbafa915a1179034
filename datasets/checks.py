"""Names of files, as lists hold them and messages show them."""

import posixpath
import re

_CONTROL_CHARACTER = re.compile(r"[\x00-\x1f\x7f]")


def os_reason(error: Exception) -> str:
    """Returns the operating system's message without the file, which the caller names, e.g. ``No such file or
    directory``."""
    return getattr(error, "strerror", None) or str(error) or type(error).__name__


def inner_path(name: str) -> str:
    """Returns ``name``, a path inside some folder, normalised. Links on the disk are not followed.

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
