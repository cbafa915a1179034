"""Gets data sets ready: downloads what may be downloaded, says what must be fetched by hand, builds and
checks lists.

python -m datasets.prepare cifar10 cifar100 tinyimages scood --drp DATA
python -m datasets.prepare imagenet --class_ids FILE --images DIR --out LIST
python -m datasets.prepare imagenet --check LIST --images DIR
"""

import argparse
import os
from pathlib import Path

from datasets.cifar import NUM_CLASSES, RELEASES, SITE, unpack_cifar
from datasets.files.archives import unpack
from datasets.files.checks import inner_path, os_reason, shown
from datasets.files.download import download
from datasets.image_list import MAX_LABEL, find_missing, read_image_list, read_lines
from datasets.outliers import FILE as OUTLIER_FILE
from datasets.outliers import map_outliers
from datasets.scood import DEFAULT_SETS, image_root, list_path
from utils.errors import InputError, exit_cleanly
from utils.run.runlog import write_text

TINY_IMAGES_URL = "https://people.eecs.berkeley.edu/~hendrycks/300K_random_images.npy"
SCOOD_PAGE = "https://jingkang50.github.io/projects/scood"
SCOOD_LINK = (
    "https://drive.google.com/file/d/1cbLXZ39xnJjxXnDM7g2KODHIjE0Qj4gu/view"  # README of ICCV21_SCOOD
)
PICTURES = {".jpeg", ".jpg", ".png", ".bmp", ".webp"}


def get_args_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("sets", nargs="+", choices=["cifar10", "cifar100", "tinyimages", "scood", "imagenet"])
    parser.add_argument("--data_root_path", "--drp", type=Path, help="folder of the CIFAR benchmarks' data")
    parser.add_argument(
        "--allow_unverified", action="store_true", help="download files that have no published checksum"
    )
    parser.add_argument(
        "--archive", type=Path, help="scood: an archive fetched by hand (tar or zip), to be unpacked"
    )
    parser.add_argument("--images", type=Path, help="imagenet: the folder that list entries are relative to")
    parser.add_argument(
        "--class_ids",
        type=Path,
        help="imagenet: a file with a class folder's name first on each line; its line is its label",
    )
    parser.add_argument("--out", type=Path, help="imagenet: the list to write")
    parser.add_argument("--check", type=Path, help="imagenet: a list to check against --images")
    return parser


def main(argv: list[str] | None = None) -> None:
    args = get_args_parser().parse_args(argv)
    imagenet = "imagenet" in args.sets
    if imagenet and (
        args.images is None or (args.check is None) == (args.class_ids is None or args.out is None)
    ):
        raise InputError("imagenet needs --images with either --check, or --class_ids and --out")
    if not imagenet and not (args.images is args.class_ids is args.out is args.check is None):
        raise InputError("--images, --class_ids, --out and --check go with imagenet")
    if args.archive is not None and "scood" not in args.sets:
        raise InputError("--archive goes with scood")
    if set(args.sets) != {"imagenet"} and args.data_root_path is None:
        raise InputError("--drp, the folder for the data, is missing")
    unready = []
    for name in dict.fromkeys(args.sets):
        if name == "imagenet" and args.check is not None:
            print(check_list(args.check, args.images))
        elif name == "imagenet":
            print(build_list(args.class_ids, args.images, args.out))
        elif name == "tinyimages":
            ready = prepare_tinyimages(args.data_root_path, args.allow_unverified)
            unready += [] if ready else [name]
        elif name == "scood":
            ready = prepare_scood(args.data_root_path, args.archive)
            unready += [] if ready else [name]
        else:
            prepare_cifar(name, args.data_root_path)
    if unready:
        raise InputError(f"not ready yet, see above: {', '.join(unready)}")


def prepare_cifar(name: str, root: Path) -> None:
    """Downloads, verifies and unpacks one CIFAR, unless its folder is there."""
    release = RELEASES[name]
    if not (root / release.folder).exists():
        download(SITE + release.archive, root / release.archive, release.archive_md5)
        unpack_cifar(name, root)
    print(f"{name}: ready in {root / release.folder}")


def prepare_tinyimages(root: Path, allow_unverified: bool) -> bool:
    """Downloads the 300K random images if the user agrees to do so unverified; returns whether they are
    there."""
    path = root / OUTLIER_FILE
    if not path.exists() and not allow_unverified:
        print(
            f"tinyimages: no checksum is published for {TINY_IMAGES_URL} (uint8, 300,000 x 32 x 32 "
            "x 3, 922 MB).\n"
            f"  Put that file at {path}, or let --allow_unverified download it."
        )
        return False
    if not path.exists():
        download(TINY_IMAGES_URL, path, md5=None, check=map_outliers, allow_unverified=True)
    print(f"tinyimages: ready, {len(map_outliers(path)):,} images in {path}")
    return True


def prepare_scood(root: Path, archive: Path | None) -> bool:
    """Unpacks ``archive`` if given, then reports which suites are complete; returns whether all are."""
    if archive is not None:
        unpack(archive, root)
    complete = True
    for benchmark, names in DEFAULT_SETS.items():
        without = [name for name in names if not list_path(benchmark, name, root).is_file()]
        if without:
            print(f"scood: {list_path(benchmark, '', root).parent} has no list for {', '.join(without)}")
            complete = False
            continue
        for name in names:
            labels = range(-1, NUM_CLASSES[benchmark])
            print(f"scood: {check_list(list_path(benchmark, name, root), image_root(root), labels)}")
    if not complete:
        ten, hundred = (", ".join(DEFAULT_SETS[benchmark]) for benchmark in ("cifar10", "cifar100"))
        print(
            "scood: its authors share scood_benchmark.zip through Google Drive, which this script "
            "cannot fetch from.\n"
            f"  Open {SCOOD_LINK}\n"
            f"  in a browser (or follow the data set's link on {SCOOD_PAGE}) and fetch it.\n"
            f"  The lists belong at {list_path('cifar10', '<set>', root)} and\n"
            f"  {list_path('cifar100', '<set>', root)}, for the sets {ten} and\n"
            f"  {hundred}; the images at {image_root(root)}/<path as listed>.\n"
            f"  --archive FILE unpacks a tar or zip file in {root}, keeping to that folder."
        )
    return complete


def build_list(class_ids: Path, images: Path, out: Path) -> str:
    """Writes one line ``path label`` for each picture below the folders ``images``/<class id>; returns a
    report of it.

    The label of a class is its position in the file ``class_ids``, of whose lines only the first word counts;
    the pictures of a class are sorted by path.

    Raises:
        InputError: a class id is repeated, climbs out of the folder, or has no folder or no picture; ``out``
            exists.
    """
    if out.exists():
        raise InputError(f"{out} is there already; move it away or name another --out")
    ids = _read_class_ids(class_ids)
    missing = [name for name in ids if not (images / name).is_dir()]
    if missing:
        first = ", ".join(missing[:5])
        raise InputError(
            f"{images} has no folder for {len(missing):,} of {len(ids):,} class ids, the first: {first}"
        )
    lines = []
    for label, name in enumerate(ids):
        paths = sorted(
            os.path.relpath(os.path.join(folder, file), images)
            for folder, _, files in os.walk(images / name)
            for file in files
            if os.path.splitext(file)[1].lower() in PICTURES
        )
        if not paths:
            raise InputError(f"{images / name} holds no picture ({' '.join(sorted(PICTURES))})")
        for path in paths:
            try:
                inner_path(path)  # a name with a line break would write lines of its own
            except ValueError as error:
                raise InputError(f"the picture {shown(path)} {error}") from error
            lines.append(f"{path} {label}\n")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        write_text(out, "".join(lines))
    except OSError as error:
        raise InputError(f"{out} cannot be written: {os_reason(error)}") from error
    return f"imagenet: wrote {out}, {len(lines):,} pictures of {len(ids):,} classes"


def check_list(path: Path, images: Path, labels: range | None = None) -> str:
    """Returns a report that all files of a list are in the folder ``images``.

    Raises:
        InputError: files are missing (the message counts them), a label is not in ``labels`` (None: labels
            are not looked at), or the list cannot be read.
    """
    paths, _ = read_image_list(path, images, labels)
    if missing := find_missing(paths, images):
        first = ", ".join(map(shown, missing[:5]))
        raise InputError(
            f"{path}: {len(missing):,} of {len(paths):,} files are not in {images}, the first: {first}"
        )
    return f"{path}: all {len(paths):,} files are in {images}"


def _read_class_ids(path: Path) -> list[str]:
    ids: dict[str, int] = {}
    for number, line in read_lines(path):
        try:
            name = inner_path(line.split()[0])
        except ValueError as error:
            raise InputError(f"{path}, line {number}: {shown(line)} {error}") from error
        if name in ids:
            raise InputError(f"{path}, line {number}: the class id {shown(name)} is there twice")
        if len(ids) > MAX_LABEL:
            raise InputError(f"{path} has more than {MAX_LABEL + 1:,} class ids")
        ids[name] = number
    if not ids:
        raise InputError(f"{path} lists no class id")
    return list(ids)


if __name__ == "__main__":
    exit_cleanly(main)
