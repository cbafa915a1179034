"""Text files that list images, one per line: SC-OOD's lists and ImageNet-LT's.

A line is ``relative/path label``, or ``relative/path {"label": -1, "sc_label": -1}``, or in lists read
without labels ``relative/path`` alone. The bytes of a path are those of the file's name on the disk, UTF-8 or
not. A path may not leave the image folder by itself; links in that folder are followed, wherever they lead.
"""

import codecs
import contextlib
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch

from utils.errors import InputError
from utils.text_files import whole_file, writable_folder

ANY_LABEL = range(-1, 1_000_000)
BLANKS = " \t\r\n"  # other white space, such as U+00A0, may be part of a name
# A path, then a label, alone or in braces, written as JSON or as Python.
_LINE = re.compile(
    r"""(?s)(.*?)(?:[ \t]+(?:(-?[0-9]{1,18})|\{.*["']sc_label["']\s*:\s*(-?[0-9]{1,18})\s*[,}].*))?"""
)


class ImageFiles(NamedTuple):
    """A list of image files: paths relative to ``root``, and labels int64 (N,)."""

    root: Path
    paths: list[str]
    labels: torch.Tensor

    def select(self, rows: torch.Tensor | slice) -> "ImageFiles":
        """Returns the files of these rows, int64 (n,) or a slice, in that order."""
        numbers = torch.arange(len(self.paths))[rows]
        return ImageFiles(self.root, [self.paths[i] for i in numbers.tolist()], self.labels[numbers])


def read_image_list(list_path: Path, labels: range | None = ANY_LABEL) -> tuple[list[str], torch.Tensor]:
    """Returns the paths, and the labels, int64 (N,), of a list, in its order.

    ``labels`` are those that a line may have; that of a line with braces is its ``sc_label``. With None, a
    label is optional and ignored: all labels are -1. Blank lines are skipped.

    Raises InputError: the list is missing or empty; a line has no label in ``labels``, or a path that is
    absolute or climbs out with ``..``; or a file has two labels.
    """
    try:
        lines = Path(list_path).read_bytes().removeprefix(codecs.BOM_UTF8).split(b"\n")
    except OSError as error:
        raise InputError(f"the list {list_path} cannot be read: {error.strerror}") from error
    paths: list[str] = []
    read: list[int] = []
    label_of: dict[str, int] = {}
    for number, line in enumerate((os.fsdecode(raw).strip(BLANKS) for raw in lines), start=1):
        if not line:
            continue
        path, *found = _LINE.fullmatch(line).groups()
        label = -1 if labels is None else int(found[0] or found[1] or -2)
        if labels is not None and label not in labels:
            raise InputError(f"{list_path}, line {number}: no label in {labels[0]}..{labels[-1]}: {line!r}")
        if path.startswith("/") or ".." in path.split("/"):
            raise InputError(f"{list_path}, line {number} leaves the image folder: {line!r}")
        path = os.path.normpath(path)
        if label_of.setdefault(path, label) != label:
            raise InputError(f"{list_path}, line {number}: {path!r} has the label {label_of[path]} as well")
        paths.append(path)
        read.append(label)
    if not paths:
        raise InputError(f"{list_path} lists no image")
    return paths, torch.tensor(read, dtype=torch.int64)


def read_present(list_path: Path, root: Path, labels: range | None) -> tuple[list[str], torch.Tensor]:
    """Returns :func:`read_image_list` of a list whose images are all files under ``root``; raises InputError
    if any are missing (it says how many, and names the first five)."""
    paths, found = read_image_list(list_path, labels)
    # One listing per folder is quick, where a question per file takes minutes on a network disk.
    there: dict[str, set[str]] = {}
    for folder in set(map(os.path.dirname, paths)):
        with contextlib.suppress(OSError), os.scandir(os.path.join(root, folder)) as entries:
            there[folder] = {entry.name for entry in entries if entry.is_file()}
    missing = [
        path
        for path in paths
        if os.path.basename(path) not in there.get(os.path.dirname(path), ())
        and not os.path.isfile(os.path.join(root, path))  # a file system may ignore case
    ]
    if missing:
        count, first = f"{len(missing):,} of {len(paths):,}", ", ".join(map(repr, missing[:5]))
        raise InputError(f"{list_path}: {count} images are not in {root}: {first}")
    return paths, found


def overlap(first: ImageFiles, second: ImageFiles) -> int:
    """Returns the number of files that are in both lists, also under two names, by way of linked folders."""
    return len(_real_paths(first) & _real_paths(second))


def _real_paths(files: ImageFiles) -> set[tuple[str, str]]:
    names = list(map(os.path.split, files.paths))
    real = {folder: os.path.realpath(os.path.join(files.root, folder)) for folder, _ in names}
    return {(real[folder], name) for folder, name in names}


def list_line(path: str, label: int | None = None) -> str:
    """Formats the line of a list; raises InputError if no list can hold the path."""
    if "\n" in path or path.strip(BLANKS) != path:
        raise InputError(f"rename the picture {path!r}: lists have no line breaks, nor blanks at either end")
    return path if label is None else f"{path} {label}"


def write_lines(lists: dict[Path, Sequence[str]]) -> None:
    """Writes files of lines that do not exist yet; raises InputError, and writes none, if one does, or if the
    folder cannot be written."""
    for path in lists:
        if path.exists():
            raise InputError(f"{path} exists already; move it away or choose another place")
    for path, lines in lists.items():
        writable_folder(path.parent)
        with whole_file(path, "xb") as file:
            file.writelines(os.fsencode(line) + b"\n" for line in lines)
