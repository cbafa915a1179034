"""The best epoch on held-out images, what looks wrong while training, and TensorBoard."""

import sys

import pytest
import torch
from command_line import run

import train
from utils.checkpoint import is_unfinished
from utils.history import best_epoch, doubts

TINY = "--ds digits --gpu cpu --rho 0.1 --val_fraction 0.9 -b 8 --ob 8 --num_ood_samples 32".split()


def error(capsys):
    return capsys.readouterr().err.strip().splitlines()[-1]


def history(*accuracies, losses=(2.0, 1.0)):
    return [
        {"loss": loss, "val_accuracy": {"per_class": list(by_class)}}
        for loss, by_class in zip([*losses, *[1.0] * len(accuracies)], accuracies, strict=False)
    ]


def test_the_best_epoch_has_the_highest_mean_class_accuracy():
    assert best_epoch(history((0.9, 0.1, None), (0.6, 0.6, None), (0.5, 0.7, None), (1, 0, None))) == 2
    assert best_epoch([{"loss": 1.0}] * 3) == 3
    assert best_epoch(history((None, None), (None, None))) == 2  # a set too small to hold images out


@pytest.mark.parametrize(
    "records, word",
    [
        (history((0.5, 0.5), (0.5, 0.5), losses=(1.0, 1.0)), "loss"),
        (history((0, 1, 0, None)), "one class"),
        (history((0.5, 0.6), (0.5, 0.6)), None),
    ],
)
def test_what_looks_wrong_is_said(records, word):
    said = " ".join(doubts(records))
    assert word in said if word else not said


def test_the_best_epoch_is_kept_and_patience_ends_the_run(tmp_path, capsys):
    words = [*TINY, "-e", 6, "--val_fraction", 0.5, "--lr", 1e-9, "--patience", 1, "--srp", tmp_path]
    assert run(train.main, *words) == 0
    assert "--patience" in capsys.readouterr().out
    latest, best = (torch.load(tmp_path / name) for name in ("latest.pth", "best.pth"))
    assert latest["epoch"] < 6 and latest["finished"] and best["finished"]
    assert best["epoch"] == best_epoch(latest["history"]) and latest["epoch"] == best["epoch"] + 1
    assert not is_unfinished(latest) and is_unfinished(latest | {"finished": False})


def test_patience_needs_held_out_images(tmp_path, capsys):
    assert run(train.main, "--ds", "digits", "--gpu", "cpu", "--patience", 2, "--srp", tmp_path) == 2
    assert "--val_fraction" in error(capsys)


def test_without_its_package_tensorboard_is_refused(tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    assert run(train.main, *TINY, "-e", 1, "--tensorboard", "--srp", tmp_path) == 2
    assert "--tensorboard" in error(capsys)
