"""The command lines end to end, on data that the tests make."""

import csv
import dataclasses
import json
import os
import pickle
import signal
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
import torch
from command_line import ROOT, load_script, run
from PIL import Image

import train
from datasets.loader import TrainLoader
from datasets.long_tail import long_tail_counts
from models import build_model
from utils.run.runlog import RunDirectory
from utils.run.signals import EXIT_STOPPED

METRICS = {"auroc", "aupr_in", "aupr_out", "fpr95", "fpr95_id"}
DIGITS = "--ds digits --gpu cpu --rho 0.1 -b 128 --ob 32 -e 1".split()


evaluation = load_script("test")


def start_process(script, *argv, **settings):
    environment = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    return subprocess.Popen(
        [sys.executable, ROOT / script, *map(str, argv)],
        env=environment,
        cwd=ROOT,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        **settings,
    )


def write_batch(path, labels, key, seed=0):
    images = np.random.default_rng(seed).integers(0, 256, (len(labels), 3072), dtype=np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(pickle.dumps({b"data": images, key: labels}, protocol=2))


def write_ood_set(root, benchmark, name, labels):
    folder = root / "data" / "images" / name
    folder.mkdir(parents=True, exist_ok=True)
    lines = []
    for i, label in enumerate(labels):
        pixels = np.random.default_rng(i).integers(0, 256, (32, 32, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{i}.png")
        lines.append(f'{name}/{i}.png {{"label": -1, "sc_label": {label}}}\n')
    path = root / "data" / "imglist" / f"benchmark_{benchmark}" / f"test_{name}.txt"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(lines))


def write_outliers(root, images):
    path = root / "Tiny_Images_Dataset" / "300K_random_images.npy"
    path.parent.mkdir(parents=True, exist_ok=True)
    np.save(path, images)


def write_cifar10(root, counts=None):
    labels = [c for c, n in enumerate(counts or long_tail_counts(100, 10, 0.01)) for _ in range(n)]
    for i in range(5):
        write_batch(root / "cifar-10-batches-py" / f"data_batch_{i + 1}", labels[i::5], b"labels", seed=i)
    write_batch(root / "cifar-10-batches-py" / "test_batch", list(range(10)) * 3, b"labels", seed=9)


def write_data(root):
    write_cifar10(root)
    many = [c for c, n in enumerate(long_tail_counts(10, 100, 0.1)) for _ in range(n)]
    write_batch(root / "cifar-100-python" / "train", many, b"fine_labels")
    write_batch(root / "cifar-100-python" / "test", list(range(100)), b"fine_labels", seed=1)
    write_outliers(root, np.random.default_rng(3).integers(0, 256, (300, 32, 32, 3), dtype=np.uint8))
    for benchmark, other in (("cifar10", "cifar100"), ("cifar100", "cifar10")):
        for name in (other, "lsun", "places365", "svhn", "texture", "tin"):
            write_ood_set(root, benchmark, name, [-1, 2, -1, -1] if name == "tin" else [-1, -1, -1])
    return root


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_data(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def digits_run(tmp_path_factory):
    """A digits run of one epoch."""
    folder = tmp_path_factory.mktemp("runs") / "digits"
    assert run(train.main, *DIGITS, "--srp", folder) == 0
    return folder


def contents(folder):
    return {path.name: path.read_bytes() for path in Path(folder).iterdir() if path.is_file()}


def assert_one_sentence(capsys, status, *words):
    """Exit status 2, and one line `error: ...` that has the words."""
    lines = capsys.readouterr().err.strip().splitlines()
    assert status == 2, lines
    errors = [line for line in lines if not line.startswith("warning: ")]
    assert len(errors) == 1 and errors[0].startswith("error: "), lines
    for word in words:
        assert str(word) in errors[0]


def assert_refused_by_the_parser(capsys, status, *words):
    last = capsys.readouterr().err.strip().splitlines()[-1]
    assert status == 2 and "error: " in last
    for word in words:
        assert word in last


# --- what the authors' README says


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
    assert {"class_counts.png", "training.png", "latest.pth"} <= {p.name for p in out.iterdir()}

    assert run(evaluation.main, *common, "--FC", "True", "--drp", data, "--ckpt_path", out) == 0
    printed = capsys.readouterr().out
    results = json.loads((out / "results.json").read_text())
    assert {"dataset", "checkpoint", "rows", "mean", "accuracy", "environment"} <= results.keys()
    assert results["ood_resize"] == "squash"
    assert (
        len(results["rows"]) == 6 * 2 * 8 and len(results["mean"]) == 2 * 8 and len(results["accuracy"]) == 2
    )
    keys = {"ood", "calibration", "fc", "score", "n_id", "n_ood"}
    assert all(keys | METRICS == row.keys() for row in results["rows"])
    classes = 10 if ds == "cifar10" else 100
    test_size = 30 if ds == "cifar10" else 100
    assert all(len(row["per_class"]) == classes for row in results["accuracy"])
    for row in results["rows"]:
        expected = (
            (test_size + 1, 3) if row["ood"] == "tin" else (test_size, 3)
        )  # one of tin's images is semantically ID
        assert (row["n_id"], row["n_ood"]) == expected
    for name in {row["ood"] for row in results["rows"]} | {"mean", "macro-F1"}:
        assert name in printed and name in (out / "results.md").read_text()
    assert {"scores.png", "roc.png"} <= {p.name for p in out.iterdir()}
    with open(out / "results.csv", newline="") as file:
        table = list(csv.DictReader(file))
    for line, row in zip(table, results["rows"], strict=True):
        assert line.pop("dataset") == ds and line.pop("fc_strength") == ("1.0" if row["fc"] else "")
        assert line == {key: str(value) for key, value in row.items()}


# --- digits


def test_a_digits_run_and_its_evaluation(digits_run, capsys):
    assert run(evaluation.main, "--gpu", "cpu", "--ckpt_path", digits_run) == 0
    results = json.loads((digits_run / "results.json").read_text())
    assert results["dataset"] == "digits" and {r["ood"] for r in results["rows"]} == {
        "digits89",
        "photo",
        "noise",
    }
    assert torch.load(digits_run / "latest.pth", weights_only=True)["epoch"] == 1


@pytest.mark.parametrize(
    "flag,ways",
    [
        ((), ["none", "fc", "probe"]),
        (("--FC",), ["none", "fc"]),
        (("--FC", "True"), ["none", "fc"]),
        (("--FC", "False"), ["none"]),
        (("--FC", "no"), ["none"]),
        (("--calibration", "probe", "none"), ["none", "probe"]),
        (("--calibration", "fc"), ["fc"]),
    ],
)
def test_fc_and_calibration_mean_what_they_say(flag, ways, digits_run, tmp_path):
    argv = [
        "--gpu",
        "cpu",
        "--ckpt_path",
        digits_run / "latest.pth",
        "--srp",
        tmp_path,
        "--dout",
        "noise",
        *flag,
    ]
    assert run(evaluation.main, *argv, "--num_ood_samples", 50) == 0
    results = json.loads((tmp_path / "results.json").read_text())
    assert [a["calibration"] for a in results["accuracy"]] == ways
    assert {(row["calibration"], row["fc"]) for row in results["rows"]} == {(w, w == "fc") for w in ways}
    with_outliers = ways != ["none"]
    assert ("probe" in {row["score"] for row in results["rows"]}) is with_outliers
    assert ("probe" in results) is with_outliers


def test_no_test_image_changes_what_is_fitted(digits_run, tmp_path, monkeypatch):
    """Attention, probe and every score, whatever the test images and OOD sets are."""
    fitted, inverted = [], False
    fit, digits = evaluation.fit_calibrations, evaluation.BENCHMARKS["digits"]

    def record(*args, **kwargs):
        calibrations, facts = fit(*args, **kwargs)
        fitted.append({name: (way.state(), of.state()) for name, (way, of) in calibrations.items()})
        return calibrations, facts

    def changed(images):
        return images._replace(images=255 - images.images) if inverted else images

    def load_split(root, training):
        split = digits.load_split(root, training)
        return split if training else changed(split)

    def read_ood(*args):
        return {name: changed(images) for name, images in digits.read_ood(*args).items()}

    monkeypatch.setattr(evaluation, "fit_calibrations", record)
    replaced = dataclasses.replace(digits, load_split=load_split, read_ood=read_ood)
    monkeypatch.setitem(evaluation.BENCHMARKS, "digits", replaced)
    rows = []
    for inverted in (False, True):  # noqa: B007  (changed reads it)
        argv = ["--gpu", "cpu", "--ckpt_path", digits_run, "--srp", tmp_path, "--num_ood_samples", 100]
        assert run(evaluation.main, *argv) == 0
        rows.append(json.loads((tmp_path / "results.json").read_text())["rows"])
    assert_same(*fitted)
    assert rows[0] != rows[1]


def test_auto_needs_images_that_were_held_out(digits_run, tmp_path, capsys):
    argv = ["--gpu", "cpu", "--ckpt_path", digits_run, "--srp", tmp_path]
    assert_one_sentence(
        capsys, run(evaluation.main, *argv, "--calibration", "auto"), "--calibration auto", "--val_fraction"
    )
    leak = ["--calibration_split", "test", "--calibration", "none"]
    for flags in (["--calibration", "auto", "none"], ["--fc_strength", 0.5, "--calibration", "probe"], leak):
        assert_one_sentence(capsys, run(evaluation.main, *argv, *flags), flags[0])
    assert not (tmp_path / "results.json").exists()


def test_a_score_that_cannot_be_fitted_is_refused(digits_run, tmp_path, capsys):
    argv = ["--gpu", "cpu", "--ckpt_path", digits_run, "--srp", tmp_path, "--dout", "noise"]
    status = run(evaluation.main, *argv, "--calibration", "none", "--score", "probe")
    assert status == 2 and "--score probe cannot be fitted here" in capsys.readouterr().err


def test_fc_and_calibration_do_not_contradict_each_other(digits_run, capsys):
    argv = ["--ckpt_path", digits_run, "--FC", "True", "--calibration", "probe"]
    assert_refused_by_the_parser(capsys, run(evaluation.main, *argv), "--calibration", "--FC")


def test_calibration_on_the_test_split_is_possible_and_warned_of(digits_run, tmp_path, capsys):
    argv = [
        "--gpu",
        "cpu",
        "--ckpt_path",
        digits_run,
        "--srp",
        tmp_path,
        "--dout",
        "noise",
        "--num_ood_samples",
        50,
    ]
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
    argv = [
        *DIGITS,
        "--isac",
        "False",
        "--tla",
        "False",
        "--oe",
        "False",
        "--val_fraction",
        0.2,
        "--opt",
        "sgd",
        "--lr",
        0.1,
    ]
    assert run(train.main, *argv, "--srp", tmp_path, "--figures", "svg") == 0
    assert {p.name for p in tmp_path.iterdir() if p.suffix in (".svg", ".png")} == {
        "class_counts.svg",
        "training.svg",
    }
    record = json.loads((tmp_path / "log.jsonl").read_text())
    assert record["isac"] == record["oe"] == 0 and record["loss"] == record["tla"] > 0
    assert "val_accuracy" in record
    flags = ("--calibration", "auto", "--figures", "pdf")
    assert run(evaluation.main, "--gpu", "cpu", "--ckpt_path", tmp_path, *flags) == 0
    assert {p.name for p in tmp_path.glob("*.pdf")} == {"scores.pdf", "roc.pdf"}
    assert not list(tmp_path.glob("*.png"))
    assert "chosen" in capsys.readouterr().out
    results = json.loads((tmp_path / "results.json").read_text())
    chosen = results["auto"]["chosen"]["calibration"]
    assert [a["calibration"] for a in results["accuracy"]] == list(dict.fromkeys(["none", chosen]))
    assert results["vmf"] == "training features"  # without the contrast, training kept no statistics


def test_the_released_recipe_trains(tmp_path):
    assert run(train.main, *DIGITS, "--recipe", "released", "--srp", tmp_path) == 0
    args = json.loads((tmp_path / "args.json").read_text())
    assert args["depart"] == ["crop", "embeddings", "normalization", "statistics"]
    assert (
        run(
            evaluation.main,
            "--gpu",
            "cpu",
            "--ckpt_path",
            tmp_path,
            "--dout",
            "noise",
            "--num_ood_samples",
            50,
        )
        == 0
    )


def test_a_published_checkpoint_with_a_prefix_and_other_keys(tmp_path, capsys):
    weights = {f"module.{k}": v for k, v in build_model("ResNet20", 8).state_dict().items()}
    torch.save(
        {
            "state_dict": weights | {"module.projection.0.weight": torch.ones(2)},
            "epoch": 7,
            "many_accs": [np.float64(0.5)],
        },
        tmp_path / "published.pth",
    )
    argv = [
        "--gpu",
        "cpu",
        "--ds",
        "digits",
        "--md",
        "ResNet20",
        "--rho",
        0.1,
        "--ckpt_path",
        tmp_path / "published.pth",
    ]
    argv += ["--dout", "digits89", "--num_ood_samples", 50]
    assert run(evaluation.main, *argv) == 0
    assert "'projection.0.weight'" in capsys.readouterr().out
    plain, released = (tmp_path / name / "results.json" for name in ("published.pth.results", "released"))
    assert run(evaluation.main, *argv, "--depart", "normalization", "--srp", released.parent) == 0
    for one, other in zip(*(json.loads(file.read_text())["rows"] for file in (plain, released)), strict=True):
        if one["calibration"] == "none" and one["score"] not in ("probe", "combined"):
            assert one["auroc"] == other["auroc"]  # outliers reach the results by calibration alone
        elif one["fc"] and one["score"] in ("energy", "probe"):
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
    state["args"]["epochs"] = 30
    torch.save(state, tmp_path / "latest.pth")
    argv = ["--gpu", "cpu", "--dout", "noise", "--FC", "False", "--ckpt_path", tmp_path / "latest.pth"]
    assert run(evaluation.main, *argv) == 0
    results, _ = table_of(tmp_path)
    assert (results["epoch"], results["epochs"], results["seed"]) == (1, 30, 3407)
    said = "the run is unfinished: epoch 1 of 30"
    assert results["notes"] == [said] and said in capsys.readouterr().out


def test_two_checkpoints_in_one_folder_keep_their_results(digits_run, tmp_path):
    state = torch.load(digits_run / "latest.pth")
    for name in ("first.pth", "second.pth"):
        torch.save(state, tmp_path / name)
        argv = ["--gpu", "cpu", "--dout", "noise", "--FC", "False", "--ckpt_path", tmp_path / name]
        assert run(evaluation.main, *argv) == 0
    names = {"results.json", "results.csv", "results.md", "scores.png", "roc.png", "detector.pth"}
    for name in ("first.pth", "second.pth"):
        folder = tmp_path / f"{name}.results"
        assert {p.name for p in folder.iterdir()} == names
        assert table_of(folder)[0]["checkpoint"] == str(tmp_path / name)


def test_a_tail_that_the_test_split_cannot_have_is_refused_before_any_work(tmp_path, capsys):
    torch.save(build_model("ResNet20", 8).state_dict(), tmp_path / "bare.pth")
    argv = [
        "--gpu",
        "cpu",
        "--ds",
        "digits",
        "--md",
        "ResNet20",
        "--rho",
        0.02,
        "--ckpt_path",
        tmp_path / "bare.pth",
    ]
    assert run(evaluation.main, *argv, "--calibration_split", "test") == 2
    assert "rho" in capsys.readouterr().err and not (tmp_path / "results.json").exists()


# --- going on


def final(folder):
    state = torch.load(folder / "latest.pth", weights_only=True)
    history = [{k: v for k, v in record.items() if k != "seconds"} for record in state["history"]]
    return {"history": history} | {
        k: state[k] for k in ("model", "criterion", "optimizer", "rng", "epoch", "step", "meter")
    }


def assert_same(a, b, where=""):
    assert type(a) is type(b), where
    if isinstance(a, torch.Tensor):
        assert torch.equal(a, b), where
    elif isinstance(a, dict):
        assert a.keys() == b.keys(), where
        for key in a:
            assert_same(a[key], b[key], f"{where}.{key}")
    elif isinstance(a, list | tuple):
        assert len(a) == len(b), where
        for i, (x, y) in enumerate(zip(a, b, strict=True)):
            assert_same(x, y, f"{where}[{i}]")
    else:
        assert a == b, where


LONGER = [*DIGITS[:-2], "-e", "3"]


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "unbroken"
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    assert run(train.main, *LONGER, "--srp", folder) == 0
    torch.set_num_threads(threads)
    return folder


@pytest.mark.parametrize("epoch,step", [(1, 0), (1, 1), (1, None)])
def test_sigterm_stops_after_the_step_and_resume_goes_on_there(
    epoch, step, unbroken, tmp_path, monkeypatch, capsys
):
    """``step`` None is the last one of the epoch."""
    whole = TrainLoader.epoch

    def interrupted(self, number, start_step=0):
        last = len(self) - 1 if step is None else step
        for i, batch in enumerate(whole(self, number, start_step), start=start_step):
            if (number, i) == (epoch, last):
                signal.raise_signal(signal.SIGTERM)
            yield batch

    with monkeypatch.context() as patched:
        patched.setattr(TrainLoader, "epoch", interrupted)
        assert run(train.main, *LONGER, "--srp", tmp_path) == EXIT_STOPPED
    assert "--resume" in capsys.readouterr().err
    state = torch.load(tmp_path / "latest.pth", weights_only=True)
    assert (state["epoch"], state["step"]) == ((epoch + 1, 0) if step is None else (epoch, step + 1))
    assert run(train.main, *LONGER, "--resume", "--srp", tmp_path) == 0
    assert_same(final(tmp_path), final(unbroken))


def test_resume_of_a_folder_without_a_run_starts_one(tmp_path, capsys):
    assert run(train.main, *DIGITS, "--resume", "--srp", tmp_path / "new") == 0
    assert "starting from the beginning" in capsys.readouterr().out


def test_resume_goes_on_from_the_previous_checkpoint_where_the_latest_is_missing(unbroken, tmp_path):
    (tmp_path / "previous.pth").write_bytes((unbroken / "previous.pth").read_bytes())
    assert run(train.main, *LONGER, "--resume", "--srp", tmp_path) == 0
    assert_same(final(tmp_path), final(unbroken))


def test_a_run_is_not_written_over_without_resume(digits_run, capsys):
    before = contents(digits_run)
    assert_one_sentence(capsys, run(train.main, *DIGITS, "--srp", digits_run), digits_run, "--resume")
    before.pop("run.lock")
    after = contents(digits_run)
    assert all(after[name] == value for name, value in before.items())


OTHER = [("--seed", 1), ("--epochs", 5), ("--Lambda1", 0.3), ("--md", "ResNet32"), ("--isac", "no")]


@pytest.mark.parametrize("flag,value", OTHER)
def test_resume_refuses_other_arguments(flag, value, digits_run, capsys):
    before = contents(digits_run)
    status = run(train.main, *DIGITS, flag, value, "--resume", "--srp", digits_run)
    assert_one_sentence(capsys, status, {"--md": "model"}.get(flag, flag), "the run to resume has")
    assert contents(digits_run) == before


def test_resume_from_what_is_no_training_checkpoint(tmp_path, capsys):
    torch.save(build_model("ResNet20", 8).state_dict(), tmp_path / "weights.pth")
    status = run(train.main, *DIGITS, "--resume", tmp_path / "weights.pth", "--srp", tmp_path / "out")
    assert_one_sentence(capsys, status, "weights.pth")
    status = run(train.main, *DIGITS, "--resume", tmp_path / "nothing", "--srp", tmp_path / "out")
    assert_one_sentence(capsys, status, "nothing")


def test_another_runs_folder_is_not_written_over_by_resuming_elsewhere(digits_run, tmp_path, capsys):
    assert run(train.main, *DIGITS, "--srp", tmp_path) == 0
    before = (tmp_path / "latest.pth").read_bytes()
    assert_one_sentence(
        capsys, run(train.main, *DIGITS, "--resume", digits_run, "--srp", tmp_path), "already holds a run"
    )
    assert (tmp_path / "latest.pth").read_bytes() == before


def test_a_forked_process_does_not_keep_its_runs_lock(tmp_path):
    """As a reading process does for seconds after its run was killed."""
    run_directory = RunDirectory(tmp_path)
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        os.write(write, b"x")
        time.sleep(60)
        os._exit(0)
    os.read(read, 1)
    run_directory.close()
    try:
        RunDirectory(tmp_path).close()
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        os.close(read)
        os.close(write)


def test_two_runs_do_not_share_a_folder(tmp_path, capsys):
    with closing(RunDirectory(tmp_path)):
        assert_one_sentence(
            capsys, run(train.main, *DIGITS, "--srp", tmp_path), f"process {os.getpid()}", tmp_path
        )
    assert not (tmp_path / "args.json").exists()


# --- help and errors


@pytest.mark.parametrize(
    "script,flags",
    [
        (
            "train",
            "--seed --replay --gpu --num_workers --cpus --data_root_path --drp --dataset --ds "
            "--model --md --imbalance_ratio "
            "--rho --batch_size -b --ood_batch_size --ob --test_batch_size --tb --epochs -e --lr "
            "--wd --momentum -m --opt --Lambda1 "
            "--Lambda2 --num_ood_samples --temperature --tem_scale --save_root_path --srp --resume "
            "--recipe --isac --tla --oe",
        ),
        (
            "test",
            "--seed --gpu --num_workers --FC --tnorm --model --md --dataset --ds --data_root_path "
            "--calibration --fc_strength "
            "--drp --dout "
            "--num_ood_samples --imbalance_ratio --rho --test_batch_size --tb --ckpt_path "
            "--calibration_split --score",
        ),
    ],
)
def test_help_names_every_flag(script, flags, capsys):
    assert run({"train": train.main, "test": evaluation.main}[script], "--help") == 0
    words = capsys.readouterr().out.replace(",", " ").replace("[", " ").split()
    assert [flag for flag in flags.split() if flag not in words] == []


def test_a_script_in_a_process_of_its_own_ends_with_one_line_and_status_2(tmp_path):
    process = start_process(
        "train.py", "--gpu", 0, "--ds", "cifar10", "--drp", tmp_path, "--srp", tmp_path / "out"
    )
    out, err = process.communicate()
    assert process.returncode == 2
    assert err.count("\n") == 1 and err.startswith("error: ") and "cifar-10-batches-py" in err
    assert "no CUDA device" in out and not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "argv,words",
    [
        (["--rho", "0"], ["rho", "0"]),
        (["--rho", "1.5"], ["rho", "1.5"]),
        (["--rho", "nan"], ["rho"]),
        (["-e", "0"], ["-e"]),
        (["-b", "x"], ["-b", "whole number"]),
        (["--ds", "mnist"], ["mnist"]),
        (["--md", "ResNet19"], ["ResNet19"]),
        (["--isac", "maybe"], ["maybe"]),
        (["--lr", "-1"], ["--lr"]),
        (["--nonsense"], ["--nonsense"]),
        (["--temperature", "0"], ["--temperature"]),
        (["--Lambda1", "inf"], ["--Lambda1"]),
        (["--opt", "lion"], ["lion"]),
        (["--num_workers", "-1"], ["num_workers"]),
    ],
)
def test_impossible_flags_are_refused_before_anything_is_read(argv, words, capsys):
    assert_refused_by_the_parser(capsys, run(train.main, *argv), *words)


@pytest.mark.parametrize(
    "argv,words",
    [
        (["-b", "5000"], ["--batch_size 5000"]),
        (["--ob", "5000"], ["--ood_batch_size 5000"]),
        (["--num_ood_samples", "8"], ["--ood_batch_size 32", "8 images"]),
        (["--gpu", "first"], ["--gpu", "first"]),
        (["--rho", "0.001"], ["rho"]),
    ],
)
def test_what_the_digits_cannot_give_is_refused(argv, words, tmp_path, capsys):
    assert_one_sentence(capsys, run(train.main, *DIGITS, *argv, "--srp", tmp_path / "out"), *words)
    assert not (tmp_path / "out").exists()


def test_an_output_folder_that_cannot_be_written(digits_run, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    out = tmp_path / "file" / "out"
    assert_one_sentence(capsys, run(train.main, *DIGITS, "--srp", out), out)
    status = run(evaluation.main, "--gpu", "cpu", "--ckpt_path", digits_run, "--srp", out)
    assert_one_sentence(capsys, status, out)


def break_truncated(root):
    path = root / "cifar-10-batches-py" / "data_batch_2"
    path.write_bytes(path.read_bytes()[:1000])
    return [path]


def break_missing(root):
    (root / "cifar-10-batches-py" / "data_batch_3").unlink()
    return ["data_batch_3"]


def break_label(root):
    write_batch(root / "cifar-10-batches-py" / "data_batch_1", [0, 10], b"labels")
    return ["data_batch_1", "0..9"]


def break_tail(root):
    write_cifar10(root, [100] * 4 + [0] + [100] * 5)
    return ["class 4"]


def break_short_class(root):
    write_cifar10(root, [100] + [1] * 9)
    return ["class 1 has 1 images"]


def break_outlier_type(root):
    write_outliers(root, np.zeros((9, 32, 32, 3), dtype=np.float32))
    return ["300K_random_images.npy", "float32"]


def break_outlier_shape(root):
    write_outliers(root, np.zeros((9, 3, 32, 32), dtype=np.uint8))
    return ["300K_random_images.npy", "shape"]


def break_no_outliers(root):
    (root / "Tiny_Images_Dataset" / "300K_random_images.npy").unlink()
    return ["300K_random_images.npy", "datasets.prepare"]


@pytest.mark.filterwarnings("ignore:the files in")
@pytest.mark.parametrize(
    "damage",
    [
        break_truncated,
        break_missing,
        break_label,
        break_tail,
        break_short_class,
        break_outlier_type,
        break_outlier_shape,
        break_no_outliers,
    ],
)
def test_damaged_data_are_named(damage, tmp_path, capsys):
    write_cifar10(tmp_path)
    write_outliers(tmp_path, np.zeros((300, 32, 32, 3), dtype=np.uint8))
    words = damage(tmp_path)
    status = run(train.main, "--ds", "cifar10", "--gpu", "cpu", "--drp", tmp_path, "--srp", tmp_path / "out")
    assert_one_sentence(capsys, status, *words)
    assert not (tmp_path / "out").exists()


def test_a_checkpoint_knows_what_it_is(digits_run, data, capsys):
    common = ["--gpu", "cpu", "--ckpt_path", digits_run, "--drp", data]
    for flag, value, name in (
        ("--ds", "cifar10", "--ds"),
        ("--md", "ResNet18", "--model"),
        ("--rho", "0.5", "--rho"),
    ):
        status = run(evaluation.main, *common, flag, value)
        assert_one_sentence(capsys, status, name, value, "contradicts the checkpoint")
    assert (
        run(evaluation.main, *common, "--ds", "digits", "--md", "ResNet20", "--rho", "0.1", "--FC", "False")
        == 0
    )


@pytest.mark.parametrize(
    "content,words",
    [
        (b"", ["bad.pth"]),
        (b"not a checkpoint", ["bad.pth"]),
        ({"epoch": 3}, ["no network weights"]),
        ({"model": {"conv1.weight": torch.ones(3)}}, ["lacks", "keys"]),
        (build_model("ResNet32", 8).state_dict(), ["more keys of a backbone", "--model ResNet32"]),
        (build_model("ResNet18", 8, "imagenet").state_dict(), ["train_imagenet.py, --model ResNet18"]),
        (build_model("ResNet20", 9).state_dict(), ["9 outputs for 8 classes"]),
        (build_model("ResNet20", 10).state_dict(), ["linear.weight", "(10, 64)", "(8, 64)"]),
        (
            {"model": {k: v * float("nan") for k, v in build_model("ResNet20", 8).state_dict().items()}},
            ["not finite"],
        ),
    ],
)
def test_checkpoints_that_do_not_fit_are_refused(content, words, tmp_path, capsys):
    path = tmp_path / "bad.pth"
    path.write_bytes(content) if isinstance(content, bytes) else torch.save(content, path)
    status = run(
        evaluation.main,
        "--gpu",
        "cpu",
        "--ds",
        "digits",
        "--md",
        "ResNet20",
        "--rho",
        0.1,
        "--ckpt_path",
        path,
    )
    assert_one_sentence(capsys, status, *words)
    assert not (tmp_path / "results.json").exists()


def test_ood_sets_that_are_not_there_are_named_with_those_that_are(digits_run, data, tmp_path, capsys):
    status = run(
        evaluation.main,
        "--gpu",
        "cpu",
        "--ckpt_path",
        digits_run,
        "--dout",
        "noise",
        "letters",
        "--srp",
        tmp_path,
    )
    assert_one_sentence(capsys, status, "letters", "digits89", "photo")
    torch.save(build_model("ResNet20", 10).state_dict(), tmp_path / "weights.pth")
    argv = [
        "--gpu",
        "cpu",
        "--ds",
        "cifar10",
        "--md",
        "ResNet20",
        "--drp",
        data,
        "--ckpt_path",
        tmp_path / "weights.pth",
    ]
    assert_one_sentence(capsys, run(evaluation.main, *argv, "--dout", "tin", "letters"), "letters", "svhn")


def test_an_ood_set_without_an_ood_image_is_refused(tmp_path, capsys):
    write_ood_set(tmp_path, "cifar10", "tin", [3, 4])
    torch.save(build_model("ResNet20", 10).state_dict(), tmp_path / "weights.pth")
    argv = [
        "--gpu",
        "cpu",
        "--ds",
        "cifar10",
        "--md",
        "ResNet20",
        "--drp",
        tmp_path,
        "--ckpt_path",
        tmp_path / "weights.pth",
    ]
    assert_one_sentence(capsys, run(evaluation.main, *argv, "--dout", "tin"), "tin", "out of distribution")
