"""The ImageNet-LT command lines end to end, on small files that the tests make."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from command_line import ROOT, assert_one_sentence, load_script, run, torchrun
from image_files import truncate
from PIL import Image
from torchvision.models import get_model

import train_imagenet
from utils import results
from utils.detector import Detector
from utils.errors import InputError
from utils.run import EXIT_STOPPED, Run
from utils.scores import score_names

evaluation = load_script("test_imagenet")
CLASSES, SMALL = 3, ["--gpu", "cpu", "--num_workers", "0"]
TRAIN = [*SMALL, *"--md ResNet18 --image_size 32 -e 1 -b 4 --ob 4 --randaug_n 1".split()]


def write_images(root, folder, count, seed):
    """Noise of 40 x 48 pixels as JPEG files; returns their paths relative to the root."""
    (root / folder).mkdir(parents=True)
    rng = np.random.default_rng(seed)
    for i in range(count):
        Image.fromarray(rng.integers(0, 256, (40, 48, 3), dtype=np.uint8)).save(root / folder / f"{i}.jpg")
    return [f"{folder}/{i}.jpg" for i in range(count)]


def write_lists(root):
    """Lists of 6 + 4 + 2 training images, 6 test images, 8 outliers and 5 OOD images; returns the flags that
    name them."""
    paths = [write_images(root, f"train/{c}", count, c) for c, count in enumerate((6, 4, 2))]
    lists = {"txtt": [f"{path} {c}" for c in range(CLASSES) for path in paths[c]]}
    lists["txtv"] = [f"{path} {i % CLASSES}" for i, path in enumerate(write_images(root, "val", 6, 10))]
    lists["txt_ood_train"] = write_images(root, "extra", 8, 11)
    lists["txt_ood_test"] = write_images(root, "ood", 5, 12)
    for name, lines in lists.items():
        (root / f"{name}.txt").write_text("\n".join(lines) + "\n")
    flags = [word for name in lists for word in (f"--{name}", str(root / f"{name}.txt"))]
    return [*flags, "--iidp", str(root), "--iodp", str(root)]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_lists(tmp_path_factory.mktemp("images"))


@pytest.fixture(scope="module")
def trained(data, tmp_path_factory):
    out = tmp_path_factory.mktemp("run") / "out"
    assert run(train_imagenet.main, *TRAIN, *data, "--srp", out) == 0
    return out


def results_of(folder):
    return json.loads((folder / "results.json").read_text())


def test_training_and_evaluation(trained, data, capsys):
    record = json.loads((trained / "log.jsonl").read_text())
    assert all(np.isfinite(record[term]) for term in ("loss", "isac", "tla", "oe"))
    checkpoint = torch.load(trained / "latest.pth", weights_only=True)
    assert checkpoint["class_counts"] == [6, 4, 2]
    assert checkpoint["model"]["linear.weight"].shape == (CLASSES, 512)
    assert checkpoint["criterion"]["statistics.sums"].shape == (CLASSES, 1024)
    assert run(evaluation.main, *SMALL, *data, "--ckpt_path", trained, "--num_cal", "6") == 0
    rows = results_of(trained)["rows"]
    assert {(r["calibration"], r["score"], r["n_id"], r["n_ood"]) for r in rows} == {
        (way, score, 6, 5) for way in ("none", "fc", "probe") for score in score_names()
    }
    # The statistics are of the embedding head.
    assert set(results_of(trained)["vmf"].values()) == {"training features"}
    assert "txt_ood_test | fc" in capsys.readouterr().out


def test_feature_calibration_sees_num_cal_images_and_scores_see_all(trained, data, tmp_path, monkeypatch):
    """Of classes of 6, 4 and 2 images, a balanced sample of 6 has 2 each."""
    fitted, original = {}, results.fit_calibrations

    def record(*args, **kwargs):
        calibrations, facts = original(*args, **kwargs)
        fitted.update(args[2]._asdict(), scores=calibrations["none"][1].scores, num_cal=facts["num_cal"])
        return calibrations, facts

    monkeypatch.setattr(results, "fit_calibrations", record)
    argv = [*SMALL, *data, "--ckpt_path", trained, "--num_cal", "6", "--srp", tmp_path]
    assert run(evaluation.main, *argv) == 0
    assert fitted["training"].labels.bincount().tolist() == [6, 4, 2]
    assert len(fitted["scores"]["knn"].bank) == 12
    assert fitted["attending"].labels.bincount().tolist() == [2, 2, 2] and fitted["num_cal"] == 6
    for feature, label in zip(*fitted["attending"], strict=True):
        of_class = fitted["training"].features[fitted["training"].labels == label]
        assert (of_class == feature).all(dim=1).any()


def test_damaged_images_are_replaced_and_noted_but_not_in_test_sets(tmp_path, capsys):
    """Class 0 has six images, of which two are held out."""
    data, out = write_lists(tmp_path), tmp_path / "run"
    damaged = {"training images": "train/0/0", "held-out images": "train/0/5", "outliers": "extra/5"}
    for name in damaged.values():
        truncate(tmp_path / f"{name}.jpg")
    assert run(train_imagenet.main, *TRAIN, *data, "--srp", out, "--val_fraction", "0.3") == 0
    assert "warning: held-out images: unreadable" in capsys.readouterr().err
    assert json.loads((out / "args.json").read_text())["num_outliers"] == 7  # one of 8 is held out
    evaluate = [*SMALL, *data, "--ckpt_path", out, "--num_cal", "8"]
    assert run(evaluation.main, *evaluate) == 0
    assert results_of(out)["num_ood_samples"] == 7
    notes = results_of(out)["notes"]
    assert len(notes) == len(damaged)
    for note, (title, name) in zip(sorted(notes), sorted(damaged.items()), strict=True):
        assert note.startswith(f"{title}: unreadable") and name in note
        assert str(tmp_path) not in note
    for name in ("ood/3.jpg", "val/3.jpg"):  # the test images are read first
        truncate(tmp_path / name)
        assert run(evaluation.main, *evaluate) == 2
        assert f"{name} cannot be read" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        ("losses.PATTLoss.forward = lambda *_: [][1]", "IndexError"),
        ("image_files.open_picture = lambda _: os.kill(os.getpid(), signal.SIGKILL)", "DataLoader worker"),
    ],
    ids=["in the step", "a worker dies"],
)
def test_an_unexpected_error_ends_the_process_though_workers_read_ahead(data, tmp_path, fault, words):
    code = "import os, signal, train_imagenet; from datasets import image_files; from utils import errors, "
    code += f"losses; {fault}; errors.exit_cleanly(train_imagenet.main)"
    flags = [*TRAIN, *data, "--num_workers", "1", "--srp", str(tmp_path / "run")]
    ended = subprocess.run(
        [sys.executable, "-c", code, *flags], cwd=ROOT, capture_output=True, text=True, timeout=300
    )
    assert ended.returncode == 1 and "Traceback" in ended.stderr and words in ended.stderr


def test_a_bare_checkpoint_is_named_by_its_keys_and_what_is_assumed_is_said(trained, data, tmp_path, capsys):
    state = torch.load(trained / "latest.pth")["model"]
    torch.save(
        {"net": {f"module._orig_mod.{key}": value for key, value in state.items()}}, tmp_path / "x.pth"
    )
    argv = ["--gpu", "cpu", "--image_size", "32", "--num_workers", "0", *data, "--FC", "False"]
    assert run(evaluation.main, *argv, "--ckpt_path", trained, "--srp", tmp_path / "own") == 0
    assert results_of(tmp_path / "own")["notes"] == []
    assert run(evaluation.main, *argv, "--ckpt_path", tmp_path / "x.pth") == 0
    said, results = "assumed --normalization imagenet", results_of(tmp_path / "x.pth.results")
    assert results["network"] == "ResNet18" and said in results["notes"][0]
    assert capsys.readouterr().out.count(said) == 1
    assert results["rows"] == results_of(tmp_path / "own")["rows"]
    other = ["--ckpt_path", tmp_path / "x.pth", "--normalization", "none", "--srp", tmp_path / "none"]
    assert run(evaluation.main, *argv, *other) == 0
    assert results_of(tmp_path / "none")["notes"] == []
    assert results_of(tmp_path / "none")["rows"] != results["rows"]


def test_every_ood_list_is_reported_under_its_name(trained, data, tmp_path, capsys):
    root = Path(data[data.index("--iodp") + 1])
    lines = (root / "txt_ood_test.txt").read_text().splitlines()
    for name, chosen in (("sky", lines[:3]), ("sea", lines[3:])):
        (tmp_path / f"{name}.txt").write_text("\n".join(chosen) + "\n")
    argv = [*SMALL, "--ckpt_path", trained, "--srp", tmp_path / "out", "--FC", "False", "--txt_ood_test"]
    assert run(evaluation.main, *argv, tmp_path / "sky.txt", tmp_path / "sea.txt") == 0
    rows = results_of(tmp_path / "out")["rows"]
    assert {(row["ood"], row["n_ood"]) for row in rows} == {("sky", 3), ("sea", 2)}
    assert run(evaluation.main, *argv, tmp_path / "sky.txt", tmp_path / "sky.txt") == 2
    assert "sky.txt" in capsys.readouterr().err


def test_two_processes_evaluate_like_one(trained, data, tmp_path):
    assert run(evaluation.main, *SMALL, *data, "--ckpt_path", trained, "--srp", tmp_path / "one") == 0
    done = torchrun("test_imagenet.py", *SMALL, *data, "--ckpt_path", trained, "--srp", tmp_path / "two")
    assert done.returncode == 0, done.stderr
    for kind in ("rows", "mean", "accuracy"):
        for one, two in zip(
            results_of(tmp_path / "one")[kind], results_of(tmp_path / "two")[kind], strict=True
        ):
            assert one.keys() == two.keys()
            assert all(one[key] == pytest.approx(two[key]) for key in one)


def test_two_processes_train(data, tmp_path):
    done = torchrun("train_imagenet.py", *TRAIN, *data, "--srp", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    checkpoint = torch.load(tmp_path / "out" / "latest.pth", weights_only=True)
    assert not any(key.startswith("module.") for key in checkpoint["model"])
    assert checkpoint["criterion"]["statistics.counts"].sum() == 3 * 4 * 2  # steps, global batch, views
    done = torchrun("train_imagenet.py", *TRAIN, *data, "--srp", tmp_path / "out")
    assert done.returncode != 0 and done.stderr.count("already holds a run") == 1


def test_training_starts_from_a_given_network(data, tmp_path, capsys):
    """A step too small to move it."""
    torch.manual_seed(1)
    weights = get_model("resnet18").state_dict()
    torch.save(weights, tmp_path / "resnet18.pth")
    flags = [*TRAIN, *data, "--lr", "1e-12", "--init", tmp_path / "resnet18.pth", "--srp", tmp_path / "out"]
    assert run(train_imagenet.main, *flags) == 0
    assert "resnet18.pth" in capsys.readouterr().out
    trained = torch.load(tmp_path / "out" / "latest.pth", weights_only=True)["model"]
    assert torch.allclose(trained["layer4.1.conv2.weight"], weights["layer4.1.conv2.weight"], atol=1e-7)


def test_a_stopped_run_resumes_with_moved_images_like_the_unbroken_one(data, tmp_path, monkeypatch):
    flags = [*TRAIN, *data, "-e", "2"]
    assert run(train_imagenet.main, *flags, "--srp", tmp_path / "unbroken") == 0
    with monkeypatch.context() as patch:
        patch.setattr(Run, "_vote", lambda self: (self.epoch == 1, False))  # after a step of the second epoch
        assert run(train_imagenet.main, *flags, "--srp", tmp_path / "stopped") == EXIT_STOPPED
    root = Path(data[data.index("--iidp") + 1])
    shutil.copytree(root, tmp_path / "moved")
    moved = [str(word).replace(str(root), str(tmp_path / "moved")) for word in flags]
    assert run(train_imagenet.main, *moved, "--srp", tmp_path / "stopped", "--resume") == 0
    a, b = (torch.load(tmp_path / name / "latest.pth", weights_only=True) for name in ("unbroken", "stopped"))
    assert a["epoch"] == b["epoch"] == 2
    for part in ("criterion", "model"):
        assert all(torch.equal(a[part][key], b[part][key]) for key in a[part])


def test_classes_of_one_image_leave_nothing_to_hold_out(data, tmp_path, capsys):
    """There is no validation then; training and evaluation end all the same."""
    (tmp_path / "list.txt").write_text("".join(f"train/{c}/0.jpg {c}\n" for c in range(CLASSES)))
    lists, out = [*data, "--txtt", tmp_path / "list.txt"], tmp_path / "out"
    sizes = ["-b", "2", "--ob", "2", "--val_fraction", "0.1"]
    assert run(train_imagenet.main, *TRAIN, *lists, *sizes, "--srp", out) == 0
    assert "val_accuracy" not in json.loads((out / "log.jsonl").read_text())
    assert run(evaluation.main, *SMALL, *lists, "--ckpt_path", out) == 0
    scores = {row["score"] for row in results_of(out)["rows"]}
    assert scores == set(score_names()) - {"mahalanobis", "combined"} and (out / "detector.pth").is_file()
    auto = run(evaluation.main, *SMALL, *lists, "--ckpt_path", out, "--calibration", "auto")
    assert auto == 2 and "--val_fraction" in capsys.readouterr().err


def test_both_command_lines_of_the_authors_parse(data):
    line = "--gpu 0,1,2,3 --ds imagenet --md ResNet50 --lr 0.1 --Lambda1 0.02 --Lambda2 0.5 --srp OUT"
    args = train_imagenet.parse_args([*line.split(), *data])
    assert (args.model, args.opt, args.lr, args.wd) == ("ResNet50", "sgd", 0.1, 5e-5)
    assert (args.batch_size, args.ob) == (32, 64)
    assert (args.tem_scale, args.temperature, args.epochs, args.decay_epochs) == (0.7, 0.1, 100, [0.6, 0.8])
    assert args.num_ood_samples is None  # the whole list
    args = evaluation.parse_args(["--gpu", "0", "--FC", "True", *data, "--ckpt_path", "DIR"])
    assert args.FC is True and args.num_cal == 30_000


def test_the_released_recipe_departs_where_it_makes_a_difference():
    assert train_imagenet.parse_args(["--recipe", "released"]).depart == ["embeddings", "statistics"]
    with pytest.raises(InputError, match="--depart crop makes no difference on imagenet"):
        train_imagenet.parse_args(["--depart", "crop"])


@pytest.mark.parametrize("decay, epochs", [([60, 80], 100), ([0.6, 0.8], 100), ([0.6, 0.8], 5)])
def test_the_learning_rate_falls_at_the_decay_epochs(decay, epochs):
    rate = train_imagenet.step_decay(0.1, decay, epochs)
    first, second = (3, 4) if epochs == 5 else (60, 80)
    rates = [rate(e) for e in (0, first - 1, first, second - 1, second, epochs - 1)]
    assert rates == pytest.approx([0.1, 0.1, 0.01, 0.01, 0.001, 0.001])


def test_training_lists_that_are_refused(data, tmp_path, capsys):
    once = (Path(data[data.index("--iidp") + 1]) / "txtt.txt").read_text()
    flags = [*TRAIN, *data, "--val_fraction", "0.3", "--srp", tmp_path / "out"]
    for lines, words in ((once * 2, "--val_fraction"), ("train/0/0.jpg 0\ntrain/0/1.jpg 2\n", "class 1")):
        (tmp_path / "list.txt").write_text(lines)
        status = run(train_imagenet.main, *flags, "--txtt", tmp_path / "list.txt")
        assert_one_sentence(capsys, status, "list.txt", words)
    assert not (tmp_path / "out").exists()


def test_what_does_not_fit_the_checkpoint_is_refused(trained, data, tmp_path, capsys):
    flags = [*SMALL, *data, "--ckpt_path", trained, "--srp", tmp_path]
    root = data[data.index("--iidp") + 1]
    (tmp_path / "more.txt").write_text("".join(f"train/0/{i}.jpg {i}\n" for i in range(4)))
    (tmp_path / "other.txt").write_text("".join(f"train/0/{i}.jpg {i % 3}\n" for i in range(6)))
    for extra, words in (
        (["--txtt", tmp_path / "more.txt"], "not those of the checkpoint"),
        (["--txtt", tmp_path / "other.txt"], "not those of the checkpoint"),
        (["--txtv", tmp_path / "more.txt"], "more.txt, line 4"),
        (["--image_size", "64"], "contradicts"),
        (["--num_cal", "2"], "--num_cal 2 is fewer than the 3 classes"),
        (["--iodp", f"{root}/train"], "txt_ood_test.txt"),
    ):
        capsys.readouterr()
        assert run(evaluation.main, *flags, *extra) == 2
        assert words in capsys.readouterr().err
    assert not (tmp_path / "results.json").exists()


def evaluated(folder, *argv):
    assert run(evaluation.main, *SMALL, "--srp", folder, *argv) == 0
    return results_of(folder)


def test_the_run_knows_its_lists_and_folders(trained, data, tmp_path):
    own = evaluated(tmp_path / "own", "--ckpt_path", trained, "--FC", "no")
    given = evaluated(tmp_path / "given", *data, "--ckpt_path", trained, "--FC", "no")
    assert own["rows"] == given["rows"] and own["accuracy"] == given["accuracy"]
    assert own["class_names"] == ["0", "1", "2"] and own["data"] == "txtt"
    assert (tmp_path / "own" / "results.md").read_text().startswith("# txtt\n")


def test_own_photographs_without_ood_images_and_outliers(tmp_path):
    """Accuracy and a detector, from a run that had neither."""
    data, out = write_lists(tmp_path), tmp_path / "run"
    for name in ("txt_ood_train", "txt_ood_test"):
        where = data.index(f"--{name}")
        del data[where : where + 2]
    (tmp_path / "train.txt").write_text((tmp_path / "txtt.txt").read_text())
    data += ["--txtt", tmp_path / "train.txt"]
    assert run(train_imagenet.main, *TRAIN, *data, "--oe", "False", "--srp", out) == 0
    found = evaluated(out, "--ckpt_path", out)
    assert found["rows"] == found["mean"] == [] and found["data"] == tmp_path.name
    (row,) = found["accuracy"]
    assert row["calibration"] == "none" and len(row["per_class"]) == CLASSES and row["all"] is not None
    # None names a default list, of which the user never heard.
    assert ["--txt_ood_t" in n and "imagenet_" not in n for n in found["notes"]] == [True, True]
    text = (out / "results.md").read_text()
    assert "many 1, medium 2, few 0" in text  # of 6, 4 and 2 training images
    assert "AUROC" not in text and "| none: ACC ↑" in text and not (out / "roc.png").exists()
    with pytest.warns(UserWarning, match="12 training images"):
        detector = Detector.load(out)
    assert (detector.calibration, detector.score) == ("none", "energy")
    status = run(evaluation.main, *SMALL, "--ckpt_path", out, "--txt_ood_test", tmp_path / "none.txt")
    assert status == 2


def test_lists_that_share_files_are_noted(trained, data, tmp_path, capsys):
    root = Path(data[data.index("--iidp") + 1])
    lines = (root / "txtv.txt").read_text() + "train/0/0.jpg 0\ntrain/1/0.jpg 1\n"
    (tmp_path / "val.txt").write_text(lines)
    lists = ["--txtv", tmp_path / "val.txt", "--txt_ood_test", root / "txt_ood_train.txt"]
    notes = evaluated(tmp_path, *data, *lists, "--ckpt_path", trained)["notes"]
    assert [note.split(" images of")[0] for note in notes] == ["2 of 8", "8 of 8"]
    assert "test list" in notes[0] and "txt_ood_train" in notes[1]
    assert f"warning: {notes[0]}" in capsys.readouterr().err


def test_a_test_list_with_other_classes_is_refused(trained, data, tmp_path, capsys):
    """Written again with the classes in another order; a list without class folders says nothing."""
    (tmp_path / "val.txt").write_text("train/0/0.jpg 0\ntrain/2/0.jpg 1\n")
    status = run(evaluation.main, *SMALL, *data, "--txtv", tmp_path / "val.txt", "--ckpt_path", trained)
    error = capsys.readouterr().err.splitlines()[-1]
    assert status == 2 and "val.txt" in error and "train/2/0.jpg" in error
