"""An epoch's losses and accuracies, summed on the device and read once."""

import torch
from torch import Tensor

from utils.distributed import sum_over_processes
from utils.losses import TERMS
from utils.metrics import group_accuracies


class EpochMeter:
    """Sums of the loss terms over the applied steps, and of right answers by class over all."""

    def __init__(self, num_classes: int, device: torch.device | str):
        self.sums = torch.zeros(len(TERMS), dtype=torch.float64, device=device)
        self.steps = torch.zeros((), dtype=torch.float64, device=device)
        self.correct = torch.zeros(num_classes, dtype=torch.float64, device=device)
        self.total = torch.zeros(num_classes, dtype=torch.float64, device=device)

    @torch.no_grad()
    def add(
        self, terms: dict[str, Tensor], logits: Tensor, labels: Tensor, applied: Tensor | bool = True
    ) -> None:
        """Adds one step: the criterion's terms, and ``logits`` (B, C) for ``labels`` (B,); ``applied`` may
        live on the device."""
        values = torch.stack([terms[name].detach() for name in TERMS])
        applied = torch.as_tensor(applied, device=values.device)
        self.sums += torch.where(applied, values, 0.0)
        self.steps += applied
        self.add_answers(logits, labels)

    @torch.no_grad()
    def add_answers(self, logits: Tensor, labels: Tensor) -> None:
        """Counts right answers only."""
        self.correct.index_add_(0, labels, (logits.argmax(dim=1) == labels).double())
        self.total.index_add_(0, labels, torch.ones_like(labels, dtype=torch.float64))

    def state(self) -> dict[str, Tensor]:
        """Returns what has been summed, over all processes."""
        return {name: sum_over_processes(value.clone()) for name, value in vars(self).items()}

    def load_state(self, state: dict[str, Tensor]) -> None:
        """Takes the sums that :meth:`state` returned."""
        for name, value in state.items():
            getattr(self, name).copy_(value)

    def losses(self) -> dict[str, float]:
        """``{loss, isac, tla, oe}``: means over the steps (and processes)."""
        state = self.state()
        means = state["sums"] / state["steps"].clamp(min=1)
        return dict(zip(TERMS, means.tolist(), strict=True))

    def running_loss(self) -> float:
        """The mean loss of this process's steps so far; waits for the device."""
        return (self.sums[0] / self.steps.clamp(min=1)).item()

    def accuracies(self, class_counts: list[int]) -> dict:
        """See :func:`utils.metrics.group_accuracies`."""
        state = self.state()
        return group_accuracies(state["correct"].tolist(), state["total"].tolist(), class_counts)
