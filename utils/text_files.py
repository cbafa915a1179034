"""Text files, written whole or not at all, and the folders they go to."""

import csv
import io
import os
from pathlib import Path

from utils.errors import InputError


def write_text(path, text):
    """Replaces a text file as a whole, or leaves it unchanged."""
    path = Path(path)
    temporary = path.with_name(path.name + ".tmp")
    try:
        temporary.write_text(text, encoding="utf-8")
        os.replace(temporary, path)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise


def csv_text(records: list[dict]) -> str:
    """Formats records as CSV, one row each. Nested values become columns such as train_accuracy_few, lists
    columns such as train_class_accuracy_0; missing values are empty."""
    rows = [_flat(record) for record in records]
    columns = dict.fromkeys(name for row in rows for name in row)
    text = io.StringIO()
    writer = csv.DictWriter(text, list(columns), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def _flat(value, name=""):
    """Flattens a value: dict of column -> plain value."""
    if not isinstance(value, dict | list):
        return {name: value}
    items = value.items() if isinstance(value, dict) else enumerate(value)
    parts = (_flat(part, f"{name}_{key}" if name else str(key)) for key, part in items)
    return {column: plain for part in parts for column, plain in part.items()}


def writable_folder(folder):
    """Creates the folder if necessary, and returns it.

    Raises:
        InputError: it cannot be written.
    """
    folder = Path(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / f".probe-{os.getpid()}"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise InputError(f"the output folder {folder} cannot be written: {error.strerror or error}") from None
    return folder
