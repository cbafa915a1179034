"""What a run has recorded of its epochs: its log, its best epoch, and what looks wrong."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from utils.errors import InputError
from utils.losses import TERMS
from utils.metrics import mean_class_accuracy
from utils.text_files import csv_text, write_text


def write_log(folder: Path, history: list[dict]) -> None:
    """Writes ``log.jsonl``, one JSON object per epoch, and ``log.csv``, whole: no gaps after resuming."""
    write_text(folder / "log.jsonl", "".join(json.dumps(record) + "\n" for record in history))
    write_text(folder / "log.csv", csv_text(history))


def best_epoch(history: list[dict]) -> int:
    """Returns the epoch, counted from 1, with the highest mean class accuracy on held-out images.

    It is the first of equals, and the last epoch without held-out images.
    """
    held_out = [record["val_accuracy"] for record in history if "val_accuracy" in record]
    accuracies = [mean_class_accuracy(of) for of in held_out if any(a is not None for a in of["per_class"])]
    return accuracies.index(max(accuracies)) + 1 if accuracies else len(history)


def doubts(history: list[dict]) -> Iterator[str]:
    """Yields what looks wrong after the last epoch of ``history``."""
    record = history[-1]
    if len(history) == 2 and record["loss"] >= history[0]["loss"]:
        yield "the loss has not fallen since the first epoch: try a smaller --lr"
    for kind in ("val", "train"):
        by_class = [a for a in record.get(f"{kind}_accuracy", {}).get("per_class", ()) if a is not None]
        if len(by_class) > 1 and sorted(by_class) == [0] * (len(by_class) - 1) + [1]:
            yield f"every {'held-out' if kind == 'val' else 'training'} image is taken for one class"


def tensorboard_writer(folder: Path) -> Any:
    """Returns a writer of TensorBoard's event files in a run directory.

    Raises:
        InputError: the package is missing.
    """
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        raise InputError("--tensorboard needs the package tensorboard: pip install tensorboard") from None
    return SummaryWriter(folder / "tensorboard")


def add_scalars(writer: Any, record: dict) -> None:
    """Writes an epoch's learning rate, loss terms and accuracies for TensorBoard."""
    values = {name: record[name] for name in ("lr", *TERMS)}
    for kind in ("train", "val"):
        accuracy = record.get(f"{kind}_accuracy", {})
        values |= {f"{kind}_accuracy/{name}": accuracy.get(name) for name in ("all", "many", "medium", "few")}
    for name, value in values.items():
        if value is not None:
            writer.add_scalar(name, value, record["epoch"])
    writer.flush()


def describe(record: dict, epochs: int) -> str:
    """Describes an epoch in one line."""
    kind = "val" if "val_accuracy" in record else "train"
    shots = {name: record[f"{kind}_accuracy"][name] for name in ("all", "many", "medium", "few")}
    known = [f"{name} {100 * value:.2f}" for name, value in shots.items() if value is not None]
    accuracies = " ".join(known) or "unknown, there are no images"
    terms = " ".join(f"{name} {record[name]:.4f}" for name in TERMS)
    head = f"epoch {record['epoch']}/{epochs}: {terms}"
    return f"{head} | {kind} accuracy %: {accuracies} | {record['seconds']:.1f} s"
