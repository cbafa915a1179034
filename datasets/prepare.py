"""Prepares data sets: downloads what may be downloaded, says what must be fetched by hand, and makes lists,
outliers and OOD sets of your own folders.

    python -m datasets.prepare cifar10 cifar100 tinyimages scood --drp DATA
    python -m datasets.prepare outliers FOLDER --drp DATA        pictures as the outliers of CIFAR
    python -m datasets.prepare ood NAME FOLDER --drp DATA        pictures as an OOD set of CIFAR
    python -m datasets.prepare imagenet PHOTOS --out LISTS --outliers FOLDER --ood FOLDER ...
    python -m datasets.prepare imagenet PHOTOS --check LIST
"""

import argparse
import os
import shlex
import sys
from pathlib import Path

from datasets.cifar import NUM_CLASSES, RELEASES, load_cifar
from datasets.fetch import download, unpack
from datasets.folders import Folders, Lists, write_lists
from datasets.image_list import read_present
from datasets.outliers import FILE as OUTLIER_FILE
from datasets.outliers import map_outliers
from datasets.own_sets import write_ood_set, write_outliers
from datasets.scood import DEFAULT_SETS, image_root, list_path
from utils import flags
from utils.errors import InputError, exit_cleanly, say, show_warnings_plainly

TINY_IMAGES_URL = "https://people.eecs.berkeley.edu/~hendrycks/300K_random_images.npy"
SCOOD_PAGE = "https://jingkang50.github.io/projects/scood"
SCOOD_LINK = (
    "https://drive.google.com/file/d/1cbLXZ39xnJjxXnDM7g2KODHIjE0Qj4gu/view"  # README of ICCV21_SCOOD
)
FEW = 20_000  # training pictures below which a network is better fine-tuned than trained from scratch


def main(argv: list[str] | None = None) -> None:
    show_warnings_plainly()
    argv = sys.argv[1:] if argv is None else argv
    own = {"imagenet": prepare_imagenet, "outliers": prepare_outliers, "ood": prepare_ood}
    if argv and argv[0] in own:
        own[argv[0]](argv[1:])
    else:
        prepare_benchmarks(argv)


def _parser(command: str, description: str) -> argparse.ArgumentParser:
    return argparse.ArgumentParser(
        prog=f"python -m datasets.prepare{command}",
        description=description,
        formatter_class=flags.HelpFormatter,
    )


def _add_data_folder(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--data_root_path", "--drp", dest="drp", type=flags.path, required=True, help="the data folder"
    )


def prepare_outliers(argv: list[str]) -> None:
    parser = _parser(" outliers", "Writes the pictures below a folder as the outliers that train.py reads.")
    parser.add_argument("folder", type=flags.path)
    _add_data_folder(parser)
    args = parser.parse_args(argv)
    say("\n".join(write_outliers(args.folder, args.drp)))


def prepare_ood(argv: list[str]) -> None:
    parser = _parser(" ood", "Makes the pictures below a folder an OOD set that test.py --dout NAME reads.")
    parser.add_argument("name", help="of the set, for --dout")
    parser.add_argument("folder", type=flags.path)
    _add_data_folder(parser)
    args = parser.parse_args(argv)
    say("\n".join(write_ood_set(args.name, args.folder, args.drp)))


def prepare_imagenet(argv: list[str]) -> None:
    parser = _parser(
        " imagenet", "Writes the lists that train_imagenet.py and test_imagenet.py need, or checks one."
    )
    add = parser.add_argument
    add("folder", type=flags.path, help="holds one folder per class, or train/ and test/, which do")
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--out", type=flags.path, metavar="DIR", help="where the lists are written")
    what.add_argument("--check", type=flags.path, metavar="LIST", help="check that FOLDER has a list's files")
    add("--test", type=flags.path, metavar="DIR", help="holds test pictures in folders of the same names")
    add("--outliers", type=flags.path, metavar="DIR", help="pictures of no class, for training")
    add("--ood", type=flags.path, nargs="+", default=[], metavar="DIR", help="folders of OOD test pictures")
    share = "share of each class that becomes the test list, at random, if there are no test folders"
    add("--test_share", type=flags.fraction, default=0.2, help=share)
    add("--seed", type=flags.seed, default=0, help="of the random choice")
    tail = (
        "cut the training list to a long tail: rho is the smallest class's size over the largest's; labels "
        "then go by the classes' sizes, otherwise by their names"
    )
    add("--rho", type=flags.imbalance_ratio, help=tail)
    args = parser.parse_args(argv)
    if args.check is not None:
        say(check_list(args.check, args.folder))
        return
    folders = Folders(args.folder, args.test, args.outliers, args.ood)
    lists = write_lists(folders, args.out, test_share=args.test_share, rho=args.rho, seed=args.seed)
    say("\n".join([*lists.report, "", *commands(lists)]))


def commands(lists: Lists) -> list[str]:
    """Returns the commands that train and test on the lists, with flags that suit their size."""
    words = ["--txtt", lists.files["train"], "--iidp", lists.iidp]
    words += ["--txtv", lists.files["test"]] if "test" in lists.files else []
    ood = [path for name, path in lists.files.items() if name.startswith("ood_")]
    words += ["--txt_ood_train", lists.files["outliers"]] if lists.num_outliers else []
    words += ["--txt_ood_test", *ood] if ood else []
    words += ["--iodp", lists.iodp] if ood or lists.num_outliers else []
    words += ["--num_workers", os.cpu_count() or 1]
    training, test = _training_flags(sum(lists.counts), lists.num_outliers), []
    if not lists.num_outliers:
        training, test = [*training, "--oe", False], ["--calibration", "none"]
    train, test = (shlex.join(map(str, words + more)) for more in (training, test))
    if "test" not in lists.files:
        return [
            f"python train_imagenet.py {train} --srp OUT",
            "test_imagenet.py also needs test pictures of the classes (--test or --test_share)",
        ]
    return [
        f"python train_imagenet.py {train} --srp OUT",
        f"python test_imagenet.py {test} --ckpt_path OUT",
    ]


def _training_flags(num_images: int, num_outliers: int) -> list[object]:
    """Flags that fine-tune on few images; the paper's protocol on many."""
    if num_images >= FEW:
        return ["--ob", num_outliers] if 0 < num_outliers < 64 else []
    fine_tuning = "--init imagenet --md ResNet18 --lr 0.01 --epochs 30 --warmup_epochs 2 --val_fraction 0.2"
    batch = min(16, max(2, num_images // 4))
    outliers = ["--ob", min(2 * batch, num_outliers)] if num_outliers else []
    return [*fine_tuning.split(), "-b", batch, *outliers]


def prepare_benchmarks(argv: list[str]) -> None:
    """Gets the sets that ``argv`` names ready.

    Raises:
        InputError: a set is still incomplete when all were tried.
    """
    parser = _parser("", __doc__)
    sets = ["cifar10", "cifar100", "tinyimages", "scood"]
    others = "what to prepare; imagenet, outliers and ood have flags of their own: ... imagenet --help"
    parser.add_argument("sets", nargs="+", choices=sets, help=others)
    _add_data_folder(parser)
    unverified = "download files that have no published checksum"
    parser.add_argument("--allow_unverified", action="store_true", help=unverified)
    archive = "scood: an archive fetched by hand (tar or zip), to be unpacked"
    parser.add_argument("--archive", type=flags.path, help=archive)
    args = parser.parse_args(argv)
    if args.archive is not None and "scood" not in args.sets:
        raise InputError("--archive goes with scood")
    unready = []
    for name in dict.fromkeys(args.sets):
        try:
            if name == "tinyimages":
                prepare_tinyimages(args.drp, args.allow_unverified)
            elif name == "scood":
                prepare_scood(args.drp, args.archive)
            else:
                prepare_cifar(name, args.drp)
        except InputError as error:  # the other sets may do better
            say(f"{name}: {error}")
            unready.append(name)
    if unready:
        raise InputError(f"not ready yet, see above: {', '.join(unready)}")


def prepare_cifar(name: str, root: Path) -> None:
    """Downloads, verifies and unpacks one CIFAR, unless its folder exists, and reads it."""
    release = RELEASES[name]
    if not (root / release.base_folder).exists():
        download(release.url, root / release.filename, release.tgz_md5)
    for train in (True, False):
        load_cifar(name, root, train)
    say(f"{name}: ready in {root / release.base_folder}")


def prepare_tinyimages(root: Path, allow_unverified: bool) -> None:
    """Downloads the 300K random images if the user agrees to do so unverified.

    Raises:
        InputError: they are not there (it says how to get them), or cannot be downloaded.
    """
    path = root / OUTLIER_FILE
    if not path.exists():
        if not allow_unverified:
            raise InputError(
                f"no checksum is published for {TINY_IMAGES_URL} (922 MB, 300,000 images); put that file at "
                f"{path}, or let --allow_unverified download it"
            )
        download(TINY_IMAGES_URL, path, md5=None, check=map_outliers)
    say(f"tinyimages: ready, {len(map_outliers(path)):,} images in {path}")


def prepare_scood(root: Path, archive: Path | None) -> None:
    """Unpacks ``archive`` if given, then reports which suites are complete.

    Raises:
        InputError: a list is missing (it says how to get them), or images of one are.
    """
    if archive is not None:
        unpack(archive, root)
    lists = {
        list_path(benchmark, name, root): range(-1, NUM_CLASSES[benchmark])
        for benchmark, names in DEFAULT_SETS.items()
        for name in names
    }
    if missing := [path for path in lists if not path.is_file()]:
        say(
            "scood: its authors share scood_benchmark.zip through Google Drive, which this script cannot "
            f"fetch from.\n  Download it in a browser from {SCOOD_LINK}\n  (or follow the data set's link on "
            f"{SCOOD_PAGE}) and give it to --archive.\n  Its lists belong at {missing[0]} etc.,\n  its "
            f"images at {image_root(root)}/<path as listed>."
        )
        names = ", ".join(f"{path.parent.name}/{path.name}" for path in missing)
        raise InputError(f"{len(missing)} lists are missing: {names}")
    for path, labels in lists.items():
        say(f"scood: {check_list(path, image_root(root), labels)}")


def check_list(path: Path, images: Path, labels: range | None = None) -> str:
    """Returns a report that all files of a list are in the folder ``images``.

    Raises:
        InputError: see :func:`datasets.image_list.read_present`.
    """
    paths, _ = read_present(path, images, labels)
    return f"{path}: all {len(paths):,} files are in {images}"


if __name__ == "__main__":
    exit_cleanly(main)
