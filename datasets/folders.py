"""Image lists from folders of pictures: one folder per class, one of outliers, any number of OOD images."""

import os
import shlex
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path

import torch

from datasets.files.checks import inner_path, os_reason, shown
from datasets.image_list import MAX_LABEL, read_lines
from datasets.long_tail import hold_out, long_tail_counts, long_tail_indices
from utils.errors import InputError
from utils.text_files import write_text

PICTURES = {".jpeg", ".jpg", ".png", ".bmp", ".gif", ".webp"}


def write_lists(
    images: Path,
    out: Path,
    *,
    class_ids: Path | None = None,
    outliers: Path | None = None,
    ood: Sequence[Path] = (),
    test_share: float = 0,
    rho: float | None = None,
) -> str:
    """Writes the lists ``train``, ``test``, ``classes``, ``outliers`` and ``ood_<folder>`` (.txt) to ``out``.

    Every folder in ``images`` that holds pictures is a class. The order of the labels is that of the file
    ``class_ids`` (a folder's name on each line); without one it is alphabetical, or with ``rho`` by size, the
    largest class first. The last ``test_share`` of each class's pictures by path (at least one, if there are
    two) make the test list; with 0 there is none. ``rho`` cuts the training list to the long tail n_c =
    int(n_max rho^(c / (C - 1))), the first n_c of each class, with the largest n_max that the classes admit.

    Entries of the training and test lists are relative to ``images``; those of the others to the closest
    folder that holds ``outliers`` and all of ``ood``.

    Returns:
        What was written, what was left out and why, and the commands that train and test on it.

    Raises:
        InputError: a folder is missing, without a picture, or inside another one; a class id is repeated or
            has no folder; a picture is a broken link, or has a name that a list cannot hold; ``rho`` leaves a
            class empty; a list exists already or cannot be written.
    """
    others = {"outliers": outliers} if outliers else {}
    for folder in ood:
        name = os.path.basename(os.path.abspath(folder))
        if f"ood_{name}" in others:
            raise InputError(f"two folders of OOD images are named {shown(name)}; rename one")
        others[f"ood_{name}"] = folder
    _require_separate([images, *others.values()])

    left_out: Counter = Counter()
    classes = _class_pictures(images, class_ids, left_out, by_size=rho is not None)
    names, paths = list(classes), [path for pictures in classes.values() for path in pictures]
    labels = torch.tensor([label for label, name in enumerate(names) for _ in classes[name]])
    kept, held = _split(labels, len(names), test_share, rho)
    lists = {"train": [f"{paths[i]} {labels[i]}" for i in kept], "classes": names}
    if len(held):
        lists["test"] = [f"{paths[i]} {labels[i]}" for i in held]
    iodp = Path(os.path.commonpath(list(map(os.path.abspath, others.values())) or [os.path.abspath(images)]))
    for name, folder in others.items():
        start = Path(os.path.abspath(folder)).relative_to(iodp)
        lists[name] = [str(start / path) for path in _find_pictures(folder, left_out)]
        if not lists[name]:
            raise InputError(f"{folder} holds no picture ({' '.join(sorted(PICTURES))})")
    _write({out / f"{name}.txt": lines for name, lines in lists.items()})

    report = [f"{out}/{name}.txt: {len(lines):,} lines" for name, lines in lists.items()]
    counts = torch.bincount(labels[kept]).tolist()
    report.append(f"{len(names):,} classes of {min(counts):,} to {max(counts):,} training pictures")
    if len(held) and (untested := len(names) - len(labels[held].unique())):
        report.append(f"{untested:,} classes have one picture, and none in test.txt")
    if nested := sum(path.count("/") > 1 for path in paths):
        report.append(
            f"{nested:,} pictures are in folders within their class's folder; if those are the classes, "
            "give the folder that holds them"
        )
    if left_out:
        report.append(f"left out: {', '.join(f'{n:,} {what}' for what, n in left_out.most_common(8))}")
    return "\n".join([*report, "", *_commands(images, out, iodp, lists)])


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


def _class_pictures(
    images: Path, class_ids: Path | None, left_out: Counter, by_size: bool
) -> dict[str, list[str]]:
    """The pictures of each class, paths relative to ``images``, in the order of the labels."""
    if class_ids is not None:
        names = _read_class_ids(class_ids, images)
        if missing := [name for name in names if not (images / name).is_dir()]:
            counted = f"{len(missing):,} of {len(names):,} class ids"
            raise InputError(f"{images} has no folder for {counted}, the first: {', '.join(missing[:5])}")
    else:
        entries = sorted(os.scandir(images), key=lambda entry: entry.name)
        names = [entry.name for entry in entries if entry.is_dir() and entry.name[0] != "."]
        loose = sum(_kind(entry.name) in PICTURES for entry in entries if not entry.is_dir())
        left_out += Counter({f"pictures outside the class folders of {images}": loose})
    classes = {name: [f"{name}/{path}" for path in _find_pictures(images / name, left_out)] for name in names}
    for name in [name for name in names if not classes[name]]:
        if class_ids is not None:
            raise InputError(f"{images / name} holds no picture ({' '.join(sorted(PICTURES))})")
        left_out["folders without a picture"] += 1
        del classes[name]
    if not classes:
        raise InputError(f"{images} has no folder with pictures; each class needs a folder of its own there")
    if by_size and class_ids is None:
        return dict(sorted(classes.items(), key=lambda item: -len(item[1])))
    return classes


def _split(
    labels: torch.Tensor, num_classes: int, test_share: float, rho: float | None
) -> tuple[torch.Tensor, torch.Tensor]:
    """The numbers, int64, of the training and the test pictures; see :func:`write_lists`."""
    kept, held = torch.arange(len(labels)), torch.empty(0, dtype=torch.int64)
    if test_share:
        kept, held = hold_out(labels, test_share)
    if rho is not None:
        sizes = torch.bincount(labels[kept], minlength=num_classes).tolist()
        kept = kept[long_tail_indices(labels[kept], _longest_tail(sizes, rho))]
    return kept, held


def _read_class_ids(path: Path, images: Path) -> list[str]:
    """The class folders that a file names: by a whole line, or else by its first word."""
    names: dict[str, None] = {}
    for number, line in read_lines(path):
        try:
            name = inner_path(line)
            name = name if (images / name).is_dir() else inner_path(line.split()[0])
        except ValueError as error:
            raise InputError(f"{path}, line {number}: {shown(line)} {error}") from error
        if name in names:
            raise InputError(f"{path}, line {number}: the class id {shown(name)} is there twice")
        if len(names) > MAX_LABEL:
            raise InputError(f"{path} has more than {MAX_LABEL + 1:,} class ids")
        names[name] = None
    if not names:
        raise InputError(f"{path} lists no class id")
    return list(names)


def _find_pictures(folder: Path, left_out: Counter) -> list[str]:
    """Returns the pictures below a folder, sorted paths relative to it; counts other files by ending.

    See :func:`files_below`.
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
    for path in found:
        try:
            if inner_path(path) != path.strip():  # a line break would write lines of its own
                raise ValueError("begins with a space")
        except ValueError as error:
            raise InputError(f"the picture {shown(path)} in {folder} {error}") from error
    return sorted(found)


def files_below(folder: Path) -> Iterator[str]:
    """Yields the paths of all files below a folder, other than those in hidden folders.

    Links are followed; a folder that several of them lead to is visited once.
    """
    seen = {os.path.realpath(folder)}
    for here, subfolders, files in os.walk(folder, followlinks=True):
        subfolders.sort()
        real = {name: os.path.realpath(os.path.join(here, name)) for name in subfolders if name[0] != "."}
        subfolders[:] = [name for name in real if real[name] not in seen and not seen.add(real[name])]
        yield from (os.path.join(here, name) for name in files)


def _kind(name: str) -> str:
    """The file name's ending in lower case; words for what has none."""
    if name[0] == ".":
        return "hidden files"
    return os.path.splitext(name)[1].lower() or "files without an ending"


def _longest_tail(sizes: Sequence[int], rho: float) -> list[int]:
    """The long-tailed counts with the largest first class that no size falls short of."""
    counts = long_tail_counts(sizes[0], len(sizes), rho)
    while any(count > size for count, size in zip(counts, sizes, strict=True)):
        counts = long_tail_counts(counts[0] - 1, len(sizes), rho)
    return counts


def _write(lists: dict[Path, list[str]]) -> None:
    for path in lists:
        if path.exists():
            raise InputError(f"{path} exists already; move it away or name another --out")
    try:
        for path, lines in lists.items():
            path.parent.mkdir(parents=True, exist_ok=True)
            write_text(path, "".join(f"{line}\n" for line in lines))
    except OSError as error:
        raise InputError(f"{path} cannot be written: {os_reason(error)}") from error


def _commands(images: Path, out: Path, iodp: Path, names: Collection[str]) -> list[str]:
    """The commands that train and test on the lists of these names."""
    words = ["--txtt", f"{out}/train.txt", "--iidp", str(images), "--iodp", str(iodp)]
    words += ["--txtv", f"{out}/test.txt"] if "test" in names else []
    words += ["--txt_ood_train", f"{out}/outliers.txt"] if "outliers" in names else []
    ood = [f"{out}/{name}.txt" for name in names if name.startswith("ood_")]
    words += ["--txt_ood_test", *ood] if ood else []
    without_outliers = ([], []) if "outliers" in names else (["--oe", "False"], ["--calibration", "none"])
    train, test = (shlex.join(words + more) for more in without_outliers)
    commands = [f"python train_imagenet.py {train} --srp OUT"]
    if ood and "test" in names:
        return [*commands, f"python test_imagenet.py {test} --ckpt_path OUT"]
    missing = [] if "test" in names else ["test pictures of the classes (--test_share)"]
    missing += [] if ood else ["a folder of OOD images (--ood)"]
    return [*commands, f"test_imagenet.py also needs {' and '.join(missing)}"]
