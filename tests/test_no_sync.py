"""A training step asks the device for nothing: no value returns to the host between checks of the guard."""

import contextlib

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from datasets.augment.views import cifar_views
from datasets.images import CIFAR_NORMALIZATION
from datasets.loader import TrainLoader
from models import build_model
from train import build_optimizer, parse_args, train_one_epoch
from utils import guard as guard_module
from utils.guard import StepGuard
from utils.history import EpochMeter
from utils.losses import PATTLoss

# Operators whose result, or whose result's shape, depends on values: on a GPU each waits for the device.
WAITING = {
    "_local_scalar_dense",
    "nonzero",
    "item",
    "is_nonzero",
    "masked_select",
    "unique_dim",
    "_unique2",
    "equal",
}


class Watch(TorchDispatchMode):
    """Notes the operators that would wait."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = function.overloadpacket.__name__
        indices = args[1] if name in ("index", "index_put", "index_put_") else ()
        if name in WAITING or any(i is not None and i.dtype == torch.bool for i in indices):
            self.seen.append(name)
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("schedule, optimizer", [("epoch", "adam"), ("running", "sgd")])
def test_a_step_does_not_wait_for_the_device(schedule, optimizer, monkeypatch):
    monkeypatch.setitem(guard_module.CHECK_EVERY, "cpu", 1000)
    model = build_model("ResNet20", 4)
    criterion = PATTLoss([9, 5, 3, 2], model.embedding_dim, oe_weight=0.1, tla_weight=0.5, schedule=schedule)
    optimizer = build_optimizer(model, parse_args(["--ds", "digits", "--opt", optimizer]))
    guard, meter = StepGuard(optimizer, [model, criterion], 3), EpochMeter(4, torch.device("cpu"))
    images = torch.randint(0, 256, (16, 3, 32, 32), dtype=torch.uint8)
    loader = TrainLoader(
        images,
        torch.arange(16) % 4,
        images,
        cifar_views(),
        batch_size=4,
        outlier_batch_size=4,
        contrastive=True,
        seed=0,
        normalization=CIFAR_NORMALIZATION,
        outlier_normalization=CIFAR_NORMALIZATION,
        device=torch.device("cpu"),
    )
    batches = list(enumerate(loader.epoch(0)))
    guard.check = lambda: None
    with Watch() as watch:
        train_one_epoch(model, criterion, optimizer, guard, meter, batches, contextlib.nullcontext())
    assert watch.seen == []
    assert meter.steps == len(batches)


def test_the_watch_sees_what_it_is_for():
    x = torch.tensor([1.0, -1.0])
    with Watch() as watch:
        float(x.sum())
        x[x > 0]
        x.nonzero()
    assert set(watch.seen) >= {"_local_scalar_dense", "index", "nonzero"}
