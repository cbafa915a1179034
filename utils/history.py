"""What a run records of its epochs: losses and accuracies, the log, the best epoch."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from utils.distributed import sum_over_processes
from utils.errors import InputError
from utils.losses import TERMS
from utils.metrics import group_accuracies, mean_class_accuracy
from utils.text_files import csv_text, flat, write_text


class EpochMeter:
    """Sums of the loss terms over the applied steps, and of right answers by class, on the device."""

    def __init__(self, num_classes: int, device: torch.device | str):
        def zeros(*shape):
            return torch.zeros(shape, dtype=torch.float64, device=device)

        self.sums, self.steps = zeros(len(TERMS)), zeros()
        self.correct, self.total = zeros(num_classes), zeros(num_classes)

    @torch.no_grad()
    def add(
        self, terms: dict[str, Tensor], logits: Tensor, labels: Tensor, applied: Tensor | bool = True
    ) -> None:
        """Adds a step: the criterion's terms, and ``logits`` (B, C) for ``labels`` (B,)."""
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
        for name, value in state.items():
            getattr(self, name).copy_(value)

    def losses(self) -> dict[str, float]:
        """``{loss, isac, tla, oe}``: means over the steps (and processes)."""
        state = self.state()
        means = state["sums"] / state["steps"].clamp(min=1)
        return dict(zip(TERMS, means.tolist(), strict=True))

    def running_loss(self) -> float:
        """This process's mean loss so far; waits for the device."""
        return (self.sums[0] / self.steps.clamp(min=1)).item()

    def accuracies(self, class_counts: list[int]) -> dict:
        """See :func:`utils.metrics.group_accuracies`."""
        state = self.state()
        return group_accuracies(state["correct"].tolist(), state["total"].tolist(), class_counts)


def write_log(folder: Path, history: list[dict]) -> None:
    """Writes ``log.jsonl``, one JSON object per epoch, and ``log.csv``, whole: no gaps after resuming."""
    write_text(folder / "log.jsonl", "".join(json.dumps(record) + "\n" for record in history))
    write_text(folder / "log.csv", csv_text(history))


def best_epoch(history: list[dict]) -> int:
    """Returns the first epoch, counted from 1, with the highest mean class accuracy on held-out images; the
    last one without such images."""
    held_out = [record["val_accuracy"] for record in history if "val_accuracy" in record]
    accuracies = [mean_class_accuracy(found) for found in held_out]
    return accuracies.index(max(accuracies)) + 1 if accuracies else len(history)


def doubts(history: list[dict]) -> Iterator[str]:
    """Yields what looks wrong after the last epoch of ``history``."""
    first, record = history[0], history[-1]
    rates = [earlier.get("lr", 0) for earlier in history]
    after_warm_up = len(history) == rates.index(max(rates)) + 2
    before, now = (of.get("train_accuracy", {}).get("all") or 0 for of in (first, record))
    if after_warm_up and record["loss"] >= first["loss"] and now <= before:
        yield "neither loss nor accuracy is better than after the first epoch: try a smaller --lr"
    for kind, images in (("val_accuracy", "held-out"), ("train_accuracy", "training")):
        by_class = [a for a in record.get(kind, {}).get("per_class", ()) if a is not None]
        if len(by_class) > 1 and sum(by_class) == max(by_class) == 1:
            yield f"all {images} images are assigned to one class"


def scalar_writer(folder: Path) -> Any:
    """Returns TensorBoard's writer in a run directory; raises InputError without the package."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        raise InputError("--tensorboard needs the package tensorboard: pip install tensorboard") from None
    return SummaryWriter(folder / "tensorboard")


def add_scalars(writer: Any, record: dict) -> None:
    """Writes an epoch's numbers, but for those of single classes, for TensorBoard."""
    for name, value in flat(record).items():
        if value is not None and "per_class" not in name:
            writer.add_scalar(name, value, record["epoch"])
    writer.flush()


def describe(record: dict, epochs: int) -> str:
    """Describes an epoch in one line."""
    kind = "val" if "val_accuracy" in record else "train"
    of = record[f"{kind}_accuracy"]
    shown = {name: of[name] for name in ("all", "many", "medium", "few")}
    if kind == "val":
        shown["mean of classes"] = mean_class_accuracy(of)  # what best.pth goes by
    accuracies = " ".join(f"{name} {100 * value:.2f}" for name, value in shown.items() if value is not None)
    terms = " ".join(f"{name} {record[name]:.4f}" for name in TERMS)
    head = f"epoch {record['epoch']}/{epochs}: {terms}"
    return f"{head} | {kind} accuracy %: {accuracies} | {record['seconds']:.1f} s"
