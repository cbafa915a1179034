import pytest
import torch

from models import build_model
from utils.errors import InputError
from utils.guard import StepGuard
from utils.history import EpochMeter
from utils.losses import PATTLoss

BATCH, OUTLIERS = 4, 3
LABELS = torch.tensor([0, 1, 2, 0])


class Run:
    """A small network and criterion, trained on random images."""

    def __init__(self, kind, max_bad_steps=3):
        torch.manual_seed(0)
        self.model = build_model("ResNet20", 3).train()
        self.criterion = PATTLoss([9, 5, 2], 64, oe_weight=0.1, tla_weight=0.5)
        parameters = self.model.parameters()
        shared = {"lr": 1e-2, "weight_decay": 5e-4, "fused": True}
        if kind == "adam":
            self.optimizer = torch.optim.Adam(parameters, **shared)
        else:
            self.optimizer = torch.optim.SGD(parameters, momentum=0.9, nesterov=True, **shared)
        self.guard = StepGuard(self.optimizer, [self.model, self.criterion], max_bad_steps)
        self.criterion.start_epoch()
        self.guard.remember()

    def step(self, number, spoil=None):
        """``spoil``: "input" puts a NaN in one image, "gradient" in one gradient; "scale" makes images whose
        batch variance overflows, which BatchNorm's output, the loss and the gradient do not show."""
        g = torch.Generator().manual_seed(number)
        images = torch.randn(3 * BATCH + OUTLIERS, 3, 8, 8, generator=g)
        if spoil == "input":
            images[2 * BATCH, 0, 0, 0] = float("nan")
        if spoil == "scale":
            images *= 1e20
        output = self.model(images)
        terms = self.criterion(output.logits, output.embedding, LABELS)
        self.optimizer.zero_grad(set_to_none=True)
        terms["loss"].backward()
        if spoil == "gradient":
            self.model.conv1.weight.grad[0, 0, 0, 0] = float("inf")
        return bool(self.guard.step(terms, torch.tensor([17, 4, 8, 99]), number))

    def state(self):
        model = self.model.state_dict().items()
        weights = {f"model.{k}": v for k, v in model if not k.endswith("num_batches_tracked")}
        statistics = {f"criterion.{k}": v for k, v in self.criterion.state_dict().items()}
        moments = {
            f"optimizer.{i}.{k}": v
            for i, of_one in self.optimizer.state_dict()["state"].items()
            for k, v in of_one.items()
        }
        return {k: v.clone() for k, v in (weights | statistics | moments).items()}


def identical(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


@pytest.mark.parametrize("kind", ["adam", "sgd"])
@pytest.mark.parametrize("spoil", ["input", "gradient", "scale"])
def test_a_bad_step_changes_nothing_and_is_reported(kind, spoil, capsys):
    run = Run(kind)
    assert run.step(0) and run.step(1)
    before = run.state()
    capsys.readouterr()
    assert not run.step(2, spoil)
    assert identical(before, run.state())
    report = capsys.readouterr().err
    assert "step 2" in report and "[17, 4, 8, 99]" in report
    assert ("gradient" in report) == (spoil != "scale")
    assert ("running statistics" in report) == (spoil != "gradient")
    assert ("isac" in report) == (spoil == "input")
    assert report.count("\n") == 1


@pytest.mark.parametrize("kind", ["adam", "sgd"])
@pytest.mark.parametrize("first", [True, False])
def test_training_goes_on_as_if_the_bad_step_had_not_been(kind, first):
    """Even where it is the very first one, when the optimiser has no moments yet."""
    run, clean = Run(kind), Run(kind)
    for number in range(4):
        if number == (0 if first else 2):
            run.step(50, "input")
        assert run.step(number) and clean.step(number)
    assert identical(run.state(), clean.state())


@pytest.mark.parametrize("kind", ["adam", "sgd"])
def test_a_guarded_optimiser_steps_like_a_plain_one(kind):
    """On the same gradients."""
    run, plain = Run(kind), list(Run(kind).model.parameters())
    shared = {k: v for k, v in run.optimizer.defaults.items() if k not in ("fused", "differentiable")}
    optimizer = type(run.optimizer)(plain, **shared)
    for number in range(3):
        run.step(number)
        for ours, theirs in zip(run.model.parameters(), plain, strict=True):
            theirs.grad = ours.grad
        optimizer.step()
    for ours, theirs in zip(run.model.parameters(), plain, strict=True):
        assert torch.allclose(ours, theirs, atol=1e-6)


def test_bad_steps_in_a_row_stop_the_run_naming_the_term():
    run = Run("adam", max_bad_steps=2)
    before = run.state()
    run.step(0, "input")
    with pytest.raises(InputError, match="step 1: isac"):
        run.step(1, "input")
    assert all(torch.equal(v, run.state()[k]) for k, v in before.items())


def test_a_good_step_between_bad_ones_starts_the_count_again():
    run = Run("adam", max_bad_steps=2)
    for number in range(0, 6, 2):
        run.step(number, "input")
        run.step(number + 1)
    assert run.guard.bad_in_row == 0


def test_a_bad_step_is_not_counted_among_an_epochs_losses():
    meter = EpochMeter(3, torch.device("cpu"))
    logits = torch.eye(3)
    for value, applied in ((1.0, True), (float("nan"), torch.tensor(False)), (3.0, torch.tensor(True))):
        terms = dict.fromkeys(("loss", "isac", "tla", "oe"), torch.tensor(value))
        meter.add(terms, logits, torch.tensor([0, 1, 2]), applied)
    assert meter.losses() == dict.fromkeys(("loss", "isac", "tla", "oe"), 2.0)
