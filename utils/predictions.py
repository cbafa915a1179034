"""A run's detector applied to image files, for the command line."""

import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch

from datasets.folders import files_below
from utils.detector import BATCH, Detector
from utils.errors import InputError, say
from utils.text_files import csv_text, writable_folder, write_text

FILE = "predictions.csv"
COLUMNS = ("class", "class_name", "probability", "score", "ood")  # of a Detection


def predict_files(paths: Sequence[Path], detector: Detector, folder: Path) -> None:
    """Prints one line per image and writes ``predictions.csv``; warns about files it cannot read.

    Args:
        paths: image files, and folders, see :func:`datasets.folders.files_below`.
        folder: of the table, which replaces an earlier one.

    Raises:
        InputError: a folder is empty, no file can be read, or the table cannot be written.
    """
    files = list(dict.fromkeys(_files(paths)))
    table = writable_folder(folder) / FILE
    say(
        f"calibration {detector.calibration}, score {detector.score}; OOD above {detector.threshold:.4f}, "
        f"which keeps {100 * detector.keep:g} % of {detector.describe_images()}"
    )
    rows = []
    for start in range(0, len(files), BATCH):
        read = {}
        for path in files[start : start + BATCH]:
            try:
                read[path] = detector.preprocessing.of_file(path)
            except InputError as error:
                say(f"warning: {_text(error)}", sys.stderr)
        if not read:
            continue
        for path, found in zip(read, detector.of_prepared(torch.stack(list(read.values()))), strict=True):
            rows.append({"path": _text(path)} | dict(zip(COLUMNS, found, strict=True)))
            name = "" if found.name is None else f" ({found.name})"
            say(
                f"{_text(path)}: class {found.label}{name}, probability {found.probability:.4f}, "
                f"score {found.score:.4f}, {'OOD' if found.ood else 'ID'}"
            )
    if not rows:
        raise InputError(f"none of the {len(files)} files can be read as an image")
    try:
        write_text(table, csv_text(rows))
    except OSError as error:
        raise InputError(f"{table} could not be written: {error.strerror or error}") from None
    unread = len(files) - len(rows)
    say(f"written: {table}, {len(rows)} images" + (f"; {unread} files cannot be read" if unread else ""))


def _files(paths: Sequence[Path]) -> Iterator[Path]:
    """Yields the paths that are not folders, and all files in those that are."""
    for path in paths:
        if not path.is_dir():
            yield path
            continue
        within = sorted(map(Path, files_below(path)))
        if not within:
            raise InputError(f"there is no file in {path}")
        yield from within


def _text(value: object) -> str:
    """Returns printable text, whatever bytes a file name has."""
    text = str(value).encode("utf-8", "backslashreplace").decode()
    return text if text.isprintable() else repr(text)
