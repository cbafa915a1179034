"""Types of command-line values, so that an impossible one is refused before any work starts."""

import argparse
from pathlib import Path


class HelpFormatter(argparse.RawDescriptionHelpFormatter, argparse.ArgumentDefaultsHelpFormatter):
    """Keeps the description's lines, and gives every flag's default that is a value."""

    def _get_help_string(self, action):
        if action.default in (None, []) or "default" in action.help:
            return action.help
        return super()._get_help_string(action)


def boolean(text):
    """True / False, yes / no, 1 / 0, in any case."""
    values = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}
    if text.lower() not in values:
        raise argparse.ArgumentTypeError(f"expected True or False, not {text!r}")
    return values[text.lower()]


def add_boolean(group, *names, **settings):
    """Adds a flag that may stand alone (True) or take True or False."""
    group.add_argument(*names, type=boolean, nargs="?", const=True, metavar="BOOL", **settings)


def number(kind, low=None, high=None, above=None):
    """A type for argparse: ``kind`` (int or float) within [low, high], or strictly above a bound."""

    def parse(text):
        try:
            value = kind(text)
        except ValueError:
            raise argparse.ArgumentTypeError(
                f"expected {'a whole number' if kind is int else 'a number'}, not {text!r}"
            ) from None
        if low is not None and not value >= low:
            raise argparse.ArgumentTypeError(f"must be at least {low}, not {text}")
        if above is not None and not value > above:
            raise argparse.ArgumentTypeError(f"must be above {above}, not {text}")
        if high is not None and not value <= high:
            raise argparse.ArgumentTypeError(f"must be at most {high}, not {text}")
        return value

    return parse


positive_int = number(int, low=1)
count = number(int, low=0)
seed = number(int, low=0, high=2**63 - 1)
image_size = number(int, low=16, high=1024)
positive = number(float, above=0, high=1e9)
weight = number(float, low=0, high=1e9)
imbalance_ratio = number(float, above=0, high=1)
fraction = number(float, low=0, high=0.9)
unit = number(float, low=0, high=1)


def add_evaluation_flags(parser, scores):
    """The flags that both test scripts have; ``scores`` are the choices of ``--score``."""
    parser.add_argument(
        "--seed", type=seed, default=3407, help="chooses the images that calibrate on ImageNet-LT"
    )
    parser.add_argument("--gpu", default="0", help="CUDA indices such as 0 or 0,1, or cpu")
    parser.add_argument(
        "--num_workers", "--cpus", type=count, default=4, help="processes that read ImageNet's files"
    )
    add_boolean(parser, "--FC", default=True, help="also evaluate with feature calibration")
    add_boolean(
        parser, "--tnorm", default=False, help="normalise the rows of the classifier and drop its bias"
    )
    parser.add_argument(
        "--score", choices=scores, default=scores[0], help="which score the table shows; the files hold all"
    )
    parser.add_argument(
        "--test_batch_size", "--tb", dest="tb", type=positive_int, default=1000, help="images at once"
    )
    parser.add_argument(
        "--precision",
        choices=("auto", "fp32", "bf16"),
        default="auto",
        help="auto: bf16 on CUDA, fp32 on a CPU",
    )
    parser.add_argument(
        "--srp", type=Path, metavar="DIR", help="where results go; default: the run directory"
    )


def add_image_lists(parser):
    """The lists and folders of ImageNet-LT, which both of its scripts take."""
    dataset = Path("dataset")
    parser.add_argument(
        "--txtt", type=Path, default=dataset / "ImageNet_LT_train.txt", help="training list: path label"
    )
    parser.add_argument(
        "--txtv", type=Path, default=dataset / "ImageNet_LT_test.txt", help="test list; not for training"
    )
    parser.add_argument("--iidp", type=Path, default=Path("data/imagenet"), help="folder of the ID images")
    parser.add_argument(
        "--iodp", type=Path, default=Path("data/imagenet_extra"), help="folder of the outlier and OOD images"
    )
    extra, ood = (
        dataset / "imagenet_extra_1k_wnid_list_picture.txt",
        dataset / "imagenet_ood_test_1k_wnid_list_picture.txt",
    )
    parser.add_argument("--txt_ood_train", type=Path, default=extra, help="list of the surrogate outliers")
    parser.add_argument("--txt_ood_test", type=Path, default=ood, help="list of the OOD test images")
