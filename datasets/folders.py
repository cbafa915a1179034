"""Folders of pictures: lists of them for ImageNet's scripts, and the outliers or an OOD set of CIFAR."""

import os
import random
import shutil
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import permutations
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from datasets.cifar import OUTLIERS
from datasets.image_list import list_line, write_lines
from datasets.images import long_tail_counts
from datasets.preprocessing import Preprocessing
from datasets.scood import DEFAULT_SETS, SIZE, image_root, list_path
from utils.errors import InputError
from utils.text_files import whole_file, writable_folder

TOO_FEW = 10  # training pictures of a class, some of which --val_fraction holds out
TRAIN, TEST = {"train", "training"}, {"test", "testing", "val", "valid", "validation"}
PICTURES = {".jpeg", ".jpg", ".png", ".bmp", ".gif", ".webp"}


class Lists(NamedTuple):
    """Lists by name (``train``, ``test``, ``outliers``, ``ood_<folder>``), the folders that entries of the
    first two and of the others are relative to, the numbers of training pictures and outliers, and sentences
    on what was written and left out."""

    files: dict[str, Path]
    iidp: Path
    iodp: Path
    num_images: int
    num_outliers: int
    report: list[str]


def write_lists(
    images: Path,
    out: Path,
    *,
    test: Path | None = None,
    outliers: Path | None = None,
    ood: Sequence[Path] = (),
    test_share: float = 0.2,
    rho: float | None = None,
    seed: int = 0,
) -> Lists:
    """Writes the lists of :class:`Lists`, and the classes' names in the order of their labels, to ``out``.

    Every folder with pictures in ``images`` is a class, unless there are ``train`` and ``test`` alone (also
    ``Training`` and the like), which hold the classes. Labels are in alphabetical order, or with ``rho``,
    which cuts the training list to the largest long tail that the classes admit, by size. Without test
    folders, a random ``test_share`` of each class's pictures (at least one, if there are two) makes the test
    list; with 0 there is none.

    Raises InputError if a folder is missing, holds no picture or overlaps another; there is only one class,
    or a class has test pictures only; no list can hold a picture's name; ``rho`` leaves a class empty; or a
    list exists already.
    """
    inside = [entry for entry in images.glob("[!.]*") if entry.is_dir()]
    train, tests = ([entry for entry in inside if entry.name.lower() in names] for names in (TRAIN, TEST))
    if test is None and len(inside) == 2 and train and tests and not tests[0].name.lower().startswith("val"):
        (images,), (test,) = train, tests
    elif train and tests:  # no classes
        names = ", ".join(sorted(entry.name for entry in inside))
        raise InputError(f"{images} holds {names}: give its train folder, and another as --test")
    others = {"outliers": outliers} if outliers else {}
    others |= {f"ood_{os.path.basename(os.path.abspath(folder))}": folder for folder in ood}
    if len(others) < len(ood) + bool(outliers):
        raise InputError("the folders of OOD images need different names, after which their lists are named")
    folders = [images, *([test] if test else []), *others.values()]
    if missing := [folder for folder in folders if not folder.is_dir()]:
        raise InputError(f"the folder {missing[0]} is missing")
    for inner, outer in permutations(folders, 2):
        if inner.resolve().is_relative_to(outer.resolve()):  # a picture would be trained on and tested
            raise InputError(f"{inner} is inside {outer}; the folders of one data set may not overlap")

    left_out: Counter[str] = Counter()
    training = _class_pictures(images, left_out)
    if len(training) < 2:
        raise InputError(
            f"{images} has the class {min(training)} alone: give the folder of two or more classes"
        )
    generator = random.Random(seed)
    for pictures in training.values():
        # The training list stays in random order: --val_fraction holds out the last pictures of each class,
        # which by name could be those of one camera.
        generator.shuffle(pictures)
    tested = _class_pictures(test, left_out) if test else _split_off(training, test_share)
    if unknown := sorted(tested.keys() - training.keys()):
        raise InputError(f"{test} has classes that {images} lacks: {', '.join(unknown[:5])}")
    if rho is not None:
        training = _long_tail(training, rho)

    iidp = Path(os.path.commonpath([os.path.abspath(images), os.path.abspath(test)])) if test else images
    iodp = Path(os.path.commonpath(list(map(os.path.abspath, others.values())) or [os.path.abspath(images)]))
    lines: dict[str, list[str]] = {"train": [], "classes": list(training), "test": []}
    for label, name in enumerate(training):
        lines["train"] += _lines(images, training[name], iidp, label)
        lines["test"] += _lines(test or images, tested.get(name, []), iidp, label)
    if not tested:
        del lines["test"]
    for name, folder in others.items():
        pictures = pictures_below(folder, left_out)
        if name == "outliers":  # of which --val_fraction holds out the last ones, too
            generator.shuffle(pictures)
        lines[name] = _lines(folder, pictures, iodp)
    write_lines({out / f"{name}.txt": of_list for name, of_list in lines.items()})

    sizes = [len(pictures) for pictures in training.values()]
    report = [f"{out}/{name}.txt: {len(of_list):,} lines" for name, of_list in lines.items()]
    report.append(f"{len(sizes):,} classes of {min(sizes):,} to {max(sizes):,} training pictures")
    if small := sum(size < TOO_FEW for size in sizes):
        report.append(f"{small:,} of them have fewer than {TOO_FEW} training pictures, too few to rely on")
    files = {name: out / f"{name}.txt" for name in lines if name != "classes"}
    num_outliers = len(lines.get("outliers", []))
    return Lists(files, iidp, iodp, sum(sizes), num_outliers, report + left_out_line(left_out))


def _class_pictures(images: Path, left_out: Counter[str]) -> dict[str, list[str]]:
    """The sorted pictures of each class, as paths relative to ``images``, by the class's name."""
    classes: dict[str, list[str]] = {}
    for path in pictures_below(images, left_out):
        name, slash, _ = path.partition("/")
        if slash:
            classes.setdefault(name, []).append(path)
        else:
            left_out["pictures outside the classes' folders"] += 1
    if not classes:
        raise InputError(f"{images} has no folder with pictures; each class needs a folder of its own there")
    return dict(sorted(classes.items()))


def _split_off(training: dict[str, list[str]], share: float) -> dict[str, list[str]]:
    """Takes the last ``share`` of each class's pictures out of ``training``."""
    tested = {}
    for name, pictures in training.items():
        size = min(max(1, round(share * len(pictures))), len(pictures) - 1) if share else 0
        if size:
            tested[name] = sorted(pictures[-size:])
            del pictures[-size:]
    return tested


def _long_tail(training: dict[str, list[str]], rho: float) -> dict[str, list[str]]:
    """The largest long tail that the classes admit, the largest class first."""
    classes = dict(sorted(training.items(), key=lambda item: -len(item[1])))
    sizes = [len(pictures) for pictures in classes.values()]
    counts = long_tail_counts(sizes[0], len(sizes), rho)
    while any(count > size for count, size in zip(counts, sizes, strict=True)):
        counts = long_tail_counts(counts[0] - 1, len(sizes), rho)
    return {name: classes[name][:count] for name, count in zip(classes, counts, strict=True)}


def _lines(folder: Path, pictures: Sequence[str], root: Path, label: int | None = None) -> list[str]:
    start = os.path.relpath(folder, root)
    return [list_line(os.path.normpath(os.path.join(start, path)), label) for path in pictures]


def pictures_below(folder: Path, left_out: Counter[str]) -> list[str]:
    """Returns the pictures below a folder, sorted paths relative to it; counts other files by ending."""
    found = []
    for path in files_below(folder):
        ending = os.path.splitext(path)[1].lower()
        if ending in PICTURES and not os.path.basename(path).startswith("."):
            found.append(os.path.relpath(path, folder))
        else:
            left_out[ending or "files without an ending"] += 1
    if not found:
        raise InputError(f"{folder} holds no picture ({' '.join(sorted(PICTURES))})")
    return sorted(found)


def files_below(folder: Path) -> Iterator[str]:
    """Yields the paths of all files below a folder, other than those in hidden folders. Links are followed;
    a folder that several of them lead to is visited once.

    Raises InputError for a folder that is missing or may not be read."""

    def fail(error: OSError) -> None:
        raise InputError(f"the folder {error.filename} cannot be read: {error.strerror}")

    seen = {os.path.realpath(folder)}
    for here, subfolders, files in os.walk(folder, onerror=fail, followlinks=True):
        real = {name: os.path.realpath(os.path.join(here, name)) for name in subfolders if name[0] != "."}
        new = {path: name for name, path in sorted(real.items(), reverse=True) if path not in seen}
        seen |= new.keys()
        subfolders[:] = sorted(new.values())
        yield from (os.path.join(here, name) for name in files)


def left_out_line(left_out: Counter[str]) -> list[str]:
    kinds = [f"{count:,} {what}" for what, count in left_out.most_common(8) if count]
    return [f"left out: {', '.join(kinds)}"] if kinds else []


# --- for CIFAR10-LT and CIFAR100-LT


def write_outliers(folder: Path, root: Path) -> list[str]:
    """Writes the pictures below ``folder``, squashed to 32 x 32, as the outliers of the data folder ``root``.
    Returns what was written and left out; raises InputError if none is readable, or some exist."""
    path = root / OUTLIERS
    if path.exists():
        raise InputError(f"{path} exists already; move it away to make another one")
    left_out: Counter[str] = Counter()
    writable_folder(path.parent)
    images = list(_read_below(folder, left_out).values())
    random.Random(0).shuffle(images)  # --num_ood_samples takes the first ones
    with whole_file(path, "xb") as file:
        np.save(file, torch.stack(images).permute(0, 2, 3, 1).numpy())
    return [f"{path}: {len(images):,} outliers", *left_out_line(left_out)]


def write_ood_set(name: str, folder: Path, root: Path) -> list[str]:
    """Copies the pictures below ``folder`` to the data folder ``root``, as the OOD set ``name`` of both
    CIFARs. Returns and raises what :func:`write_outliers` does."""
    if "/" in name:
        raise InputError(f"the name of an OOD set has no slash: {name!r}")
    copies, left_out = image_root(root) / name, Counter()
    lists = [list_path(benchmark, name, root) for benchmark in DEFAULT_SETS]
    if taken := [path for path in (copies, *lists) if path.exists()]:
        raise InputError(f"{taken[0]} exists already; choose another name or move it away")
    readable = _read_below(folder, left_out)
    lines = [list_line(f"{name}/{path}", -1) for path in readable]
    with tempfile.TemporaryDirectory(prefix=".copying-", dir=writable_folder(root)) as scratch:
        for path in readable:
            copy = Path(scratch, name, path)
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(folder / path, copy)
        copies.parent.mkdir(parents=True, exist_ok=True)
        shutil.move(Path(scratch, name), copies)
    write_lines(dict.fromkeys(lists, lines))
    return [*(f"{path}: {len(lines):,} images in {copies}" for path in lists), *left_out_line(left_out)]


def _read_below(folder: Path, left_out: Counter[str]) -> dict[str, Tensor]:
    """Reads the pictures below a folder: path relative to it -> uint8 (3, 32, 32); counts unreadable ones."""

    def read(path: str) -> Tensor | None:
        try:
            return Preprocessing(SIZE, "squash").of_file(folder / path)
        except InputError:
            return None

    paths = pictures_below(folder, left_out)
    with ThreadPoolExecutor() as pool:
        found = list(tqdm(pool.map(read, paths), "reading", len(paths), leave=False, disable=None))
    readable = {path: image for path, image in zip(paths, found, strict=True) if image is not None}
    left_out["unreadable pictures"] += len(paths) - len(readable)
    if not readable:
        raise InputError(f"{folder} holds no readable picture")
    return readable
