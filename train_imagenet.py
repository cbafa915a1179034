"""Trains PATT on ImageNet-LT, or on any long-tailed list of image files. Step and run are train.py's.

    python train_imagenet.py --gpu 0,1,2,3 --ds imagenet --md ResNet50 --lr 0.1 --Lambda1 0.02 \\
        --Lambda2 0.5 --txtt LIST --txtv LIST --iidp DIR --iodp DIR --srp OUT
    torchrun --nproc_per_node=4 train_imagenet.py ...                    one process per GPU
    python train_imagenet.py --gpu cpu --md ResNet18 --image_size 64 ...  a quick try on small images
"""

import argparse
import sys

import torch

from datasets.augment.views import imagenet_views
from datasets.imagenet import EvalImages, FileTrainLoader, folder_names, load_files
from datasets.images import NORMALIZATIONS, hold_out, kept_outliers
from models import FAMILIES, build_model
from train import add_method_flags, resolve_departures, train
from utils import flags
from utils.checkpoint import parse_training
from utils.distributed import seed_everything, start
from utils.errors import InputError, exit_cleanly, say
from utils.run import TrainingData

DEFAULTS = dict(
    model="ResNet50",
    epochs=100,
    batch_size=32,
    ob=64,
    opt="sgd",
    lr=0.1,
    wd=5e-5,
    Lambda1=0.02,
    Lambda2=0.5,
    tem_scale=0.7,
    tb=100,
    num_ood_samples=None,
    normalization="imagenet",
)


def step_decay(base, decay_epochs, epochs):
    """Returns the schedule that multiplies by 0.1 at each of ``decay_epochs``; below 1 they are shares."""
    steps = [round(e * epochs, 6) if e < 1 else e for e in decay_epochs]
    return lambda epoch: base * 0.1 ** sum(epoch >= step for step in steps)


def main(argv=None):
    args = parse_args(argv)
    compute = start(args.gpu)
    seed_everything(args.seed, args.deterministic)

    every = load_files(args.txtt, args.iidp)
    if args.val_fraction and len(set(every.paths)) < len(every.paths):
        raise InputError(f"{args.txtt} lists images twice: --val_fraction cannot hold them out of training")
    class_names = folder_names(every)
    training, held_out = hold_out(every, args.val_fraction)
    class_counts = torch.bincount(training.labels).tolist()
    outliers = None
    if args.oe:
        outliers = load_files(args.txt_ood_train, args.iodp, labelled=False)
        outliers = outliers.select(slice(args.num_ood_samples))
        outliers = outliers.select(slice(kept_outliers(len(outliers.paths), args.val_fraction)))
    flags.check(args, compute, len(training.paths), None if outliers is None else len(outliers.paths))
    shared = {"image_size": args.image_size, "num_workers": args.num_workers, "device": compute.device}
    shared |= {"rank": compute.rank, "world_size": compute.world_size}
    shared["normalization"] = NORMALIZATIONS[args.normalization]
    loader = FileTrainLoader(
        training,
        outliers,
        imagenet_views(args.randaug_n, args.randaug_m),
        batch_size=args.batch_size,
        outlier_batch_size=args.ob,
        contrastive=args.isac,
        seed=args.seed,
        **shared,
    )

    def validation_batches():
        batches = EvalImages(held_out, batch_size=args.tb, replace=True, **shared)
        yield from batches
        for line in batches.replaced.report():
            say(f"warning: held-out images: {line}", sys.stderr)

    model = build_model(args.model, len(class_counts), family="imagenet", head=args.isac)
    schedule = step_decay(args.lr, args.decay_epochs, args.epochs)
    data = TrainingData(loader, class_counts, class_names, validation_batches if held_out else None)
    train(args, compute, data, model, schedule)


def parse_args(argv=None):
    """Parses the flags; defaults are the paper's run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=flags.HelpFormatter)
    group = parser.add_argument_group("data and network")
    add = group.add_argument
    add("--dataset", "--ds", dest="ds", choices=("imagenet",), default="imagenet", help="the data set")
    add("--model", "--md", choices=tuple(FAMILIES["imagenet"]), help="the network")
    flags.add_image_lists(group)
    add("--image_size", type=flags.image_size, default=224, help="side of the views, pixels")
    add("--randaug_n", type=flags.count, default=2, help="RandAugment: operations per image")
    magnitude = flags.number(float, low=0, high=10)
    add("--randaug_m", type=magnitude, default=10, help="RandAugment: magnitude")
    decay = "when the learning rate is multiplied by 0.1: shares of the run (below 1), or epochs"
    add("--decay_epochs", "--de", type=flags.weight, nargs="+", default=[0.6, 0.8], help=decay)
    add_method_flags(parser, ["released"])
    flags.add_training_flags(parser)
    # All images have ImageNet's normalisation already, and view 1's crop is not CIFAR's padded one.
    args = parse_training(parser, argv, {"imagenet": DEFAULTS}, recipes={})
    return resolve_departures(args, points=("embeddings", "statistics"))


if __name__ == "__main__":
    exit_cleanly(main)
