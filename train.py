"""Trains PATT on long-tailed CIFAR-10, CIFAR-100 or the embedded digits.

python train.py --ds digits --gpu cpu --srp runs/digits    no download, a few minutes
python train.py --gpu 0 --ds cifar10 --drp DATA --srp OUT
python train.py --gpu 0,1 ...                              two GPUs in one process (DataParallel)
torchrun --nproc_per_node=4 train.py ...                   one process per GPU (DistributedDataParallel)
python train.py --srp OUT --resume                         resumes a stopped run with its own flags
"""
# From top to bottom: the training step, the loop over epochs, the data and network, the flags.

import argparse
import math
from pathlib import Path

import torch

from datasets.images import IMAGENET_NORMALIZATION, NORMALIZATIONS, hold_out, kept_outliers
from datasets.loader import TrainLoader, evaluation_batches
from datasets.registry import BENCHMARKS
from models import FAMILIES, build_model
from utils import flags
from utils.checkpoint import parse_training, resumes
from utils.distributed import autocast, parallelize, resolved_precision, seed_everything, share_buffers, start
from utils.errors import InputError, exit_cleanly, say
from utils.guard import StepGuard
from utils.history import EpochMeter
from utils.losses import PATTLoss
from utils.run import Trained, TrainingData, open_run
from utils.weights import initialize

# Where training in the authors' release departs from the paper; the full table is in docs/departures.md.
RELEASED_CHOICES = {
    "embeddings": "ISAC's embeddings are not normalised to the sphere",
    "statistics": "one running average of the class statistics over the whole run",
    "normalization": "outliers are normalised with ImageNet's mean and std",
    "crop": "view 1's crop has no padding",
}
# Defaults of this project's own recipe, chosen on held-out images: docs/results.md.
EXTENDED = {"head": True, "Lambda1": 0.5, "Lambda2": 1.0}
RECIPES = {
    "released": "depart from the paper in every point of --depart that concerns the data set",
    "extended": "ours, for use with the probe: --head --Lambda1 0.5 --Lambda2 1, unless typed otherwise",
}


def train_one_epoch(network, criterion, optimizer, guard, meter, batches, mixed_precision):
    """Trains on ``batches``, pairs of (step number, Batch), once."""
    network.train()
    criterion.train()
    guard.remember()
    for step, batch in batches:
        with mixed_precision:
            output = network(batch.images)  # views 1, 2, 3 and outliers share BatchNorm's statistics
        terms = criterion(output.logits, output.embedding, batch.labels)
        optimizer.zero_grad(set_to_none=True)
        terms["loss"].backward()
        applied = guard.step(terms, batch.indices, step)
        meter.add(terms, output.logits[: len(batch.labels)], batch.labels, applied)
    guard.check()


@torch.inference_mode()
def accuracy(network, batches, class_counts, device, mixed_precision):
    """Returns :func:`utils.metrics.group_accuracies` over batches of (images, labels).

    Logits are float32, as in evaluation: bf16 ones often tie, and a tie goes to the head class.
    """
    network.eval()
    meter = EpochMeter(len(class_counts), device)
    for images, labels in batches:
        with mixed_precision:
            features = network(images).features
        meter.add_answers(network.linear(features.float()), labels)
    return meter.accuracies(class_counts)


def train(args, compute, data, model, schedule):
    """Trains ``model`` on ``data``, a TrainingData; ``schedule`` gives the learning rate of an epoch."""
    if args.init and not resumes(args.resume, args.srp):
        said = initialize(model, args.init, args.model)
        if compute.is_main:
            say(said)
    criterion = build_criterion(args, data.class_counts, model.embedding_dim).to(compute.device)
    model.to(compute.device, memory_format=torch.channels_last)
    optimizer = build_optimizer(model, args)
    guard = StepGuard(optimizer, [model, criterion], args.max_bad_steps)
    precision = resolved_precision(compute.device, args.precision)
    mixed_precision = autocast(compute.device, precision)
    trained = Trained(model, criterion, optimizer, guard)
    settings = flags.plain(args) | {"precision": precision}  # the run's, wherever it is resumed
    with open_run(settings, compute, data, trained) as run:
        network = parallelize(model, compute, precision, sync_bn=args.sync_bn)
        objective = criterion
        if args.compile:
            network, objective = torch.compile(network), torch.compile(criterion)
        for epoch in run.epochs():
            rate = schedule(epoch) * min(1, (epoch + 1) / (args.warmup_epochs + 1))
            for group in optimizer.param_groups:
                group["lr"] = rate
            if run.step == 0:
                criterion.start_epoch()
            train_one_epoch(network, objective, optimizer, guard, run.meter, run.batches(), mixed_precision)
            if not run.epoch_is_whole:
                break
            held_out = None
            if data.validation_batches is not None:
                share_buffers(model)
                batches = data.validation_batches()
                held_out = accuracy(model, batches, data.class_counts, compute.device, mixed_precision)
            run.end_epoch(rate, held_out)


def build_optimizer(model, args):
    """Builds the fused optimiser, which can skip a step without leaving the device."""
    shared = {"lr": args.lr, "weight_decay": args.wd, "fused": True}
    if args.opt == "adam":
        return torch.optim.Adam(model.parameters(), **shared)
    return torch.optim.SGD(model.parameters(), momentum=args.momentum, nesterov=args.momentum > 0, **shared)


def build_criterion(args, class_counts, embedding_dim):
    return PATTLoss(
        class_counts,
        embedding_dim,
        oe_weight=args.Lambda1 if args.oe else None,
        tla_weight=args.Lambda2,
        contrast_temperature=args.temperature if args.isac else None,
        logit_temperature=args.tem_scale if args.tla else None,
        schedule="running" if "statistics" in args.depart else "epoch",
        normalize="embeddings" not in args.depart,
    )


def cosine(base, epochs):
    """Returns the cosine schedule from ``base`` to 0, updated per epoch."""
    return lambda epoch: base / 2 * (1 + math.cos(math.pi * epoch / epochs))


def main(argv=None):
    args = parse_args(argv)
    compute = start(args.gpu)
    seed_everything(args.seed, args.deterministic)

    benchmark = BENCHMARKS[args.ds]
    training, held_out = hold_out(benchmark.load_long_tailed(args.drp, args.rho), args.val_fraction)
    outliers = None
    if args.oe:
        outliers = benchmark.load_outliers(args.drp, args.num_ood_samples)
        outliers = outliers[: kept_outliers(len(outliers), args.val_fraction)]
    class_counts = torch.bincount(training.labels).tolist()
    flags.check(args, compute, len(training.labels), None if outliers is None else len(outliers))
    normalization = NORMALIZATIONS[args.normalization]
    views = benchmark.views("crop" not in args.depart)
    if args.strong_outliers:
        views = views._replace(outlier=views.strong)
    loader = TrainLoader(
        *training,
        outliers,
        views,
        batch_size=args.batch_size,
        outlier_batch_size=args.ob,
        normalization=normalization,
        outlier_normalization=IMAGENET_NORMALIZATION if "normalization" in args.depart else normalization,
        contrastive=args.isac,
        seed=args.seed,
        device=compute.device,
        rank=compute.rank,
        world_size=compute.world_size,
    )

    def validation_batches():
        mine = slice(compute.rank, None, compute.world_size)
        return evaluation_batches(
            *held_out.select(mine), batch_size=args.tb, normalization=normalization, device=compute.device
        )

    model = build_model(args.model, len(class_counts), head=args.head)
    class_names = benchmark.class_names(args.drp)
    data = TrainingData(loader, class_counts, class_names, validation_batches if held_out else None)
    train(args, compute, data, model, cosine(args.lr, args.epochs))


def add_method_flags(parser, recipes):
    """Adds the flags of the method, which train.py and train_imagenet.py share; ``recipes``: of RECIPES."""
    group = parser.add_argument_group("method")
    add = group.add_argument
    add("--Lambda1", type=flags.weight, help="weight of the outlier-exposure term")
    add("--Lambda2", type=flags.weight, help="weight of the logit-adjustment term")
    add("--temperature", type=flags.positive, default=0.1, help="tau of the contrastive term")
    add("--tem_scale", type=flags.positive, help="T of the logit adjustment")
    about = "; ".join(f"{name}: {RECIPES[name]}" for name in recipes)
    add("--recipe", choices=("paper", *recipes), default="paper", help=about)
    points = "depart from the paper, as the release does, only in these points: "
    points += "; ".join(f"{point}: {what}" for point, what in RELEASED_CHOICES.items())
    add("--depart", nargs="+", choices=tuple(RELEASED_CHOICES), default=[], metavar="POINT", help=points)
    parts = {
        "--isac": "the contrastive term; without it the logit adjustment has weight 1",
        "--tla": "the logit adjustment; without it, plain cross-entropy",
        "--oe": "outlier exposure; without it, no outliers are read",
    }
    for name, what in parts.items():
        flags.add_boolean(group, name, default=True, help=what)


def parse_args(argv=None):
    """Parses the flags; defaults are the paper's run on the data set of ``--ds``."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=flags.HelpFormatter)
    group = parser.add_argument_group("data and network")
    add = group.add_argument
    data_set = "the data set; ImageNet-LT has its own scripts"
    add("--dataset", "--ds", dest="ds", choices=tuple(BENCHMARKS), default="cifar10", help=data_set)
    folder = "the data folder"
    add("--data_root_path", "--drp", dest="drp", type=flags.path, default=Path("data"), help=folder)
    add("--model", "--md", choices=tuple(FAMILIES["cifar"]), help="the network")
    head = "put the contrastive term on a projection head; not in the paper"
    flags.add_boolean(group, "--head", default=False, help=head)
    alike = "augment outliers like view 1, so the augmentation cannot give them away; not in the paper"
    flags.add_boolean(group, "--strong_outliers", default=False, help=alike)
    ratio = "smallest class / largest class"
    add("--imbalance_ratio", "--rho", dest="rho", type=flags.imbalance_ratio, help=ratio)
    add("--normalization", choices=tuple(NORMALIZATIONS), help="the mean and std of images")
    add_method_flags(parser, tuple(RECIPES))
    flags.add_training_flags(parser)
    defaults = {name: benchmark.training for name, benchmark in BENCHMARKS.items()}
    args = resolve_departures(parse_training(parser, argv, defaults, {"extended": EXTENDED}))
    if args.head and not args.isac:
        raise InputError("--head serves the contrastive term alone: with --isac False it must be False")
    if args.strong_outliers and not args.oe:
        raise InputError("--strong_outliers needs outliers: leave it out with --oe False")
    return args


def resolve_departures(args, points=tuple(RELEASED_CHOICES)):
    """Fills in what follows from ``--recipe``; raises InputError for a departure outside ``points``, or of a
    part that is left out."""
    kept = {"embeddings": args.isac, "statistics": args.isac, "normalization": args.oe}
    points = [point for point in points if kept.get(point, True)]
    if pointless := set(args.depart) - set(points):
        raise InputError(f"--depart {min(pointless)} makes no difference on {args.ds} with these flags")
    args.depart = sorted(points if args.recipe == "released" else set(args.depart))
    return args


if __name__ == "__main__":
    exit_cleanly(main)
