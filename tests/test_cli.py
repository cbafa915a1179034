"""The command lines end to end, on data that the tests make."""

import csv
import dataclasses
import json

import numpy as np
import pytest
import torch
from cifar_files import write_cifar10, write_ood_set
from command_line import (
    DIGITS,
    DIGITS_NETWORK,
    assert_one_sentence,
    assert_same,
    load_script,
    run,
)

import train
from models import build_model
from utils import results as results_module
from utils.detector import Detector

METRICS = {"auroc", "aupr_in", "aupr_out", "fpr95", "fpr95_id"}
evaluation = load_script("test")
NOISE = "--gpu cpu --dout noise --num_ood_samples 50".split()  # a small evaluation


@pytest.mark.filterwarnings("ignore:the files in")
@pytest.mark.parametrize("ds,settings", [("cifar10", ()), ("cifar100", ("--rho", 0.1, "--ob", 64))])
def test_the_papers_command_lines(ds, settings, data, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    out = tmp_path / "OUT"
    small = ("--md", "ResNet20", "-e", 1, *settings)
    common = ("--gpu", 0, "--ds", ds)
    assert (
        run(train.main, *common, "--Lambda1", 0.5, "--Lambda2", 0.1, "--drp", data, "--srp", out, *small) == 0
    )
    assert "no CUDA device" in capsys.readouterr().out
    args = json.loads((out / "args.json").read_text())
    assert (args["Lambda1"], args["Lambda2"], args["tem_scale"], args["seed"]) == (0.5, 0.1, 0.9, 3407)
    assert args["environment"]["torch"] == str(torch.__version__)
    records = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    assert len(records) == 1
    assert records[0]["loss"] == pytest.approx(
        sum(w * records[0][t] for w, t in ((1, "isac"), (0.1, "tla"), (0.5, "oe")))
    )
    assert {"training.png", "latest.pth"} <= {p.name for p in out.iterdir()}

    assert run(evaluation.main, *common, "--FC", "True", "--drp", data, "--ckpt_path", out) == 0
    printed = capsys.readouterr().out
    results = json.loads((out / "results.json").read_text())
    assert {"dataset", "checkpoint", "environment"} <= results.keys() and results["ood_resize"] == "squash"
    scores = {"energy", "msp", "maxlogit", "knn", "vmf", "mahalanobis"}
    assert len(results["rows"]) == 6 * len(results["mean"]) and len(results["accuracy"]) == 2
    assert {(m["calibration"], m["score"]) for m in results["mean"]} >= {
        (way, score) for way in ("none", "fc") for score in scores
    }
    keys = {"ood", "calibration", "fc", "score", "n_id", "n_ood"}
    assert all(keys | METRICS == row.keys() for row in results["rows"])
    classes = 10 if ds == "cifar10" else 100
    test_size = 30 if ds == "cifar10" else 100
    assert all(len(row["per_class"]) == classes for row in results["accuracy"])
    for row in results["rows"]:  # one of tin's images is semantically ID
        assert (row["n_id"], row["n_ood"]) == (test_size + (row["ood"] == "tin"), 3)
    for name in {row["ood"] for row in results["rows"]} | {"mean", "macro-F1"}:
        assert name in printed and name in (out / "results.md").read_text()
    assert {"scores.png", "roc.png"} <= {p.name for p in out.iterdir()}
    with open(out / "results.csv", newline="") as file:
        table = list(csv.DictReader(file))
    for line, row in zip(table, results["rows"], strict=True):
        assert line.pop("dataset") == ds and line.pop("fc_strength") == ("1.0" if row["fc"] else "")
        assert line == {key: str(value) for key, value in row.items()}


@pytest.mark.parametrize(
    "flag,ways",
    [
        ((), ["none", "fc", "probe"]),
        (("--FC",), ["none", "fc"]),
        (("--FC", "no"), ["none"]),
        (("--score", "combined", "--FC", "no"), ["none"]),
        (("--calibration", "probe", "none"), ["none", "probe"]),
        (("--calibration", "fc"), ["fc"]),
    ],
)
def test_fc_and_calibration_mean_what_they_say(flag, ways, digits_run, tmp_path):
    argv = [*NOISE, "--ckpt_path", digits_run / "latest.pth", "--srp", tmp_path, *flag]
    assert run(evaluation.main, *argv) == 0
    results = json.loads((tmp_path / "results.json").read_text())
    assert [a["calibration"] for a in results["accuracy"]] == ways
    assert {(row["calibration"], row["fc"]) for row in results["rows"]} == {(w, w == "fc") for w in ways}
    with_probe = "probe" in ways or "combined" in flag
    assert results["num_ood_samples"] == (50 if ways != ["none"] or with_probe else 0)
    assert results["vmf"].get("none") in (None, "class statistics of the checkpoint")
    if not with_probe:
        assert not {"probe", "combined"} & {row["score"] for row in results["rows"]}
    assert ("combined" in {row["score"] for row in results["rows"]}) >= with_probe


def test_no_test_image_changes_what_is_fitted(digits_run, tmp_path, monkeypatch):
    """Attention, probe and every score, whatever the test images and OOD sets are."""
    fitted, inverted = [], False
    fit, digits = results_module.fit_calibrations, evaluation.BENCHMARKS["digits"]

    def record(*args, **kwargs):
        calibrations, facts = fit(*args, **kwargs)
        fitted.append({name: (way.state(), of.state()) for name, (way, of) in calibrations.items()})
        return calibrations, facts

    def changed(images):
        return images._replace(images=255 - images.images) if inverted else images

    def load_split(root, training):
        split = digits.load_split(root, training)
        return split if training else changed(split)

    def load_ood(*args):
        return {name: changed(images) for name, images in digits.load_ood(*args).items()}

    monkeypatch.setattr(results_module, "fit_calibrations", record)
    replaced = dataclasses.replace(digits, load_split=load_split, load_ood=load_ood)
    monkeypatch.setitem(evaluation.BENCHMARKS, "digits", replaced)
    rows = []
    for inverted in (False, True):  # noqa: B007  (changed reads it)
        argv = ["--gpu", "cpu", "--ckpt_path", digits_run, "--srp", tmp_path, "--num_ood_samples", 100]
        assert run(evaluation.main, *argv) == 0
        rows.append(json.loads((tmp_path / "results.json").read_text())["rows"])
    assert_same(*fitted)
    assert rows[0] != rows[1]


@pytest.mark.parametrize(
    "flags",
    [
        ["--calibration", "auto"],  # of a run that held out no images
        ["--calibration", "auto", "none"],
        ["--fc_strength", 0.5, "--calibration", "probe"],
        ["--calibration_split", "test", "--calibration", "none"],
    ],
)
def test_flags_that_ask_for_the_impossible(flags, digits_run, tmp_path, capsys):
    argv = ["--gpu", "cpu", "--ckpt_path", digits_run, "--srp", tmp_path]
    assert_one_sentence(capsys, run(evaluation.main, *argv, *flags), flags[0])
    assert not list(tmp_path.iterdir())


def test_fc_and_calibration_do_not_contradict_each_other(digits_run, capsys):
    argv = ["--ckpt_path", digits_run, "--FC", "True", "--calibration", "probe"]
    assert run(evaluation.main, *argv) == 2 and "not allowed with argument" in capsys.readouterr().err


def test_without_outliers_everything_that_needs_none_works(tmp_path, capsys):
    """As where nobody has the withdrawn TinyImages."""
    torch.save(build_model("ResNet20", 10).state_dict(), tmp_path / "weights.pth")
    write_cifar10(tmp_path)
    write_ood_set(tmp_path, "cifar10", "svhn", [-1] * 3)
    argv = "--gpu cpu --ds cifar10 --md ResNet20 --dout svhn".split()
    argv += ["--drp", tmp_path, "--ckpt_path", tmp_path / "weights.pth", "--srp", tmp_path]
    assert run(evaluation.main, *argv) == 0
    assert "300K_random_images.npy" in capsys.readouterr().err
    results, accuracy = table_of(tmp_path)
    assert accuracy.keys() == {"none"} and "300K_random_images.npy" in " ".join(results["notes"])
    assert not {"probe", "combined"} & {row["score"] for row in results["rows"]}
    with pytest.warns(UserWarning, match="--val_fraction"):
        assert Detector.load(tmp_path).score == "energy"
    for flags in (["--FC"], ["--score", "combined"]):
        assert_one_sentence(capsys, run(evaluation.main, *argv, *flags), "300K_random_images.npy")
    assert_one_sentence(capsys, run(evaluation.main, *argv, "--dout", "tin"), "--dout without a name")
    assert run(evaluation.main, *argv, "--dout") == 0
    results, alone = table_of(tmp_path)
    assert alone == accuracy and not results["rows"] and not (tmp_path / "results.csv").exists()
    assert "accuracy alone" in " ".join(results["notes"])


def test_calibration_on_the_test_split_is_possible_and_warned_of(digits_run, tmp_path, capsys):
    argv = [*NOISE, "--ckpt_path", digits_run, "--srp", tmp_path]
    assert run(evaluation.main, *argv, "--calibration_split", "test", "--score", "msp", "--tnorm") == 0
    captured = capsys.readouterr()
    assert "warning: " in captured.err and "TEST" in captured.err and "score: msp" in captured.out
    results = json.loads((tmp_path / "results.json").read_text())
    assert results["calibration_split"] == "test" and results["tnorm"] is True and results["score"] == "msp"
    table = captured.out.index("| OOD set")
    for text in (captured.out[:table], (tmp_path / "results.md").read_text()):
        assert "TEST images, a leak" in text and "--tnorm" in text
        assert "digits, ResNet20, rho 0.1, normalization digits, seed 3407, epoch 1 of 1, score msp" in text
    assert len(results["notes"]) == 1 and "leak" in results["notes"][0]
    assert not (tmp_path / "detector.pth").exists()


def test_the_parts_of_the_method_can_be_left_out(tmp_path, capsys):
    argv = [*DIGITS, *"--isac False --tla False --oe False --val_fraction 0.2 --opt sgd --lr 0.1".split()]
    assert run(train.main, *argv, "--srp", tmp_path, "--figures", "svg") == 0
    pictures = {p.name for p in tmp_path.iterdir() if p.suffix in (".svg", ".png")}
    assert pictures == {"training.svg"}
    record = json.loads((tmp_path / "log.jsonl").read_text())
    assert record["isac"] == record["oe"] == 0 and record["loss"] == record["tla"] > 0
    of_classes = record["val_accuracy"]["per_class"]
    assert f"mean of classes {100 * np.mean(of_classes):.2f}" in capsys.readouterr().out
    flags = ("--calibration", "auto", "--figures", "pdf")
    assert run(evaluation.main, "--gpu", "cpu", "--ckpt_path", tmp_path, *flags) == 0
    assert {p.name for p in tmp_path.glob("*.pdf")} == {"scores.pdf", "roc.pdf"}
    assert "  chosen" in capsys.readouterr().out
    results = json.loads((tmp_path / "results.json").read_text())
    chosen = results["auto"]["chosen"]["calibration"]
    assert [a["calibration"] for a in results["accuracy"]] == list(dict.fromkeys(["none", chosen]))
    # Without the contrast, training kept no statistics.
    assert set(results["vmf"].values()) == {"training features"}


def test_a_published_checkpoint_with_a_prefix_and_other_keys(tmp_path, capsys):
    state = build_model("ResNet20", 8).state_dict().items()
    weights = {f"module.{k}": v for k, v in state if not k.endswith("num_batches_tracked")}
    torch.save(
        {
            "state_dict": weights | {"module.projection.0.weight": torch.ones(2)},
            "epoch": 7,
            "many_accs": [np.float64(0.5)],
        },
        tmp_path / "published.pth",
    )
    argv = [*DIGITS_NETWORK, "--ckpt_path", tmp_path / "published.pth"]
    argv += ["--dout", "digits89", "--num_ood_samples", 50]
    assert run(evaluation.main, *argv) == 0
    assert "'projection.0.weight'" in capsys.readouterr().out
    plain, released = (tmp_path / name / "results.json" for name in ("published.pth.results", "released"))
    assert run(evaluation.main, *argv, "--depart", "normalization", "--srp", released.parent) == 0
    for one, other in zip(*(json.loads(file.read_text())["rows"] for file in (plain, released)), strict=True):
        if not one["fc"]:
            assert one["auroc"] == other["auroc"]  # the probe is not the release's
        elif one["score"] == "energy":
            assert one["auroc"] != other["auroc"]


def table_of(folder):
    results = json.loads((folder / "results.json").read_text())
    return results, {row["calibration"]: row["all"] for row in results["accuracy"]}


def test_what_is_assumed_of_a_bare_checkpoint_is_said_over_the_table_and_in_the_results(
    digits_run, tmp_path, capsys
):
    """The data set by the number of outputs, the network by its keys."""
    state = torch.load(digits_run / "latest.pth")
    torch.save(state["model"], tmp_path / "bare.pth")
    argv = ["--gpu", "cpu", "--dout", "noise", "--num_ood_samples", 50]
    assert run(evaluation.main, *argv, "--ckpt_path", digits_run, "--srp", tmp_path / "own") == 0
    assert "**Note:**" not in capsys.readouterr().out
    assert run(evaluation.main, *argv, "--ckpt_path", tmp_path / "bare.pth") == 0
    captured, said = capsys.readouterr(), "assumed --ds digits --rho 0.02 --normalization digits"
    folder = tmp_path / "bare.pth.results"
    results, accuracy = table_of(folder)
    assert said in captured.err and said in captured.out[: captured.out.index("| OOD set")]
    assert said in results["notes"][0] and said in (folder / "results.md").read_text()
    assert (results["network"], results["rho"], results["seed"]) == ("ResNet20", 0.02, None)
    assert accuracy["none"] == table_of(tmp_path / "own")[1]["none"]
    given = ["--ds", "digits", "--rho", 0.02, "--normalization", "digits"]
    assert run(evaluation.main, *argv, *given, "--ckpt_path", tmp_path / "bare.pth") == 0
    assert table_of(folder)[0]["notes"] == []


def test_the_normalisation_is_a_flag_of_training_and_of_evaluation(tmp_path, capsys):
    argv = ["--gpu", "cpu", "--dout", "noise", "--FC", "False"]
    assert run(train.main, *DIGITS, "--normalization", "none", "--srp", tmp_path) == 0
    assert run(evaluation.main, *argv, "--ckpt_path", tmp_path) == 0
    results, as_trained = table_of(tmp_path)
    assert results["normalization"] == "none" and results["notes"] == []
    capsys.readouterr()
    status = run(evaluation.main, *argv, "--ckpt_path", tmp_path, "--normalization", "cifar")
    assert_one_sentence(capsys, status, "--normalization cifar contradicts")
    torch.save(torch.load(tmp_path / "latest.pth")["model"], tmp_path / "bare.pth")
    for name in ("none", "imagenet"):
        bare = ["--ckpt_path", tmp_path / "bare.pth", "--normalization", name, "--srp", tmp_path / name]
        assert run(evaluation.main, *argv, *bare) == 0
    assert table_of(tmp_path / "none")[1] == as_trained
    assert table_of(tmp_path / "imagenet")[0]["rows"] != results["rows"]


def test_an_unfinished_run_is_said_to_be_one(digits_run, tmp_path, capsys):
    state = torch.load(digits_run / "latest.pth")
    state["args"]["epochs"], state["finished"] = 30, False
    torch.save(state, tmp_path / "latest.pth")
    argv = ["--gpu", "cpu", "--dout", "noise", "--FC", "False", "--ckpt_path", tmp_path / "latest.pth"]
    assert run(evaluation.main, *argv) == 0
    results, _ = table_of(tmp_path)
    assert (results["epoch"], results["epochs"], results["seed"]) == (1, 30, 3407)
    said = "the run is unfinished: epoch 1 of 30"
    assert results["notes"] == [said] and said in capsys.readouterr().out
