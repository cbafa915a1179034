"""Does a device compute what the CPU computes? python -m benchmarks.correctness --device cuda

The views, a training step in fp32 without TF32 (losses, gradients, class statistics, weights), its losses in
bf16, and a step of each optimiser whose loss is not finite: all are made on the CPU and on the device from
the same numbers.
"""

import argparse
from collections.abc import Iterable

import torch
from torch import Tensor

from benchmarks.speed import publish
from datasets.augment.views import cifar_views
from datasets.loader import Batch
from models import build_model
from train import build_criterion, build_optimizer, parse_args, train_one_epoch
from utils.distributed import autocast
from utils.errors import InputError, exit_cleanly
from utils.guard import StepGuard
from utils.history import EpochMeter

COUNTS = [50, 20, 7, 2]
BATCH, OUTLIERS = 16, 32
# Largest relative difference that the order of sums explains; of views, the share of other values: a
# coordinate on the border of two pixels may be rounded either way. kappa is sensitive near R = 1.
BOUNDS = {"views": 1e-3, "losses": 1e-4, "gradients": 1e-3, "class statistics": 1e-3, "weights": 1e-4}
BOUNDS |= {"losses in bf16": 2e-2, "a bad step of sgd": 0.0, "a bad step of adam": 0.0}


def seeded() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def flat(tensors: Iterable[Tensor]) -> Tensor:
    return torch.cat([tensor.detach().double().flatten().cpu() for tensor in tensors])


def views_on(device: torch.device) -> Tensor:
    images = torch.randint(0, 256, (256, 3, 32, 32), dtype=torch.uint8, generator=seeded()).to(device)
    return flat(view(images, seeded()) for view in cifar_views())


def step_on(
    device: torch.device, opt: str = "sgd", precision: str = "fp32", finite: bool = True
) -> dict[str, Tensor]:
    """Returns what one step of train.py leaves, and the weights that it began with."""
    torch.manual_seed(0)
    settings = parse_args(["--md", "ResNet20", "--opt", opt, "--lr", "0.1"])
    model = build_model("ResNet20", len(COUNTS))
    criterion = build_criterion(settings, COUNTS, model.embedding_dim).to(device)
    model.to(device, memory_format=torch.channels_last)
    begun = flat(model.parameters())
    guard = StepGuard(build_optimizer(model, settings), [model, criterion], 2)
    images = torch.randn(3 * BATCH + OUTLIERS, 3, 32, 32, generator=seeded())
    if not finite:
        images[0] = float("nan")
    labels = torch.randint(len(COUNTS), (BATCH,), generator=seeded())
    batch = Batch(images.to(device), labels.to(device), torch.arange(BATCH))
    meter = EpochMeter(len(COUNTS), device)
    mixed_precision = autocast(device, precision)
    train_one_epoch(model, criterion, guard.optimizer, guard, meter, [(0, batch)], mixed_precision)
    return {
        "losses": torch.tensor(list(meter.losses().values())),
        "gradients": flat(p.grad for p in model.parameters()),
        "class statistics": flat(criterion.statistics.state_dict().values()),
        "weights": flat(model.parameters()),
        "begun": begun,
    }


def relative(mine: Tensor, reference: Tensor) -> float:
    return float((mine - reference).norm() / reference.norm())


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", type=torch.device, default="cuda")
    device = parser.parse_args(argv).device
    torch.set_float32_matmul_precision("highest")
    torch.backends.cudnn.allow_tf32 = False
    cpu = torch.device("cpu")
    mine, reference = step_on(device), step_on(cpu)
    found = {"views": float(((views_on(device) - views_on(cpu)).abs() > 1e-4).double().mean())}
    found |= {name: relative(mine[name], reference[name]) for name in reference if name != "begun"}
    in_bf16 = [step_on(where, precision="bf16")["losses"] for where in (device, cpu)]
    found["losses in bf16"] = relative(*in_bf16)
    for opt in ("sgd", "adam"):
        bad = step_on(device, opt, finite=False)
        found[f"a bad step of {opt}"] = relative(bad["weights"], bad["begun"])
    wrong = [name for name, value in found.items() if not value <= BOUNDS[name]]
    head = ["device against CPU", "difference", "bound"]
    rows = [[name, f"{value:.1e}", f"{BOUNDS[name]:.0e}"] for name, value in found.items()]
    publish(__spec__.name, "correctness", device, head, rows, found=found)
    if wrong:
        raise InputError(f"{device} and the CPU do not agree in: {', '.join(wrong)}")


if __name__ == "__main__":
    exit_cleanly(main)
