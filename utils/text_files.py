"""Files that are written whole or not at all, and the folders they go to."""

import contextlib
import csv
import io
import os
import secrets
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Any

from utils.errors import InputError


@contextlib.contextmanager
def whole_file(path: Path, mode: str = "x", **options) -> Iterator[IO]:
    """Yields a new file, with a name of its own, that replaces ``path`` on leaving; not after an error."""
    temporary = path.with_name(f"{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        with open(temporary, mode, **options) as file:
            yield file
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: Path | str, text: str) -> None:
    """Replaces a text file as a whole, or leaves it unchanged; names that are not UTF-8 are escaped."""
    with whole_file(Path(path), encoding="utf-8", errors="backslashreplace") as file:
        file.write(text)


def csv_text(records: list[dict]) -> str:
    """Formats records as CSV, one row each; nested values become columns such as train_accuracy_few."""
    rows = [flat(record) for record in records]
    text = io.StringIO()
    columns = list(dict.fromkeys(name for row in rows for name in row))
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def flat(value: Any, name: str = "") -> dict:
    """Flattens nested dicts and lists: column -> plain value."""
    if not isinstance(value, dict | list):
        return {name: value}
    items = value.items() if isinstance(value, dict) else enumerate(value)
    columns = {}
    for key, part in items:
        columns |= flat(part, f"{name}_{key}" if name else str(key))
    return columns


def markdown_table(head: Sequence[str], rows: Sequence[Sequence[str]], padded: bool = True) -> str:
    """Formats a Markdown table; ``padded``: also legible as text, with aligned columns."""
    lines = [[cell.replace("|", "\\|") for cell in line] for line in (head, *rows)]
    widths = [max(map(len, column)) if padded else 0 for column in zip(*lines, strict=True)]
    text = [
        f"| {' | '.join(cell.ljust(width) for cell, width in zip(line, widths, strict=True))} |"
        for line in lines
    ]
    text.insert(1, f"|{'|'.join('-' * max(width + 2, 3) for width in widths)}|")
    return "\n".join(text)


def writable_folder(folder: Path | str) -> Path:
    """Creates the folder if necessary, and returns it; raises InputError if it cannot be written."""
    folder = Path(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"the output folder {folder} cannot be written: {error.strerror or error}") from None
    if not os.access(folder, os.W_OK):
        raise InputError(f"the output folder {folder} cannot be written")
    return folder
