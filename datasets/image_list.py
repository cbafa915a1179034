"""Text files that list images, one per line: SC-OOD's lists and ImageNet-LT's.

A line is ``relative/path label``, or ``relative/path {"label": -1, "sc_label": -1}``, or in lists read
without labels ``relative/path`` alone.

A list may come from a stranger: its size is bounded, and an entry that leaves the image folder, by an
absolute path or with ``..``, is refused. Links inside the image folder are its owner's, and are followed
wherever they lead: that is how data sets are kept on several disks, or in git-annex and DVC stores. Archives
with links are refused (:mod:`datasets.files.archives`), so no stranger can put one there.
"""

import os
import re
from array import array
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import torch

from datasets.files.checks import inner_path, os_reason, require_file, shown
from utils.errors import InputError

MAX_LIST_BYTES = 4 << 30
MAX_LINES = 20_000_000
MAX_LINE_BYTES = 8_192  # twice the longest path of Linux
MAX_LABEL = 999_999
ANY_LABEL = range(-1, MAX_LABEL + 1)
_SC_LABEL = re.compile(r"""["']sc_label["']\s*:\s*(-?[0-9]{1,18})\s*[,}]""")  # written as JSON or as Python


class ImageFiles(NamedTuple):
    """A list of image files: paths relative to ``root``, and labels int64 (N,)."""

    root: Path
    paths: list[str]
    labels: torch.Tensor


def read_image_list(
    list_path: Path, root: Path, labels: range | None = ANY_LABEL
) -> tuple[list[str], torch.Tensor]:
    """Returns the paths relative to ``root``, and the labels, int64 (N,), of a list, in its order.

    ``labels`` are those that a line may have; that of a line with braces is its ``sc_label``. With None, a
    label is optional and not looked at, and all labels are -1. Blank lines are skipped. :func:`find_missing`
    tells whether the images are there.

    Raises:
        InputError: the list is missing, empty or beyond the bounds above; ``root`` is missing; or a line is
            not UTF-8, has no label in ``labels``, or names a path that is absolute or climbs out with ``..``.
    """
    if not os.path.isdir(root):
        raise InputError(f"the image folder {root} is missing")
    paths: list[str] = []
    read = array("q")
    for number, line in read_lines(list_path):
        try:
            path, label = _parse(line, labels)
            paths.append(inner_path(path))
        except ValueError as error:
            raise InputError(f"{list_path}, line {number}: {shown(line)} {error}") from error
        read.append(label)
    if not paths:
        raise InputError(f"{list_path} lists no image")
    return paths, torch.tensor(read, dtype=torch.int64)


def read_present(list_path: Path, root: Path, labels: range | None) -> tuple[list[str], torch.Tensor]:
    """Returns :func:`read_image_list` of a list whose images are all there.

    Raises:
        InputError: see there; or images are missing (it says how many, and names the first five).
    """
    paths, found = read_image_list(list_path, root, labels)
    if missing := find_missing(paths, root):
        count, first = f"{len(missing):,} of {len(paths):,}", ", ".join(map(shown, missing[:5]))
        raise InputError(f"{list_path}: {count} images are not in {root}: {first}")
    return paths, found


def find_missing(paths: Sequence[str], root: Path) -> list[str]:
    """Returns the entries, as :func:`read_image_list` gives them, that are no file under ``root``."""
    missing = set()
    for folder, names in _by_folder(paths).items():
        # One listing per folder instead of one question per file: a million of those take minutes on a
        # network disk.
        there = {entry.name for entry in _listing(os.path.join(root, folder)) if entry.is_file()}
        for name in names - there:
            path = os.path.join(folder, name)
            if not os.path.isfile(os.path.join(root, path)):  # a file system may ignore case
                missing.add(path)
    return [path for path in paths if path in missing]


def read_lines(list_path: Path) -> Iterator[tuple[int, str]]:
    """Yields the number and the text of each line that is not blank, without its surrounding white space."""
    require_file(list_path, "the list", MAX_LIST_BYTES)
    try:
        with open(list_path, "rb") as file:
            number = 0
            while raw := file.readline(MAX_LINE_BYTES + 1):
                number += 1
                if number > MAX_LINES or len(raw) > MAX_LINE_BYTES:
                    raise InputError(
                        f"{list_path}, line {number}: the bounds are {MAX_LINES:,} lines of "
                        f"{MAX_LINE_BYTES:,} bytes"
                    )
                if line := raw.decode("utf-8-sig" if number == 1 else "utf-8").strip():
                    yield number, line
    except UnicodeDecodeError as error:
        raise InputError(f"{list_path}, line {number}: this is not UTF-8 text") from error
    except OSError as error:
        raise InputError(f"the list {list_path} cannot be read: {os_reason(error)}") from error


def _parse(line: str, labels: range | None) -> tuple[str, int]:
    """Splits a line into path and label; raises ValueError with the reason."""
    path, brace, fields = line.partition(" {") if line.endswith("}") else (line, "", "")
    if brace:
        if labels is None:
            return path.strip(), -1
        found = _SC_LABEL.search(fields)
        if not found:
            raise ValueError('has no whole number under "sc_label"')
        label = int(found[1])
    else:
        words = line.rsplit(maxsplit=1)
        if len(words) < 2 or not re.fullmatch("-?[0-9]{1,18}", words[1]):
            if labels is not None:
                raise ValueError("does not end with a label")
            return line, -1
        path, label = words[0], int(words[1])
    if labels is None:
        return path, -1
    if label not in labels:
        raise ValueError(f"has the label {label}, outside {labels[0]}..{labels[-1]}")
    return path.strip(), label


def _by_folder(paths: Sequence[str]) -> dict[str, set[str]]:
    folders: dict[str, set[str]] = {}
    for path in paths:
        folder, name = os.path.split(path)
        folders.setdefault(folder, set()).add(name)
    return folders


def _listing(folder: str) -> list[os.DirEntry]:
    """The entries of a folder; none if it is not there, which the opening of its files reports."""
    try:
        with os.scandir(folder) as entries:
            return list(entries)
    except OSError:
        return []


def overlap(a: ImageFiles, b: ImageFiles) -> int:
    """Returns how many files are in both lists. (Stand-in until the branch `prepare` is merged.)"""
    theirs = {os.path.realpath(b.root / path) for path in b.paths}
    return len({os.path.realpath(a.root / path) for path in a.paths} & theirs)
