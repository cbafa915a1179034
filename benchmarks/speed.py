"""What of a training step's time is the network's: python -m benchmarks.speed

The step of train.py at CIFAR10-LT's sizes (128 x 3 + 256 images of 32 x 32), its data alone, and the bare
forward and backward pass of the same network on ready tensors. The images are random, which does not affect
time. On a GPU whole epochs are timed, so overlapping work counts once.
"""

import argparse
import itertools
import json
import re
import statistics
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch.utils.benchmark import Timer

import train
from benchmarks.tabulate import Table
from datasets.augment.views import cifar_views
from datasets.images import CIFAR_NORMALIZATION, long_tail_counts
from datasets.loader import TrainLoader
from models import build_model
from utils.distributed import autocast, environment
from utils.errors import exit_cleanly
from utils.guard import StepGuard
from utils.history import EpochMeter
from utils.text_files import write_text

STEPS_AN_EPOCH = 96  # CIFAR10-LT: 12,406 images in batches of 128
RESULTS = Path("runs/benchmarks")
LEAST_SECONDS = 0.05  # per repeat, where a call is shorter
Times = tuple[float, float, float]  # seconds: median, shortest, longest


def parts_of_a_step(settings: argparse.Namespace, device: torch.device) -> dict[str, Callable[[int], None]]:
    """Returns functions that do n times: bare forward and backward, data, whole step."""
    counts = long_tail_counts(5000, 10, 0.01)
    labels = torch.repeat_interleave(torch.arange(10), torch.tensor(counts))
    sizes = len(labels), 25_000
    images, outliers = (torch.randint(0, 256, (n, 3, 32, 32), dtype=torch.uint8) for n in sizes)
    sizes = {"batch_size": settings.batch_size, "outlier_batch_size": settings.ob}
    sizes |= {"normalization": CIFAR_NORMALIZATION, "outlier_normalization": CIFAR_NORMALIZATION}
    common = {"contrastive": settings.isac, "seed": 0, "device": device}
    views = cifar_views(0 if "crop" in settings.depart else 4)
    if settings.strong_outliers:
        views = views._replace(outlier=views.strong)
    loader = TrainLoader(images, labels, outliers if settings.oe else None, views, **sizes, **common)
    model = build_model(settings.model, 10, head=settings.head)
    model.to(device, memory_format=torch.channels_last).train()
    criterion = train.build_criterion(settings, counts, model.embedding_dim).to(device)
    optimizer = train.build_optimizer(model, settings)
    guard, meter = StepGuard(optimizer, [model, criterion], settings.max_bad_steps), EpochMeter(10, device)
    network, objective = (torch.compile(m) if settings.compile else m for m in (model, criterion))
    mixed = autocast(device, settings.precision)
    batches = itertools.chain.from_iterable(loader.epoch(epoch) for epoch in itertools.count())
    ready = next(batches)

    def bare():
        optimizer.zero_grad(set_to_none=True)
        with mixed:
            output = network(ready.images)
        (output.logits.sum() + output.embedding.sum()).backward()

    def whole(steps):
        some = enumerate(itertools.islice(batches, steps))
        train.train_one_epoch(network, objective, optimizer, guard, meter, some, mixed)

    return {
        "bare forward + backward": lambda steps: [bare() for _ in range(steps)],
        "data": lambda steps: [next(batches) for _ in range(steps)],
        "whole step": whole,
    }


def timed(function: Callable[[], Any], repeats: int, steps: int = 1) -> Times:
    """Times one of the ``steps`` of ``function()``, over about ``repeats`` calls; waits for the GPU."""
    timer = Timer("function()", globals={"function": function}, num_threads=torch.get_num_threads())
    timer.timeit(1)  # compiles, if anything does
    once = timer.timeit(1).median
    times = timer.blocked_autorange(min_run_time=repeats * max(once, LEAST_SECONDS)).times
    return statistics.median(times) / steps, min(times) / steps, max(times) / steps


def milliseconds(times: Times) -> str:
    """Formats ``median (shortest to longest)``."""
    return "{:,.2f} ({:,.2f} to {:,.2f})".format(*(1000 * seconds for seconds in times))


def publish(
    module: str, claim: str, device: torch.device, head: list[str], rows: list[list[str]], **measured: Any
) -> None:
    """Prints a table and writes it, with the measured values, to ``runs/benchmarks/<claim>-<device>.json``.
    ``module`` is the caller's ``__spec__.name``."""
    where = environment(device) | {"float32_matmul_precision": torch.get_float32_matmul_precision()}
    name = "cpu" if device.type == "cpu" else re.sub(r"[^a-z0-9]+", "-", where["device"].lower())
    path = RESULTS / f"{claim}-{name}.json"
    print(Table(head, rows, f"written: {path}").text(), flush=True)
    RESULTS.mkdir(parents=True, exist_ok=True)
    record = {"command": " ".join(["python -m", module, *sys.argv[1:]]), "environment": where}
    record |= {"table": {"head": head, "rows": rows}} | measured
    write_text(path, json.dumps(record, indent=1) + "\n")


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", type=torch.device, default="cpu")
    blocks = "timed blocks; further flags, such as --compile, are train.py's"
    parser.add_argument("--repeats", type=int, default=3, help=blocks)
    args, flags = parser.parse_known_args(argv)
    settings = train.parse_args(["--ds", "cifar10", *flags])
    torch.backends.cudnn.benchmark = True
    steps = STEPS_AN_EPOCH if args.device.type == "cuda" else 1
    parts = {
        name: timed(lambda part=part: part(steps), args.repeats, steps)
        for name, part in parts_of_a_step(settings, args.device).items()
    }
    bare, step = parts["bare forward + backward"][0], parts["whole step"][0]
    rows = [[name, milliseconds(times), f"{times[0] / step:.2%}"] for name, times in parts.items()]
    rows.append(["whole step less bare", f"{1000 * (step - bare):,.1f}", f"{1 - bare / step:.2%}"])
    rows.append([f"an epoch of {STEPS_AN_EPOCH} steps", f"{1000 * STEPS_AN_EPOCH * step:,.0f}", ""])
    views, outliers = 3 if settings.isac else 1, settings.ob if settings.oe else 0
    images = f"{settings.model}, {settings.batch_size} x {views} + {outliers} images"
    head = [images, "ms (lowest to highest)", "share of the step"]
    claim = re.sub(r"\W+", "-", " ".join(["train", *flags]))
    publish(__spec__.name, claim, args.device, head, rows, seconds=parts)


if __name__ == "__main__":
    exit_cleanly(main)
