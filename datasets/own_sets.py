"""Folders of pictures as the outliers or as an OOD set of CIFAR10-LT and CIFAR100-LT."""

import os
import random
import shutil
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from tqdm import tqdm

from datasets.checks import os_reason, shown
from datasets.folders import left_out_lines, pictures_below
from datasets.image_list import list_line, write_lines
from datasets.outliers import FILE
from datasets.scood import DEFAULT_SETS, image_root, list_path, read_image
from utils.errors import InputError, first_line


def write_outliers(folder: Path, root: Path) -> list[str]:
    """Writes the pictures below ``folder``, squashed to 32 x 32, as the outliers of the data folder ``root``.

    They are in random order, because ``--num_ood_samples`` takes the first ones.

    Returns:
        What was written and what was left out.

    Raises:
        InputError: the folder has no readable picture, there are outliers already, or the disk cannot be
            written.
    """
    path = root / FILE
    if path.exists():
        raise InputError(f"{path} exists already; move it away to make another one")
    left_out: Counter = Counter()
    images = list(_read_below(folder, left_out).values())
    random.Random(0).shuffle(images)
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(part, "wb") as file:
            np.save(file, np.stack(images))
        os.replace(part, path)
    except OSError as error:
        raise InputError(f"{path} cannot be written: {os_reason(error)}") from error
    return [f"{path}: {len(images):,} outliers", *left_out_lines(left_out)]


def write_ood_set(name: str, folder: Path, root: Path) -> list[str]:
    """Makes the pictures below ``folder`` the OOD set ``name`` of the data folder ``root``, for both CIFARs.

    A folder that is not inside ``data/images`` is copied to ``data/images/<name>``.

    Returns:
        What was written and what was left out.

    Raises:
        InputError: the folder has no readable picture, there is such a set already, the name cannot be
            a file name, or the disk cannot be written.
    """
    if "/" in name or name in ("", ".", ".."):
        raise InputError(f"the OOD set needs a name without a slash, not {shown(name)}")
    images, left_out = image_root(root), Counter()
    pictures = list(_read_below(folder, left_out))
    inside = Path(os.path.realpath(folder)).is_relative_to(os.path.realpath(images))
    start = os.path.relpath(os.path.realpath(folder), os.path.realpath(images)) if inside else name
    lines = [list_line(f"{start}/{path}", -1) for path in pictures]
    lists = [list_path(benchmark, name, root) for benchmark in DEFAULT_SETS]
    taken = [path for path in ([] if inside else [images / name]) + lists if path.exists()]
    if taken:
        raise InputError(f"{taken[0]} exists already; choose another name or move it away")
    if not inside:
        try:
            shutil.copytree(folder, images / name, ignore=shutil.ignore_patterns(".*"))
        except OSError as error:
            raise InputError(f"{images / name} cannot be written: {first_line(error)}") from error
    write_lines(dict.fromkeys(lists, lines))
    report = [f"{path}: {len(lines):,} images in {images / start}" for path in lists]
    return [*report, *left_out_lines(left_out)]


def _read_below(folder: Path, left_out: Counter) -> dict[str, np.ndarray]:
    """Reads the pictures below a folder: path relative to it -> uint8 (32, 32, 3); counts unreadable ones."""
    if not folder.is_dir():
        raise InputError(f"the folder {folder} is missing")

    def read(path: str) -> np.ndarray | None:
        try:
            return read_image(folder / path)
        except InputError:
            return None

    paths = pictures_below(folder, left_out)
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        found = list(tqdm(pool.map(read, paths), "reading", len(paths), leave=False, disable=None))
    readable = {path: image for path, image in zip(paths, found, strict=True) if image is not None}
    left_out["unreadable pictures"] += len(paths) - len(readable)
    if not readable:
        raise InputError(f"{folder} holds no readable picture")
    return readable
