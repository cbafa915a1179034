"""Does reading keep up with the GPU? python -m benchmarks.speed.imagenet_step

Compares an ImageNet-LT training step (ResNet50, 1000 classes, 224 x 224, 32 x 3 + 64 images) on ready data
with one whose loader reads JPEG files, made here. The goal is a ratio of at most 1.1.
"""

import argparse
import os
import tempfile
from pathlib import Path

import torch
from torch.utils.benchmark import timer

from benchmarks.speed.common import chosen_device, milliseconds, publish, timed
from benchmarks.speed.imagenet_loader import make_files
from datasets.augment.views import imagenet_views
from datasets.imagenet import FileTrainLoader, ImageFiles
from models import build_model
from train import build_criterion, build_optimizer, train_one_epoch
from train_imagenet import parse_args
from utils.distributed import autocast
from utils.errors import exit_cleanly
from utils.run.guard import StepGuard
from utils.run.meter import EpochMeter

CLASSES = 1000


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", type=chosen_device, default="cuda")
    parser.add_argument("--md", default="ResNet50")
    parser.add_argument("--image_size", type=int, default=224)
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--num_workers", type=int, default=os.cpu_count())
    args = parser.parse_args(argv)
    settings = parse_args(["--md", args.md])
    model = build_model(args.md, CLASSES, family="imagenet").to(
        args.device, memory_format=torch.channels_last
    )
    criterion = build_criterion(settings, [100] * CLASSES, model.embedding_dim).to(args.device)
    optimizer, mixed = build_optimizer(model, settings), autocast(args.device, "auto")
    guard = StepGuard(optimizer, [model, criterion], settings.max_bad_steps)
    meter = EpochMeter(CLASSES, args.device)

    def train_on(batches):
        train_one_epoch(model, criterion, optimizer, guard, meter, enumerate(batches), mixed)

    with tempfile.TemporaryDirectory() as folder:
        made = make_files(Path(folder), 200)
        needed = args.steps * settings.batch_size
        paths = (made.paths * (needed // len(made.paths) + 1))[:needed]
        loader = FileTrainLoader(
            ImageFiles(made.root, paths, torch.arange(needed) % CLASSES),
            made,
            imagenet_views(),
            image_size=args.image_size,
            batch_size=settings.batch_size,
            outlier_batch_size=settings.ob,
            contrastive=True,
            num_workers=args.num_workers,
            seed=0,
            device=args.device,
        )
        ready = next(iter(loader.epoch(0)))
        bare = timed(lambda: train_on([ready]), min(args.steps, 30))
        # Steps overlap with reading, so an epoch is timed as a whole, after its first batch.
        batches = iter(loader.epoch(1))
        train_on([next(batches)])
        begun = timer()  # which waits for the GPU
        train_on(batches)
        seconds = (timer() - begun) / (args.steps - 1)
    head = [f"{args.md}, 32 x 3 + 64 images of {args.image_size}", "ms per step", "ratio"]
    rows = [["data ready", milliseconds(bare), ""]]
    rows.append(["full loader", f"{1e3 * seconds:.4g}", f"{seconds / bare.median:.2f} (goal at most 1.10)"])
    measured = {"ready": bare, "loader": seconds, "workers": args.num_workers}
    publish(__spec__.name, "imagenet_step", args.device, head, rows, **measured)


if __name__ == "__main__":
    exit_cleanly(main)
