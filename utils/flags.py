"""Types of command-line values, which refuse impossible ones before any work starts, and the flags that
both training scripts, or both ImageNet scripts, share."""

import argparse
import json
import math
import os
from pathlib import Path

from utils.distributed import Compute, cpu_cores
from utils.errors import InputError


class HelpFormatter(argparse.RawDescriptionHelpFormatter, argparse.ArgumentDefaultsHelpFormatter):
    """Keeps the lines of the description, and shows the default of every flag that has one."""

    def _get_help_string(self, action):
        if action.default in (None, []) or "default" in action.help:
            return action.help
        return super()._get_help_string(action)


def boolean(text):
    """Parses True / False, yes / no or 1 / 0, in any case."""
    values = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}
    if text.lower() not in values:
        raise argparse.ArgumentTypeError(f"expected True or False, not {text!r}")
    return values[text.lower()]


def add_boolean(group, *names, **settings):
    """Adds a flag that may stand alone (True) or take True or False."""
    group.add_argument(*names, type=boolean, nargs="?", const=True, metavar="BOOL", **settings)


def number(kind, low=-math.inf, high=math.inf, above=-math.inf):
    """Returns a type for argparse: ``kind`` (int or float) within [low, high], and strictly above a bound."""

    def parse(text):
        value = kind(text)
        if not (low <= value <= high and value > above):
            bounds = {"at least": low, "at most": high, "above": above}
            limits = [f"{word} {bound}" for word, bound in bounds.items() if math.isfinite(bound)]
            raise argparse.ArgumentTypeError(f"must be {' and '.join(limits)}, not {text}")
        return value

    parse.__name__ = kind.__name__  # argparse's own message names it
    return parse


def path(text):
    """Parses a path; a leading ``~`` is the home directory, even if the shell did not expand it."""
    if not text:  # as from an unset variable; it would be the current folder
        raise argparse.ArgumentTypeError("the path is empty")
    return Path(os.path.expanduser(text))


positive_int = number(int, low=1)
count = number(int, low=0)
seed = number(int, low=0, high=2**63 - 1)
image_size = number(int, low=16, high=1024)
positive = number(float, above=0, high=1e9)
weight = number(float, low=0, high=1e9)
imbalance_ratio = number(float, above=0, high=1)
fraction = number(float, low=0, high=0.9)
unit = number(float, low=0, high=1)
# Processes that read files, for each process that trains.
WORKERS = max(1, min(16, cpu_cores() // int(os.environ.get("LOCAL_WORLD_SIZE", 1))))
GPU = "CUDA indices such as 0 or 0,1 (DataParallel), or cpu; under torchrun one index per process, or 0: "
GPU += "one GPU each"
FIGURES = ("png", "pdf", "svg")
PRECISION = "auto: bf16 on GPUs that support it (Ampere and later), else fp32"


def add_training_flags(parser):
    """Adds the flags of a run and its optimisation, which train.py and train_imagenet.py share."""
    group = parser.add_argument_group("run")
    add = group.add_argument
    add("--seed", type=seed, default=3407, help="seeds initialisation, data order and views")
    replay = "use deterministic kernels only, so a run can be replayed on the same GPU (a CPU's always can)"
    add_boolean(group, "--deterministic", "--replay", default=False, help=replay)
    add("--gpu", default="0", help=GPU)
    add("--num_workers", "--cpus", type=count, default=WORKERS, help="processes that read ImageNet files")
    start = "start from a trained backbone: a checkpoint, or (ImageNet) imagenet: torchvision's weights"
    add("--init", metavar="FILE", help=f"{start}; not in the paper")
    where = "the run directory; default: that of --resume, if it names one, else runs/DATASET_MODEL_SEED"
    add("--save_root_path", "--srp", dest="srp", type=path, help=where)
    resume = "resume the run in --srp with its own flags; or the run of another directory or checkpoint file"
    add("--resume", type=os.path.expanduser, nargs="?", const="", metavar="PATH", help=resume)
    minutes = "also save within an epoch, every so many minutes; 0: at ends of epochs, at most once a minute"
    add("--checkpoint_every_minutes", type=weight, default=0, help=minutes)
    add("--max_bad_steps", type=positive_int, default=3, help="non-finite steps in a row that end the run")
    precision = f"{PRECISION}; fp32 on CUDA uses TF32 in convolutions, and full fp32 in matrix products"
    add("--precision", choices=("auto", "fp32", "bf16"), default="auto", help=precision)
    add_boolean(group, "--compile", default=False, help="torch.compile the network and the criterion")
    sync = "BatchNorm statistics of the global batch (CUDA, torchrun); the host waits once per layer"
    add_boolean(group, "--sync_bn", default=False, help=sync)
    add("--figures", choices=FIGURES, default="png", help="format of the plots")
    scalars = "also write the log's numbers for TensorBoard, into the run directory"
    add_boolean(group, "--tensorboard", default=False, help=scalars)

    add = parser.add_argument_group("optimisation").add_argument
    held = "share of each class's training images held out, and with them the last tenth of the outliers; "
    held += "best.pth keeps the epoch that is best on these images"
    add("--val_fraction", type=fraction, default=0, help=held)
    patience = "end the run after so many epochs without a higher mean class accuracy on held-out images"
    add("--patience", type=count, default=0, help=f"{patience}; 0: never")
    add("--epochs", "-e", type=positive_int, help="passes over the training images")
    add("--batch_size", "-b", type=positive_int, help="ID images per step over all processes")
    add("--ood_batch_size", "--ob", dest="ob", type=positive_int, help="outliers per step, likewise")
    size = "held-out images per batch"
    add("--test_batch_size", "--tb", dest="tb", type=positive_int, default=1000, help=size)
    add("--opt", choices=("adam", "sgd"), help="the optimiser")
    add("--lr", type=positive, help="the learning rate at the start, after any warm-up")
    add("--warmup_epochs", type=count, default=0, help="epochs of a linear rise first; not in the paper")
    add("--wd", type=weight, help="weight decay")
    add("--momentum", "-m", type=unit, default=0.9, help="of SGD (Nesterov)")
    add("--num_ood_samples", type=positive_int, help="how many outliers to use: the first ones in the file")


def check(args: argparse.Namespace, compute: Compute, num_images: int, num_outliers: int | None) -> None:
    """Raises InputError for flags that do not fit the devices or the sets; no outliers: None."""
    if args.sync_bn and (compute.world_size == 1 or compute.device.type != "cuda"):
        raise InputError("--sync_bn is for several processes (torchrun) on CUDA")
    if args.patience and not args.val_fraction:
        raise InputError("--patience needs held-out images: add --val_fraction 0.2")
    if args.compile and len(compute.gpus) > 1:
        raise InputError("--compile takes one GPU per process: name one in --gpu, or use torchrun")
    for flag, size, available in (
        ("--batch_size", args.batch_size, num_images),
        ("--ood_batch_size", args.ob, num_outliers),
    ):
        if available is not None and size > available:
            raise InputError(f"{flag} {size} is larger than the set: {available} images to train on")
        if available is not None and size % compute.world_size:
            raise InputError(f"{flag} {size} cannot be shared by {compute.world_size} processes")
    replicas = max(compute.world_size, len(compute.gpus))
    if args.batch_size < 2 * replicas:
        raise InputError(f"--batch_size must be at least {2 * replicas}: BatchNorm needs 2 images per device")


def plain(args: argparse.Namespace) -> dict:
    """Returns the namespace as plain values, for JSON and checkpoints."""
    return json.loads(json.dumps(vars(args), default=str))


LISTS = Path("dataset")
IMAGE_LISTS = {  # where the images of ImageNet-LT are, by the names of the flags
    "txtt": LISTS / "ImageNet_LT_train.txt",
    "txtv": LISTS / "ImageNet_LT_test.txt",
    "iidp": Path("data/imagenet"),
    "iodp": Path("data/imagenet_extra"),
    "txt_ood_train": LISTS / "imagenet_extra_1k_wnid_list_picture.txt",
    "txt_ood_test": [LISTS / "imagenet_ood_test_1k_wnid_list_picture.txt"],
}


def add_image_lists(parser):
    """Adds the lists and folders of ImageNet-LT, which both of its scripts take."""
    add = parser.add_argument
    add("--txtt", type=path, help="training list: path label")
    add("--txtv", type=path, help="test list; training does not read it")
    add("--iidp", type=path, help="folder of the ID images")
    add("--iodp", type=path, help="folder of the outlier and OOD images")
    add("--txt_ood_train", type=path, help="list of the surrogate outliers")
    ood = "lists of OOD test images; each is a set named after its file"
    add("--txt_ood_test", type=path, nargs="+", metavar="LIST", help=ood)
    parser.set_defaults(**IMAGE_LISTS)
