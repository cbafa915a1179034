"""Unpacks tar and zip files that may come from a stranger: all of an archive, or none of it."""

import gzip
import os
import shutil
import stat
import tarfile
import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from datasets.files.checks import inner_path, os_reason, require_file, shown
from utils.errors import InputError

MAX_BYTES = 16 << 30  # unpacked, all members together
MAX_MEMBERS = 2_000_000
MAX_HEADER = 1 << 20  # of a tar file's long names and extended headers; members are read in smaller pieces


def unpack(archive: Path, target: Path, max_bytes: int = MAX_BYTES) -> None:
    """Unpacks a tar, tar.gz or zip file into ``target``: files and folders only, with the user's default
    modes.

    Everything is written to a temporary folder inside ``target`` first and moved into place at the end, so an
    archive that is refused or truncated leaves nothing behind.

    Raises:
        InputError: a member leaves the target, is a link or a device, or exists already; the members together
            exceed ``max_bytes``; the archive is missing, truncated or damaged; or the target cannot be
            written.
    """
    require_file(archive, "the archive")
    try:
        target.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".unpacking-", dir=target) as scratch:
            _write_members(archive, Path(scratch), max_bytes)
            _move_into(Path(scratch), target)
    except InputError:
        raise
    except OSError as error:
        raise InputError(
            f"the archive {archive} cannot be unpacked in {target}: {os_reason(error)}"
        ) from error


def _write_members(archive: Path, scratch: Path, max_bytes: int) -> None:
    total = 0
    try:
        members = _zip_members(archive) if zipfile.is_zipfile(archive) else _tar_members(archive)
        for number, (name, kind, size, content) in enumerate(members):
            where = f"the archive {archive} is refused: its member {shown(name)}"
            if kind == "other":
                raise InputError(f"{where} is a link or a device")
            total += size
            if size < 0 or total > max_bytes or number >= MAX_MEMBERS:
                raise InputError(
                    f"{where} exceeds the bounds of {max_bytes:,} bytes and {MAX_MEMBERS:,} members"
                )
            if kind == "folder" and name.strip("./") == "":
                continue  # "./", the folder itself
            try:
                path = scratch / inner_path(name)
            except ValueError as error:
                raise InputError(f"{where} {error}") from error
            if kind == "folder":
                path.mkdir(parents=True, exist_ok=True)
                continue
            path.parent.mkdir(parents=True, exist_ok=True)
            with open(path, "xb") as file:
                shutil.copyfileobj(content, file, 1 << 16)
            if path.stat().st_size != size:
                raise EOFError(f"{shown(name)} is cut short")
    except (InputError, OSError) as error:
        if isinstance(error, (gzip.BadGzipFile, FileExistsError, NotADirectoryError, IsADirectoryError)):
            raise InputError(f"the archive {archive} is damaged: {error}") from error
        raise
    except Exception as error:  # damaged headers raise struct, zlib, unicode, key and runtime errors
        raise InputError(f"the archive {archive} is truncated or damaged: {str(error)[:200]}") from error


def _zip_members(archive: Path) -> Iterator[tuple[str, str, int, BinaryIO | None]]:
    with zipfile.ZipFile(archive) as file:
        for member in file.infolist():
            mode = member.external_attr >> 16
            special = stat.S_IFMT(mode) not in (0, stat.S_IFREG, stat.S_IFDIR)
            if special or member.is_dir():
                yield member.filename, "other" if special else "folder", 0, None
            else:
                with file.open(member) as content:
                    yield member.filename, "file", member.file_size, content


def _tar_members(archive: Path) -> Iterator[tuple[str, str, int, BinaryIO | None]]:
    with open(archive, "rb") as raw:
        zipped = raw.read(2) == b"\x1f\x8b"
        raw.seek(0)
        stream = gzip.GzipFile(fileobj=raw) if zipped else raw
        with tarfile.open(fileobj=_HeaderBound(stream), mode="r:") as file:
            for member in file:
                if member.isdir():
                    yield member.name, "folder", 0, None
                elif member.isreg() and not member.issparse():
                    yield member.name, "file", member.size, file.extractfile(member)
                else:
                    yield member.name, "other", 0, None
                file.members = []  # the list would grow with the archive
            if len(stream.read(MAX_HEADER)) == MAX_HEADER:  # to the end, where gzip compares its checksum
                raise ValueError("there is data after its last member")


class _HeaderBound:
    """A file for ``tarfile`` that refuses huge reads: tarfile reads an extended header whole, whatever size
    it claims."""

    def __init__(self, file: BinaryIO) -> None:
        self.file = file
        self.seek, self.tell = file.seek, file.tell

    def read(self, size: int) -> bytes:
        if not 0 <= size <= MAX_HEADER:
            raise ValueError(f"a header of {size:,} bytes")
        return self.file.read(size)


def _move_into(scratch: Path, target: Path) -> None:
    """Moves what is in ``scratch`` to ``target``, whole folders where they are new; replaces nothing."""
    moves = []
    for folder, folders, names in os.walk(scratch):
        below = target / Path(folder).relative_to(scratch)
        new = [name for name in folders if not (below / name).exists()]
        folders[:] = [name for name in folders if name not in new]
        moves += [(Path(folder) / name, below / name) for name in new + names]
    for _, destination in moves:
        if os.path.lexists(destination):
            raise InputError(f"{destination} is there already; move it away to unpack again")
    for source, destination in moves:
        os.rename(source, destination)
