"""Self-describing checkpoints of tensors and plain values, safe from crashes while being written."""

import contextlib
import io
import json
import os
import pickle
import re
import shlex
import warnings
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch

from utils.errors import InputError, first_line
from utils.run.pickles import Inspector, NotPlain, Refused, numpy_readers
from utils.run.weights import CONTAINERS

LATEST, PREVIOUS = "latest.pth", "previous.pth"
BEFORE_TORCH_1_6 = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."  # how its files begin: a pickled number
DOS_FOLDER = 0x10


def save_checkpoint(state, folder):
    """Writes ``folder/latest.pth``; the file it replaces becomes ``previous.pth``. See :func:`save_whole`."""
    save_whole(state, Path(folder) / LATEST, previous=Path(folder) / PREVIOUS)


def save_whole(state: dict, path: Path, previous: Path | None = None) -> None:
    """Writes a file for :func:`load_checkpoint`, with a checksum (CRC-32) for every record.

    It is written under another name, flushed to disk and renamed: a crash always leaves a whole file.

    Args:
        state: nested dicts, lists, tensors and plain values.
        previous: the new name of a whole file at ``path``; None replaces that file.

    Raises:
        OSError: it cannot be written; existing files are kept.
    """
    temporary = path.with_name(path.name + ".tmp")
    try:
        with open(temporary, "wb") as file:
            torch.save(state, file)
            file.flush()
            os.fsync(file.fileno())
        if previous is not None and _is_whole(path):  # a damaged file must not become the previous one
            os.replace(path, previous)
        os.replace(temporary, path)
        _sync_folder(path.parent)
    except (OSError, RuntimeError) as error:  # torch reports a full disk as a RuntimeError
        temporary.unlink(missing_ok=True)
        raise OSError(f"{path} could not be written: {error}") from error


class CheckpointWriter:
    """Writes checkpoints in its own thread, while training continues.

    The state is copied to the host before :meth:`save` returns. Only one checkpoint is written at a time; the
    next waits. So a crash loses at most the current epoch and the one whose checkpoint is being written.

    Args:
        folder: the run directory. attempt: :class:`utils.run.directory.Attempts`, which reports failures.
    """

    def __init__(self, folder, attempt):
        self.folder, self.attempt = folder, attempt
        self.thread = ThreadPoolExecutor(1)
        self.pending = None

    def save(self, state: dict) -> None:
        """Starts writing the state."""
        copy = _on_host(state)
        self.wait()
        self.pending = self.thread.submit(self.attempt, "the checkpoint", save_checkpoint, copy, self.folder)

    def wait(self) -> None:
        """Returns when the pending write has finished or failed."""
        if self.pending is not None:
            self.pending.result()

    def close(self) -> None:
        """Waits for the pending write and ends the thread."""
        self.thread.shutdown()


def _on_host(value):
    """Copies nested dicts and lists; their tensors are new ones on the CPU."""
    if isinstance(value, torch.Tensor):
        return value.detach().to("cpu", copy=True)
    if isinstance(value, dict):
        return {key: _on_host(item) for key, item in value.items()}
    return [_on_host(item) for item in value] if isinstance(value, list) else value


def _sync_folder(folder):
    """Flushes renames to the disk, where the file system supports it."""
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _is_whole(path):
    """Tells whether ``path`` is a checkpoint with correct checksums."""
    try:
        _check_archive(path)
    except InputError:
        return False
    return True


def _check_archive(path):
    """Verifies the checksums of a zip file, and returns the :class:`Inspector` of the pickle in it.

    Raises:
        InputError: missing or damaged.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            sizes = {record.filename: record.file_size for record in archive.infolist()}
            folders = {name.partition("/")[0] for name in sizes}
            # Two readers might pick different records of one name, and torch ignores case in names.
            if len(folders) != 1 or len({name.lower() for name in sizes}) < len(archive.infolist()):
                raise ValueError("its records are not those that torch writes")
            # torch takes such a record for one without content.
            if any(record.external_attr & DOS_FOLDER for record in archive.infolist()):
                raise ValueError("a record of it is marked as a folder")
            if any(record.compress_type != zipfile.ZIP_STORED for record in archive.infolist()):
                raise ValueError("its records are compressed, which torch never writes")
            damaged = archive.testzip()
            if damaged is not None:
                raise ValueError(f"the checksum of {damaged} is wrong")
            (folder,) = folders
            pickled = io.BytesIO(archive.read(f"{folder}/data.pkl"))
    except Exception as error:  # zipfile raises many kinds
        raise InputError(f"the checkpoint {path} is damaged: {first_line(error)}") from None
    return Inspector(pickled, lambda key: sizes.get(f"{folder}/data/{key}"))


def load_checkpoint(path):
    """Reads a checkpoint file without running code from it.

    Raises:
        InputError: it is missing, damaged, or holds more than tensors and plain values.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"there is no checkpoint {path}")
    try:
        if path.stat().st_size == 0:
            raise Refused("it is empty")
        with open(path, "rb") as file, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            if file.read(4) == b"PK\x03\x04":  # as torch.load decides
                _check_archive(path).load()
            else:
                file.seek(0)
                if file.read(len(BEFORE_TORCH_1_6)) != BEFORE_TORCH_1_6:
                    raise Refused("torch.save did not write it")
                file.seek(0)
                for _ in range(5):  # five pickles, then the storages
                    Inspector(file, lambda key: path.stat().st_size).load()
            with torch.serialization.safe_globals(numpy_readers()):
                return torch.load(path, map_location="cpu", weights_only=True)
    except InputError:
        raise
    except Exception as error:  # untrusted bytes can make an unpickler raise anything
        why = first_line(error)
        if isinstance(error, pickle.UnpicklingError):  # torch surrounds the reason with pages of advice
            why = re.sub(r"(?s).*WeightsUnpickler error:\s*", "", str(error)).partition("\n")[0][:200]
        elif isinstance(error, NotPlain):
            why = f"{error}; if you trust its author, run in the folder of its code: {_conversion(path)}"
        raise InputError(
            f"the checkpoint {path} cannot be read (only tensors and plain values are admitted): {why}"
        ) from None


def _conversion(path):
    """Returns a command that extracts the weights from a file that holds more; it runs code from the file."""
    source = path.resolve()
    target = source.with_name(f"{path.stem}-weights.pth")
    code = f'import torch; c = torch.load({json.dumps(str(source))}, "cpu", weights_only=False); '
    code += f"c = next((c[k] for k in {json.dumps(CONTAINERS)} if k in c), c) if isinstance(c, dict) else c; "
    code += 'c = c.state_dict() if hasattr(c, "state_dict") else c; '
    code += f"torch.save({{k: v for k, v in c.items() if torch.is_tensor(v)}}, {json.dumps(str(target))})"
    return shlex.join(["python", "-c", code])


def load_run(folder):
    """Loads the newest whole checkpoint of a run directory; warns if that is not the latest one.

    Raises:
        InputError: there is none.
    """
    folder = Path(folder)
    problems = []
    for name in (LATEST, PREVIOUS):
        if not (folder / name).is_file():
            continue
        try:
            state = load_checkpoint(folder / name)
        except InputError as error:
            problems.append(str(error))
            continue
        if problems:
            warnings.warn(f"{problems[0]}; using {folder / name} instead", stacklevel=2)
        return state
    raise InputError("; and ".join(problems) or f"there is no checkpoint in {folder}")


def open_checkpoint(path):
    """Reads a checkpoint file, or the newest checkpoint of a run directory.

    Raises:
        InputError: see :func:`load_run` and :func:`load_checkpoint`.
    """
    return load_run(path) if Path(path).is_dir() else load_checkpoint(path)


def holds_run(folder: Path) -> bool:
    """Tells whether there is a checkpoint; a crash between a save's two renames leaves the previous one."""
    return (Path(folder) / LATEST).exists() or (Path(folder) / PREVIOUS).exists()


def results_folder(path):
    """Returns the folder for a checkpoint's results: the run directory, for it or its latest.pth; for any
    other file ``FILE.results``, since one folder may hold many files."""
    path = Path(path)
    if path.is_dir():
        return path
    return path.parent if path.name == LATEST else path.with_name(f"{path.name}.results")
