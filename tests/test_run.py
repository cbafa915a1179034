"""A run in its directory: it resumes with its own flags, says what it is doing, and refuses what cannot
work."""

import json
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from command_line import load_script, run

import train
from models import build_model
from utils.checkpoint import is_unfinished, open_checkpoint
from utils.distributed import autocast
from utils.evaluation_script import data_of_run
from utils.history import best_epoch, doubts

TINY = (
    "--ds digits --gpu cpu --rho 0.1 --val_fraction 0.9 -b 8 --ob 8 --num_ood_samples 32 --lr 0.002".split()
)


def test_the_validation_accuracy_does_not_depend_on_the_rounding_of_bf16():
    """The logits of both classes are one number in bf16, and the first of equals would win."""
    model = build_model("ResNet20", 2)
    with torch.no_grad():
        model.linear.weight[:] = torch.tensor([[1.0], [1.001]])
        model.linear.bias.zero_()
    batches, mixed = [(torch.rand(6, 3, 8, 8), torch.ones(6).long())], autocast(torch.device("cpu"), "bf16")
    with mixed, torch.inference_mode():
        assert (model.eval()(batches[0][0]).logits.argmax(dim=1) == 0).all()
    assert train.accuracy(model, batches, [9, 3], "cpu", mixed)["per_class"] == [None, 1.0]


def test_an_evaluation_finds_the_data_where_the_run_had_them():
    def where(script, stored, defaults, *words):
        return data_of_run(load_script(script).parse_args(["--ckpt_path", "x", *words]), stored, defaults)

    stored, default = {"drp": "/images"}, {"drp": Path("data")}
    assert where("test", stored, default) == {"drp": Path("/images")}
    assert where("test", stored, default, "--drp", "elsewhere") == {"drp": Path("elsewhere")}
    assert where("test", {}, default) == default


def test_outliers_are_augmented_as_view_1_only_if_asked_for(monkeypatch, tmp_path):
    views = []
    monkeypatch.setattr(train, "train", lambda args, compute, data, *_: views.append(data.loader.views))
    for asked in ([], ["--strong_outliers"]):
        assert run(train.main, *TINY, *asked, "--srp", tmp_path) == 0
    assert [v.outlier is v.strong for v in views] == [False, True]


def test_a_head_is_trained_and_left_out_of_the_evaluation(tmp_path, capsys):
    assert run(train.main, *TINY, "-e", 1, "--head", "--srp", tmp_path) == 0
    state = open_checkpoint(tmp_path)
    assert state["args"]["head"] is True and "head.0.weight" in state["model"]
    assert state["criterion"]["statistics.mean_direction"].shape[1] == 128
    evaluation = load_script("test")
    assert run(evaluation.main, "--gpu", "cpu", "--ckpt_path", tmp_path, "--calibration", "none") == 0
    assert "left out" not in capsys.readouterr().out
    results = json.loads((tmp_path / "results.json").read_text())
    assert results["vmf"] == {"none": "training features"}


def history(*accuracies, losses=(1.0,) * 9):
    pairs = zip(losses, accuracies, strict=False)
    return [{"loss": loss, "val_accuracy": {"per_class": list(by_class)}} for loss, by_class in pairs]


def test_a_loss_that_does_not_fall_and_one_class_for_all_images_are_warned_about():
    fine = [(0.5, 0.6)] * 2
    assert list(doubts(history(*fine, losses=(2.0, 1.0)))) == []
    assert "loss" in " ".join(doubts(history(*fine)))
    warming_up = [{"lr": rate, "loss": 1.0} for rate in (1, 2, 3, 3)]
    assert [len(list(doubts(warming_up[:n]))) for n in (1, 2, 3, 4)] == [0, 0, 0, 1]
    assert list(doubts([*warming_up[:3], warming_up[3] | {"train_accuracy": {"all": 0.5}}])) == []
    assert "one class" in " ".join(doubts(history((0, 1, 0, None))))


def test_tensorboard_and_csv_have_the_logs_numbers_and_a_missing_package_is_named(
    tmp_path, capsys, monkeypatch
):
    written = []
    writer = SimpleNamespace(add_scalar=lambda *scalar: written.append(scalar), flush=list)
    package = SimpleNamespace(SummaryWriter=lambda folder: writer)
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", package)
    assert run(train.main, *TINY, "-e", 2, "--tensorboard", "--srp", tmp_path / "with") == 0
    records = [json.loads(line) for line in (tmp_path / "with" / "log.jsonl").read_text().splitlines()]
    assert all(("loss", record["loss"], record["epoch"]) in written for record in records)
    assert ("val_accuracy_all", records[1]["val_accuracy"]["all"], 2) in written
    header, *rows = (tmp_path / "with" / "log.csv").read_text().splitlines()
    second = dict(zip(header.split(","), rows[1].split(","), strict=True))
    assert len(rows) == 2 and float(second["loss"]) == records[1]["loss"]
    cells = [second[f"train_accuracy_per_class_{c}"] for c in range(8)]
    assert [float(cell) if cell else None for cell in cells] == records[1]["train_accuracy"]["per_class"]
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    assert run(train.main, *TINY, "-e", 1, "--tensorboard", "--srp", tmp_path / "without") == 2
    assert "--tensorboard" in capsys.readouterr().err


def test_the_best_epoch_has_the_highest_mean_class_accuracy():
    assert best_epoch(history((0.9, 0.1, None), (0.6, 0.6, None), (0.5, 0.7, None), (1, 0, None))) == 2
    assert best_epoch([{"loss": 1.0}] * 3) == 3


def test_the_best_epoch_is_kept_and_patience_ends_the_run(tmp_path, capsys):
    words = [*TINY, "-e", 6, "--val_fraction", 0.5, "--lr", 1e-9, "--patience", 1, "--warmup_epochs", 1]
    assert run(train.main, *words, "--srp", tmp_path) == 0
    assert "--patience" in capsys.readouterr().out
    latest, best = (torch.load(tmp_path / name) for name in ("latest.pth", "best.pth"))
    assert [record["lr"] for record in latest["history"][:2]] == pytest.approx([0.5e-9, 0.933e-9], rel=1e-3)
    assert latest["epoch"] < 6 and latest["finished"] and best["finished"]
    assert best["epoch"] == best_epoch(latest["history"]) and latest["epoch"] == best["epoch"] + 1
    assert not is_unfinished(latest) and is_unfinished(latest | {"finished": False})
    assert run(train.main, "--gpu", "cpu", "--resume", tmp_path, "--srp", tmp_path / "moved") == 0
    assert torch.load(tmp_path / "moved" / "best.pth")["epoch"] == best["epoch"]
    assert (tmp_path / "moved" / "log.jsonl").read_bytes() == (tmp_path / "log.jsonl").read_bytes()
    assert run(train.main, "--gpu", "cpu", "--resume", tmp_path / "moved") == 0
    assert str(tmp_path / "moved") in capsys.readouterr().out.splitlines()[-2]
    best["model"]["linear.weight"].zero_()
    best["model"]["linear.bias"].copy_(torch.arange(8))  # takes every image for class 7
    torch.save(best, tmp_path / "best.pth")
    where = ["--gpu", "cpu", "--ckpt_path", tmp_path, "--calibration", "none", "--dout", "noise"]
    assert run(load_script("test").main, *where, "--select", "best") == 0
    results = json.loads((tmp_path / "results.json").read_text())
    assert results["accuracy"][0]["per_class"] == [0] * 7 + [1] and results["epoch"] == best["epoch"]


@pytest.mark.parametrize(
    "flags, said",
    [
        (["--patience", 2, "--val_fraction", 0], "--val_fraction"),
        (["--head", "--isac", "False"], "--head"),
        (["--depart", "statistics", "--isac", "False"], "--depart statistics"),
        (["--strong_outliers", "--oe", "False"], "--strong_outliers"),
        (["-b", 1], "--batch_size must be at least 2"),
        (["-b", 5000], "--batch_size 5000"),
        (["--num_ood_samples", 4], "--ood_batch_size 8"),
    ],
)
def test_flags_that_do_not_fit_each_other_or_the_data_are_refused(flags, said, tmp_path, capsys):
    assert run(train.main, *TINY, *flags, "--srp", tmp_path / "out") == 2
    assert said in capsys.readouterr().err and not (tmp_path / "out").exists()
