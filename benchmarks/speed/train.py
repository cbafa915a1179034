"""Where a training step's time goes: python -m benchmarks.speed.train

Breaks down the step of train.py at CIFAR10-LT's sizes (128 x 3 + 256 images of 32 x 32) into data, criterion,
and optimiser with guard and meter, beside the bare forward and backward pass of the same network on ready
tensors. The images are random, which does not affect time. On a GPU whole epochs are timed, so overlapping
work counts once.
"""

import argparse
import itertools
from collections.abc import Callable

import torch

from benchmarks.speed.common import chosen_device, publish, timed
from datasets.augment.views import cifar_views
from datasets.loader import TrainLoader
from datasets.long_tail import long_tail_counts
from datasets.normalization import CIFAR_NORMALIZATION
from models import build_model
from train import build_criterion, build_optimizer, parse_args, train_one_epoch
from utils.distributed import autocast
from utils.errors import exit_cleanly
from utils.guard import StepGuard
from utils.history import EpochMeter

STEPS_AN_EPOCH = 96  # CIFAR10-LT: 12,406 images in batches of 128


def parts_of_a_step(
    settings: argparse.Namespace, device: torch.device, compiled: bool
) -> dict[str, Callable[[int], None]]:
    """Returns functions that do n times: bare forward and backward, data, criterion, update, whole step."""
    counts = long_tail_counts(5000, 10, 0.01)
    labels = torch.repeat_interleave(torch.arange(10), torch.tensor(counts))
    images, outliers = (
        torch.randint(0, 256, (n, 3, 32, 32), dtype=torch.uint8) for n in (len(labels), 25_000)
    )
    loader = TrainLoader(
        images,
        labels,
        outliers,
        cifar_views(),
        batch_size=settings.batch_size,
        outlier_batch_size=settings.ob,
        normalization=CIFAR_NORMALIZATION,
        outlier_normalization=CIFAR_NORMALIZATION,
        contrastive=True,
        seed=0,
        device=device,
    )
    model = build_model(settings.model, 10).to(device, memory_format=torch.channels_last).train()
    criterion = build_criterion(settings, counts, model.embedding_dim).to(device)
    optimizer = build_optimizer(model, settings)
    guard, meter = StepGuard(optimizer, [model, criterion], settings.max_bad_steps), EpochMeter(10, device)
    guard.remember()
    network, objective = (torch.compile(m) if compiled else m for m in (model, criterion))
    mixed = autocast(device, "auto")
    batches = itertools.chain.from_iterable(loader.epoch(epoch) for epoch in itertools.count())
    ready = next(batches)
    logits = torch.randn(len(ready.images), 10, device=device, requires_grad=True)
    embeddings = torch.randn(len(ready.images), model.embedding_dim, device=device, requires_grad=True)

    def bare():
        optimizer.zero_grad(set_to_none=True)
        with mixed:
            output = network(ready.images)
        (output.logits.sum() + output.embedding.sum()).backward()

    def loss():
        terms = objective(logits, embeddings, ready.labels)
        terms["loss"].backward()
        return terms

    terms = loss()

    def update():  # of the gradients at hand
        applied = guard.step(terms, ready.indices, 0)
        meter.add(terms, logits[: len(ready.labels)].detach(), ready.labels, applied)

    def whole(steps):
        some = enumerate(itertools.islice(batches, steps))
        train_one_epoch(network, objective, optimizer, guard, meter, some, mixed)

    return {
        "bare forward + backward": lambda steps: [bare() for _ in range(steps)],
        "data": lambda steps: [next(batches) for _ in range(steps)],
        "criterion": lambda steps: [loss() for _ in range(steps)],
        "optimiser, guard, meter": lambda steps: [update() for _ in range(steps)],
        "whole step": whole,
    }


def main(argv: list[str] | None = None) -> None:
    args = benchmark_args(argv)
    torch.backends.cudnn.benchmark = True
    sizes = ["-b", str(args.batch_size), "--ob", str(2 * args.batch_size)]
    settings = parse_args(["--ds", "cifar10", "--md", args.md, *sizes])
    parts = {
        name: timed(lambda part=part: part(args.steps), args.repeats, args.steps)
        for name, part in parts_of_a_step(settings, args.device, args.compile).items()
    }
    step = parts["whole step"].median
    rows = [[name, str(time), f"{100 * time.median / step:.2f} %"] for name, time in parts.items()]
    rest = sum(parts[name].median for name in ("data", "criterion", "optimiser, guard, meter"))
    share = f"{100 * rest / step:.2f} % (goal at most 10 %)"
    rows.append(["data, criterion, optimiser together", f"{1e3 * rest:,.1f}", share])
    rows.append([f"an epoch of {STEPS_AN_EPOCH} steps", f"{1e3 * STEPS_AN_EPOCH * step:,.0f}", ""])
    images = f"{args.md}, {args.batch_size} x 3 + {2 * args.batch_size} images"
    head = [images, "ms (lowest to highest)", "share of the step"]
    claim = f"train-{args.md}" + ("-compiled" if args.compile else "")
    publish(__spec__.name, claim, args.device, head, rows, seconds=parts)


def benchmark_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--md", default="ResNet18")
    add("--device", type=chosen_device, default="cpu")
    add("--compile", action="store_true", help="torch.compile the network and criterion")
    add("--steps", type=int, help="steps per timed block; default: 1 on a CPU, an epoch on a GPU")
    add("--repeats", type=int, default=3, help="timed blocks")
    add("--batch_size", type=int, default=128, help="ID images per step; twice as many outliers")
    args = parser.parse_args(argv)
    args.steps = args.steps or (STEPS_AN_EPOCH if args.device.type == "cuda" else 1)
    return args


if __name__ == "__main__":
    exit_cleanly(main)
