"""Where a training step's time goes: python -m benchmarks.speed.train

Breaks down the step of train.py at CIFAR10-LT's sizes (128 x 3 + 256 images of 32 x 32) into data, criterion,
and optimiser with guard and meter, and times the evaluation. Compares it with (a) the bare forward and
backward pass of the same network on ready tensors, and (b) the plain pipeline: worker processes with PIL
images, fp32, the transcribed criterion. The images are random, which does not affect time. On a GPU whole
epochs are timed, so overlapping work counts once.
"""

import argparse
import itertools
import os

import torch
import torch.nn.functional as F
from torch.utils.data import DataLoader

from benchmarks.speed.common import Timing, chosen_device, milliseconds, publish, timed
from benchmarks.speed.plain import PlainISAC, PlainOutliers, PlainTrainingSet
from datasets.augment.views import cifar_views
from datasets.loader import TrainLoader, evaluation_batches
from datasets.long_tail import long_tail_counts
from datasets.normalization import CIFAR_NORMALIZATION
from models import build_model
from train import build_criterion, build_optimizer, parse_args, train_one_epoch
from utils.distributed import autocast
from utils.errors import exit_cleanly
from utils.guard import StepGuard
from utils.losses import outlier_exposure
from utils.meter import EpochMeter

PLAIN_STEPS = 10  # at most, for they take seconds each where cores are few
STEPS_AN_EPOCH = 96  # CIFAR10-LT: 12,406 images in batches of 128
GFLOP_AN_IMAGE = {"ResNet18": 3.35}  # forward and backward of a 32 x 32 image, a multiply-add counts as 2
CARD_TFLOPS = 790  # bf16 matrix products of one H200


def main(argv=None):
    args = benchmark_args(argv)
    on_gpu = args.device.type == "cuda"
    torch.backends.cudnn.benchmark = True
    settings = parse_args(
        ["--ds", "cifar10", "--md", args.md, "-b", str(args.batch_size), "--ob", str(2 * args.batch_size)]
    )
    data = random_data()

    def a_step(block, steps):
        """Times one step, from a block of steps after a first, untimed block."""
        return Timing(*(seconds / steps for seconds in timed(lambda: block(steps), args.repeats)))

    blocks = our_parts(settings, data, args.device, args.compile)
    parts = {name: a_step(block, args.steps) for name, block in blocks.items()}
    plain = repeated(plain_step(settings, data, args.device))
    parts["plain pipeline's step"] = a_step(plain, min(args.steps, PLAIN_STEPS))
    evaluation = timed(
        our_evaluation(args.md, args.test_images, args.device), args.repeats if on_gpu else 1, int(on_gpu)
    )

    step, bare = parts["whole step"].median, parts["bare forward + backward"].median
    rows = [
        [name, milliseconds(timing), f"{100 * timing.median / step:.2f} %"] for name, timing in parts.items()
    ]
    rest = sum(parts[name].median for name in ("data", "criterion", "optimiser, guard, meter"))
    goal = "(goal at most 10 %)"
    rows.append(
        ["data, criterion, optimiser together", f"{1e3 * rest:,.1f}", f"{100 * rest / step:.2f} % {goal}"]
    )
    rows.append(
        ["whole step less bare", f"{1e3 * (step - bare):,.1f}", f"{100 * (step - bare) / step:.2f} % {goal}"]
    )
    rows.append([f"evaluation, {args.test_images:,} images", milliseconds(evaluation), ""])
    rows.append([f"an epoch of {STEPS_AN_EPOCH} steps", f"{1e3 * STEPS_AN_EPOCH * step:,.0f}", ""])
    if args.md in GFLOP_AN_IMAGE:
        achieved = GFLOP_AN_IMAGE[args.md] * 5 * args.batch_size / step / 1e3
        card = f" (an H200's matrix products: {CARD_TFLOPS})" if on_gpu else ""
        rows.append(["achieved", f"{achieved:.3g} TFLOP/s{card}", ""])
    head = [
        f"{args.md}, {args.batch_size} x 3 + {2 * args.batch_size} images",
        "ms (lowest to highest)",
        "share of the step",
    ]
    claim = f"train-{args.md}" + ("-compiled" if args.compile else "")
    publish(
        __spec__.name,
        claim,
        args.device,
        head,
        rows,
        seconds=parts,
        evaluation=evaluation,
        steps_a_block=args.steps,
        network=args.md,
    )


def repeated(function):
    """Returns a function that calls ``function`` n times."""
    return lambda n: [function() for _ in range(n)]


def our_parts(settings, data, device, compiled):
    """Returns functions that do n times: bare forward and backward, data, criterion, update, whole step."""
    images, labels, outliers, counts = data
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
    model = build_model(settings.model, len(counts)).to(device, memory_format=torch.channels_last).train()
    criterion = build_criterion(settings, counts, model.embedding_dim).to(device)
    optimizer = build_optimizer(model, settings)
    guard, meter = (
        StepGuard(optimizer, [model, criterion], settings.max_bad_steps),
        EpochMeter(len(counts), device),
    )
    guard.remember()
    network, objective = (torch.compile(m) if compiled else m for m in (model, criterion))
    mixed = autocast(device, "auto")
    batches = itertools.chain.from_iterable(loader.epoch(epoch) for epoch in itertools.count())
    ready = next(batches)
    logits = torch.randn(len(ready.images), len(counts), device=device)
    embeddings = torch.randn(len(ready.images), model.embedding_dim, device=device)

    def bare():
        optimizer.zero_grad(set_to_none=True)
        with mixed:
            output = network(ready.images)
        (output.logits.sum() + output.embedding.sum()).backward()

    def loss():
        terms = objective(logits.requires_grad_(), embeddings.requires_grad_(), ready.labels)
        terms["loss"].backward()
        return terms

    def update(batch, terms, batch_logits):  # of the gradients at hand
        applied = guard.step(terms, batch.indices, 0)
        meter.add(terms, batch_logits[: len(batch.labels)].detach(), batch.labels, applied)

    def whole(steps):
        some = enumerate(itertools.islice(batches, steps))
        train_one_epoch(network, objective, optimizer, guard, meter, some, mixed)

    terms = loss()
    return {
        "bare forward + backward": repeated(bare),
        "data": repeated(lambda: next(batches)),
        "criterion": repeated(loss),
        "optimiser, guard, meter": repeated(lambda: update(ready, terms, logits)),
        "whole step": whole,
    }


def plain_step(settings, data, device):
    """Returns a function that does one step of the plain pipeline, while workers prepare further batches."""
    images, labels, outliers, counts = data
    workers = min(os.cpu_count(), 16)

    def endless(dataset, batch_size):
        loader = DataLoader(
            dataset,
            batch_size,
            shuffle=True,
            drop_last=True,
            num_workers=workers,
            persistent_workers=True,
            pin_memory=device.type == "cuda",
        )
        return itertools.chain.from_iterable(loader for _ in itertools.count())

    batches = endless(PlainTrainingSet(images, labels), settings.batch_size)
    outlier_batches = endless(PlainOutliers(outliers), settings.ob)
    model = build_model(settings.model, len(counts)).to(device).train()
    contrast = PlainISAC(counts, model.embedding_dim).to(device)
    optimizer = torch.optim.Adam(model.parameters(), lr=settings.lr, weight_decay=settings.wd)
    batch_size = settings.batch_size

    def step():
        *views, targets = next(batches)
        inputs, targets = torch.cat([*views, next(outlier_batches)]).to(device), targets.to(device)
        output = model(inputs)
        isac = contrast(output.embedding[batch_size : 3 * batch_size], targets.repeat(2))
        tla = F.cross_entropy(
            output.logits[:batch_size] / settings.tem_scale + contrast.log_prior.float(), targets
        )
        oe = outlier_exposure(output.logits[3 * batch_size :])
        optimizer.zero_grad()
        (isac + settings.Lambda2 * tla + settings.Lambda1 * oe).backward()
        optimizer.step()

    return step


def our_evaluation(name, test_images, device):
    """Returns a function that passes a test set through the network."""
    model = build_model(name, 10).to(device, memory_format=torch.channels_last).eval()
    images = torch.randint(0, 256, (test_images, 3, 32, 32), dtype=torch.uint8).to(device)
    labels = torch.zeros(test_images, dtype=torch.int64)

    @torch.inference_mode()
    def evaluate():
        for batch, _ in evaluation_batches(
            images, labels, batch_size=1000, normalization=CIFAR_NORMALIZATION, device=device
        ):
            with autocast(device, "auto"):
                model(batch)

    return evaluate


def random_data():
    """Returns (images, labels, outliers, class counts) of CIFAR10-LT's sizes; outliers for one epoch."""
    counts = long_tail_counts(5000, 10, 0.01)
    labels = torch.repeat_interleave(torch.arange(10), torch.tensor(counts))
    images, outliers = (
        torch.randint(0, 256, (n, 3, 32, 32), dtype=torch.uint8) for n in (len(labels), 25_000)
    )
    return images, labels, outliers, counts


def benchmark_args(argv):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--md", default="ResNet18")
    parser.add_argument("--device", type=chosen_device, default="cpu")
    parser.add_argument("--compile", action="store_true", help="torch.compile the network and criterion")
    parser.add_argument(
        "--steps", type=int, help="steps per timed block; default: 1 on a CPU, an epoch on a GPU"
    )
    parser.add_argument("--repeats", type=int, default=3, help="timed blocks")
    parser.add_argument(
        "--batch_size", type=int, default=128, help="ID images per step; twice as many outliers"
    )
    parser.add_argument("--test_images", type=int, help="default: 1,000 on a CPU, 10,000 on a GPU")
    args = parser.parse_args(argv)
    on_gpu = args.device.type == "cuda"
    args.steps = args.steps or (STEPS_AN_EPOCH if on_gpu else 1)
    args.test_images = args.test_images or (10_000 if on_gpu else 1000)
    return args


if __name__ == "__main__":
    exit_cleanly(main)
