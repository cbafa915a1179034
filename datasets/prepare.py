"""Prepares data sets: downloads what may be downloaded, says what must be fetched by hand, writes and checks
lists of images.

    python -m datasets.prepare cifar10 cifar100 tinyimages scood --drp DATA
    python -m datasets.prepare imagenet FOLDER --out LISTS --outliers FOLDER --ood FOLDER ...
    python -m datasets.prepare imagenet FOLDER --check LIST
"""

import argparse
import sys
from pathlib import Path

from datasets.cifar import NUM_CLASSES, RELEASES, SITE, load_cifar
from datasets.files.archives import unpack
from datasets.files.download import download
from datasets.folders import write_lists
from datasets.image_list import read_present
from datasets.outliers import FILE as OUTLIER_FILE
from datasets.outliers import map_outliers
from datasets.scood import DEFAULT_SETS, image_root, list_path
from utils import flags
from utils.console import show_warnings_plainly
from utils.errors import InputError, exit_cleanly

TINY_IMAGES_URL = "https://people.eecs.berkeley.edu/~hendrycks/300K_random_images.npy"
SCOOD_PAGE = "https://jingkang50.github.io/projects/scood"
SCOOD_LINK = (
    "https://drive.google.com/file/d/1cbLXZ39xnJjxXnDM7g2KODHIjE0Qj4gu/view"  # README of ICCV21_SCOOD
)


def main(argv: list[str] | None = None) -> None:
    show_warnings_plainly()
    argv = sys.argv[1:] if argv is None else argv
    if argv[:1] == ["imagenet"]:
        prepare_imagenet(parse_imagenet_args(argv[1:]))
    else:
        prepare_cifar_benchmarks(parse_args(argv))


def parse_args(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m datasets.prepare", description=__doc__, formatter_class=flags.HelpFormatter
    )
    parser.add_argument(
        "sets",
        nargs="+",
        choices=["cifar10", "cifar100", "tinyimages", "scood"],
        help="what to prepare; imagenet has flags of its own: python -m datasets.prepare imagenet --help",
    )
    parser.add_argument(
        "--data_root_path", "--drp", dest="drp", type=flags.path, required=True, help="the data folder"
    )
    parser.add_argument(
        "--allow_unverified", action="store_true", help="download files that have no published checksum"
    )
    parser.add_argument(
        "--archive", type=flags.path, help="scood: an archive fetched by hand (tar or zip), to be unpacked"
    )
    return parser.parse_args(argv)


def parse_imagenet_args(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m datasets.prepare imagenet",
        description="Writes the lists that train_imagenet.py and test_imagenet.py need, or checks one.",
        formatter_class=flags.HelpFormatter,
    )
    parser.add_argument("folder", type=flags.path, help="holds one folder per class")
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument(
        "--out", type=flags.path, metavar="DIR", help="the folder that the lists are written to"
    )
    what.add_argument("--check", type=flags.path, metavar="LIST", help="check that FOLDER has a list's files")
    parser.add_argument(
        "--outliers", type=flags.path, metavar="DIR", help="pictures of no class, for training"
    )
    parser.add_argument(
        "--ood", type=flags.path, nargs="+", default=[], metavar="DIR", help="folders of OOD test pictures"
    )
    parser.add_argument(
        "--test_share",
        type=flags.fraction,
        default=0.2,
        help="share of each class that becomes the test list: its last pictures by name",
    )
    parser.add_argument(
        "--rho",
        type=flags.imbalance_ratio,
        help="cut the training list to a long tail: rho is the smallest class's size over the largest's",
    )
    parser.add_argument(
        "--class_ids",
        type=flags.path,
        metavar="FILE",
        help="the classes in the order of their labels, a folder's name first on each line; default: all "
        "folders with pictures, by name, or with --rho by size",
    )
    return parser.parse_args(argv)


def prepare_imagenet(args: argparse.Namespace) -> None:
    sources = {"class_ids": args.class_ids, "outliers": args.outliers, "ood": args.ood, "rho": args.rho}
    if args.check is None:
        print(write_lists(args.folder, args.out, test_share=args.test_share, **sources))
    elif any(sources.values()):
        raise InputError(f"--{next(filter(sources.get, sources))} goes with --out, not with --check")
    else:
        print(check_list(args.check, args.folder))


def prepare_cifar_benchmarks(args: argparse.Namespace) -> None:
    """Gets every set of ``args.sets`` ready.

    Raises:
        InputError: a set is still incomplete when all were tried.
    """
    if args.archive is not None and "scood" not in args.sets:
        raise InputError("--archive goes with scood")
    unready = []
    for name in dict.fromkeys(args.sets):
        try:
            if name == "tinyimages":
                ready = prepare_tinyimages(args.drp, args.allow_unverified)
            elif name == "scood":
                ready = prepare_scood(args.drp, args.archive)
            else:
                ready = prepare_cifar(name, args.drp)
        except InputError as error:  # the other sets may do better
            print(f"{name}: {error}")
            ready = False
        unready += [] if ready else [name]
    if unready:
        raise InputError(f"not ready yet, see above: {', '.join(unready)}")


def prepare_cifar(name: str, root: Path) -> bool:
    """Downloads, verifies and unpacks one CIFAR, unless its folder exists, and reads it; returns True, or
    raises."""
    release = RELEASES[name]
    if not (root / release.folder).exists():
        download(SITE + release.archive, root / release.archive, release.archive_md5)
    for train in (True, False):
        load_cifar(name, root, train)
    print(f"{name}: ready in {root / release.folder}")
    return True


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


def check_list(path: Path, images: Path, labels: range | None = None) -> str:
    """Returns a report that all files of a list are in the folder ``images``.

    Raises:
        InputError: see :func:`datasets.image_list.read_present`.
    """
    paths, _ = read_present(path, images, labels)
    return f"{path}: all {len(paths):,} files are in {images}"


if __name__ == "__main__":
    exit_cleanly(main)
