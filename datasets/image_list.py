"""Text files that list images, one per line: SC-OOD's lists and ImageNet-LT's.

A line is ``relative/path label``, or ``relative/path {"label": -1, "sc_label": -1}``, or in lists read
without labels ``relative/path`` alone. The bytes of a path are those of the file's name on the disk, UTF-8 or
not. A path may not leave the image folder by itself; links in that folder are followed, wherever they lead.
"""

import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import torch

from datasets.checks import inner_path, os_reason, shown
from utils.errors import InputError

MAX_LABEL = 999_999
ANY_LABEL = range(-1, MAX_LABEL + 1)
BLANKS = b" \t\r\n"  # other white space, such as U+00A0, may be part of a name
_PATH_AND_LABEL = re.compile(r"(.*[^ \t])[ \t]+(-?[0-9]{1,18})")
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
    label is optional and ignored: all labels are -1. Blank lines are skipped. :func:`find_missing`
    tells whether the images are there.

    Raises:
        InputError: the list is missing or empty; ``root`` is missing; a line has no label in ``labels``, or
            names a path that is absolute or climbs out with ``..``; or a file has two labels.
    """
    if not os.path.isdir(root):
        raise InputError(f"the image folder {root} is missing")
    paths: list[str] = []
    read: list[int] = []
    label_of: dict[str, int] = {}
    for number, line in read_lines(list_path):
        try:
            name, label = _parse(line, labels)
            path = inner_path(name)
            if label_of.setdefault(path, label) != label:
                raise ValueError(f"is in the list with the label {label_of[path]} as well")
        except ValueError as error:
            raise InputError(f"{list_path}, line {number}: {shown(line)} {error}") from error
        paths.append(path)
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
    """Returns the entries, as :func:`read_image_list` gives them, that are not files under ``root``."""
    missing = set()
    for folder, names in _by_folder(paths).items():
        there = {entry.name for entry in _listing(os.path.join(root, folder)) if entry.is_file()}
        for name in names - there:
            path = os.path.join(folder, name)
            if not os.path.isfile(os.path.join(root, path)):  # a file system may ignore case
                missing.add(path)
    return [path for path in paths if path in missing]


def overlap(first: ImageFiles, second: ImageFiles) -> int:
    """Returns the number of files that are in both lists, also where links give them two names."""
    return len(_real_paths(first) & _real_paths(second))


def _real_paths(files: ImageFiles) -> set[str]:
    real = set()
    for folder, names in _by_folder(files.paths).items():
        where = os.path.realpath(os.path.join(files.root, folder))
        links = names & {entry.name for entry in _listing(where) if entry.is_symlink()}
        real |= {os.path.join(where, name) for name in names - links}
        real |= {os.path.realpath(os.path.join(where, name)) for name in links}
    return real


def read_lines(list_path: Path) -> Iterator[tuple[int, str]]:
    """Yields the number and the text of each line that is not blank, without its surrounding blanks.

    Raises:
        InputError: the file cannot be read.
    """
    try:
        with open(list_path, "rb") as file:
            for number, raw in enumerate(file, start=1):
                if line := raw.removeprefix(b"\xef\xbb\xbf").strip(BLANKS):
                    yield number, os.fsdecode(line)
    except OSError as error:
        raise InputError(f"the list {list_path} cannot be read: {os_reason(error)}") from error


def _parse(line: str, labels: range | None) -> tuple[str, int]:
    """Splits a line into path and label; raises ValueError with the reason."""
    path, label = line, None
    if line.endswith("}") and " {" in line:
        path, _, fields = line.partition(" {")
        found = _SC_LABEL.search(fields)
        label = found[1] if found else None
    elif found := _PATH_AND_LABEL.fullmatch(line):
        path, label = found.groups()
    path = path.strip(" \t")
    if labels is None:
        return path, -1
    if label is None:
        raise ValueError("does not end with a label")
    if int(label) not in labels:
        raise ValueError(f"has the label {label}, outside {labels[0]}..{labels[-1]}")
    return path, int(label)


def list_line(path: str, label: int | None = None) -> str:
    """Formats the line of a list.

    Raises:
        InputError: no list can hold the path.
    """
    try:
        if inner_path(path) != path.strip(" \t"):
            raise ValueError("begins with a blank")
    except ValueError as error:
        raise InputError(f"the picture {shown(path)} {error}; rename it") from error
    return path if label is None else f"{path} {label}"


def write_lines(lists: dict[Path, Sequence[str]]) -> None:
    """Writes files of lines that do not exist yet, as :func:`read_lines` reads them.

    Raises:
        InputError: one of them exists, and none is written; or the disk cannot be written.
    """
    for path in lists:
        if path.exists():
            raise InputError(f"{path} exists already; move it away or choose another place")
    try:
        for path, lines in lists.items():
            path.parent.mkdir(parents=True, exist_ok=True)
            part = path.with_name(f"{path.name}.{os.getpid()}.part")
            part.write_bytes(b"".join(os.fsencode(line) + b"\n" for line in lines))
            os.replace(part, path)
    except OSError as error:
        raise InputError(f"{path} cannot be written: {os_reason(error)}") from error


def _by_folder(paths: Sequence[str]) -> dict[str, set[str]]:
    """Groups paths: one listing per folder is quick, where a question per file takes minutes on a network
    disk."""
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
