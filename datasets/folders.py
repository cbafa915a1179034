"""Image lists from folders of pictures: one folder per class, one of outliers, any number of OOD images."""

import os
import random
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from datasets.checks import shown
from datasets.image_list import list_line, write_lines
from datasets.long_tail import long_tail_counts
from utils.errors import InputError

PICTURES = {".jpeg", ".jpg", ".png", ".bmp", ".gif", ".webp"}


class Folders(NamedTuple):
    """Folders of pictures, none inside another one.

    Attributes:
        images: holds one folder per class; or exactly ``train`` and ``test``, which do.
        test: holds the classes' test pictures, in folders of the same names.
        outliers: pictures of no class, for training.
        ood: each is an OOD test set, named after its folder.
    """

    images: Path
    test: Path | None = None
    outliers: Path | None = None
    ood: Sequence[Path] = ()


class Lists(NamedTuple):
    """What :func:`write_lists` wrote.

    Attributes:
        files: name -> the list, of ``train``, ``test``, ``outliers`` and ``ood_<folder>`` those that exist.
        iidp, iodp: the folders that entries of ``train`` and ``test``, and of the others, are relative to.
        counts: training pictures of each class.
        num_outliers: M.
        report: sentences on what was written, and what was left out and why.
    """

    files: dict[str, Path]
    iidp: Path
    iodp: Path
    counts: list[int]
    num_outliers: int
    report: list[str]


def write_lists(
    folders: Folders, out: Path, *, test_share: float = 0.2, rho: float | None = None, seed: int = 0
) -> Lists:
    """Writes the lists of :class:`Lists`, and the classes' names in the order of their labels, to ``out``.

    Every folder with pictures is a class. The order of the labels is alphabetical, or with ``rho`` by size,
    the largest class first. Without test folders, a random ``test_share`` of each class's pictures (at least
    one, if there are two) makes the test list; with 0 there is none. ``rho`` cuts the training list to the
    long tail n_c = int(n_max rho^(c / (C - 1))), with the largest n_max that the classes admit.

    Raises:
        InputError: a folder is missing, without a picture, or inside another one; the test pictures have a
            class without training pictures; a picture is a broken link, or has a name that a list cannot
            hold; ``rho`` leaves a class empty; a list exists already or cannot be written.
    """
    images, test = folders.images, folders.test
    if test is None and images.is_dir() and _subfolders(images) == ["test", "train"]:
        images, test = images / "train", images / "test"
    others = {"outliers": folders.outliers} if folders.outliers else {}
    for folder in folders.ood:
        name = f"ood_{os.path.basename(os.path.abspath(folder))}"
        if name in others:
            raise InputError(f"two folders of OOD images are named {shown(name[4:])}; rename one")
        others[name] = folder
    _require_separate([images, *([test] if test else []), *others.values()])

    left_out: Counter = Counter()
    training = _class_pictures(images, left_out)
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
    label_of = {name: label for label, name in enumerate(training)}
    lines = {"train": _labelled(training, images, iidp, label_of), "classes": list(training)}
    if tested:
        lines["test"] = _labelled(tested, test or images, iidp, label_of)
    for name, folder in others.items():
        start = os.path.relpath(folder, iodp)
        lines[name] = [
            list_line(os.path.normpath(f"{start}/{path}")) for path in pictures_below(folder, left_out)
        ]
        if not lines[name]:
            raise InputError(f"{folder} holds no picture ({' '.join(sorted(PICTURES))})")
    write_lines({out / f"{name}.txt": of_list for name, of_list in lines.items()})

    counts = [len(pictures) for pictures in training.values()]
    report = [f"{out}/{name}.txt: {len(of_list):,} lines" for name, of_list in lines.items()]
    report += [*_remarks(training, tested), *left_out_lines(left_out)]
    files = {name: out / f"{name}.txt" for name in lines if name != "classes"}
    return Lists(files, iidp, iodp, counts, len(lines.get("outliers", [])), report)


def _remarks(training: dict[str, list[str]], tested: dict[str, list[str]]) -> list[str]:
    counts = [len(pictures) for pictures in training.values()]
    remarks = [f"{len(counts):,} classes of {min(counts):,} to {max(counts):,} training pictures"]
    if tested and (untested := [name for name in training if name not in tested]):
        remarks.append(f"{len(untested):,} classes have no test picture: {', '.join(untested[:5])}")
    every = [*training.values(), *tested.values()]
    if nested := sum(path.count("/") > 1 for pictures in every for path in pictures):
        remarks.append(
            f"{nested:,} pictures are in folders within their class's folder; if those are the classes, "
            "give the folder that holds them"
        )
    return remarks


def _subfolders(folder: Path) -> list[str]:
    return sorted(entry.name for entry in os.scandir(folder) if entry.is_dir() and entry.name[0] != ".")


def _require_separate(folders: Sequence[Path]) -> None:
    """Refuses folders that are missing or overlap: a picture would be trained on and tested."""
    for folder in folders:
        if not folder.is_dir():
            raise InputError(f"the folder {folder} is missing")
    for i, inner in enumerate(folders):
        for j, outer in enumerate(folders):
            real = os.path.realpath(outer)
            if i != j and os.path.commonpath([os.path.realpath(inner), real]) == real:
                raise InputError(f"{inner} is inside {outer}; the folders of one data set may not overlap")


def _class_pictures(images: Path, left_out: Counter) -> dict[str, list[str]]:
    """The sorted pictures of each class, as paths relative to ``images``, by the class's name."""
    classes = {}
    for name in _subfolders(images):
        classes[name] = [f"{name}/{path}" for path in pictures_below(images / name, left_out)]
        if not classes[name]:
            del classes[name]
            left_out["folders without a picture"] += 1
    if not classes:
        raise InputError(f"{images} has no folder with pictures; each class needs a folder of its own there")
    loose = sum(entry.is_file() and _kind(entry.name) in PICTURES for entry in os.scandir(images))
    left_out[f"pictures outside the class folders of {images}"] += loose
    return classes


def _split_off(training: dict[str, list[str]], share: float) -> dict[str, list[str]]:
    """Takes the last ``share`` of each class's pictures out of ``training`` and returns them."""
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


def _labelled(classes: dict[str, list[str]], folder: Path, root: Path, label_of: dict[str, int]) -> list[str]:
    """The lines, relative to ``root``, of pictures relative to ``folder``, in the order of the labels."""
    start = os.path.relpath(folder, root)
    return [
        list_line(os.path.normpath(f"{start}/{path}"), label)
        for name, label in label_of.items()
        for path in classes.get(name, [])
    ]


def pictures_below(folder: Path, left_out: Counter) -> list[str]:
    """Returns the pictures below a folder, sorted paths relative to it; counts other files by ending.

    Raises:
        InputError: a picture is a broken link.
    """
    found = []
    for path in files_below(folder):
        kind, inside = _kind(os.path.basename(path)), os.path.relpath(path, folder)
        if kind not in PICTURES:
            left_out[kind] += 1
        elif not os.path.isfile(path):
            raise InputError(f"the picture {shown(inside)} in {folder} is a broken link, or no file")
        else:
            found.append(inside)
    return sorted(found)


def files_below(folder: Path) -> Iterator[str]:
    """Yields the paths of all files below a folder, other than those in hidden folders.

    Links are followed; a folder that several of them lead to is visited once.
    """
    seen = {os.path.realpath(folder)}
    for here, subfolders, files in os.walk(folder, followlinks=True):
        real = {name: os.path.realpath(os.path.join(here, name)) for name in subfolders if name[0] != "."}
        new = {path: name for name, path in sorted(real.items(), reverse=True) if path not in seen}
        seen |= new.keys()
        subfolders[:] = sorted(new.values())
        yield from (os.path.join(here, name) for name in files)


def left_out_lines(left_out: Counter) -> list[str]:
    """Returns a sentence on the files that were left out, if there were any."""
    kinds = [f"{count:,} {what}" for what, count in left_out.most_common(8) if count]
    return [f"left out: {', '.join(kinds)}"] if kinds else []


def _kind(name: str) -> str:
    """The file name's ending in lower case; words for what has none."""
    if name[0] == ".":
        return "hidden files"
    return os.path.splitext(name)[1].lower() or "files without an ending"
