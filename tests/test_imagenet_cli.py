"""The ImageNet-LT command lines end to end, on small files that the tests make."""

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from command_line import ROOT, load_script, run
from image_files import truncate
from PIL import Image

import train_imagenet
from datasets.imagenet import balanced_sample, load_files
from utils import conclusion
from utils.errors import InputError
from utils.run.checkpoint import load_run
from utils.scores import score_names

evaluation = load_script("test_imagenet")
CLASSES, SMALL = 3, ["--gpu", "cpu", "--num_workers", "0"]
TRAIN = [
    *SMALL,
    "--md",
    "ResNet18",
    "--image_size",
    "32",
    "-e",
    "1",
    "-b",
    "4",
    "--ob",
    "4",
    "--randaug_n",
    "1",
]


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
    lists["txt_ood_train"], lists["txt_ood_test"] = (
        write_images(root, "extra", 8, 11),
        write_images(root, "ood", 5, 12),
    )
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
    torch.set_num_threads(1)
    assert run(train_imagenet.main, *TRAIN, *data, "--srp", out) == 0
    return out


def results_of(folder):
    return json.loads((folder / "results.json").read_text())


def test_training_and_evaluation(trained, data, capsys):
    record = json.loads((trained / "log.jsonl").read_text())
    assert all(np.isfinite(record[term]) for term in ("loss", "isac", "tla", "oe"))
    checkpoint = torch.load(trained / "latest.pth", weights_only=True)
    assert checkpoint["class_counts"] == [6, 4, 2] and checkpoint["model"]["linear.weight"].shape == (
        CLASSES,
        512,
    )
    assert checkpoint["criterion"]["statistics.sums"].shape == (CLASSES, 1024)
    assert run(evaluation.main, *SMALL, *data, "--ckpt_path", trained, "--num_cal", "6") == 0
    rows = results_of(trained)["rows"]
    assert {(r["calibration"], r["score"], r["n_id"], r["n_ood"]) for r in rows} == {
        (way, score, 6, 5) for way in ("none", "fc", "probe") for score in score_names()
    }
    assert set(results_of(trained)["vmf"].values()) == {
        "training features"
    }  # the statistics are of the embedding head
    assert "txt_ood_test | fc" in capsys.readouterr().out


def test_feature_calibration_sees_num_cal_images_and_scores_see_all(trained, data, tmp_path, monkeypatch):
    """Of classes of 6, 4 and 2 images, a balanced sample of 6 has 2 each."""
    fitted, original = {}, conclusion.fit_calibrations

    def record(*args, **kwargs):
        calibrations, facts = original(*args, **kwargs)
        fitted.update(args[2]._asdict(), scores=calibrations["none"][1].scores, num_cal=facts["num_cal"])
        return calibrations, facts

    monkeypatch.setattr(conclusion, "fit_calibrations", record)
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
    assert "warning: held-out images: 1 file cannot be read" in capsys.readouterr().err
    evaluate = [*SMALL, *data, "--ckpt_path", out, "--num_cal", "8"]
    assert run(evaluation.main, *evaluate) == 0
    notes = results_of(out)["notes"]
    assert len(notes) == len(damaged)
    for note, (title, name) in zip(sorted(notes), sorted(damaged.items()), strict=True):
        assert note.startswith(f"{title}: 1 file cannot be read and was replaced") and name in note
        assert str(tmp_path) not in note
    for name in ("ood/3.jpg", "val/3.jpg"):  # the test images are read first
        truncate(tmp_path / name)
        assert run(evaluation.main, *evaluate) == 2
        assert f"{name} cannot be read" in capsys.readouterr().err


def test_an_unexpected_error_ends_the_process_though_workers_read_ahead(data, tmp_path):
    code = """if True:
        import train_imagenet
        from utils.errors import exit_cleanly
        from utils.losses import PATTLoss

        def forward(*_):
            raise RuntimeError("out of memory")

        PATTLoss.forward = forward
        exit_cleanly(train_imagenet.main)
    """
    flags = [*TRAIN, *data, "--num_workers", "1", "--srp", str(tmp_path / "run")]
    command = [sys.executable, "-c", code, *flags]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert ended.returncode == 1 and "Traceback" in ended.stderr and "out of memory" in ended.stderr


def test_every_process_reports_the_files_it_could_not_read(tmp_path):
    data = write_lists(tmp_path)
    for i in range(5):  # of six
        truncate(tmp_path / f"train/0/{i}.jpg")
    ended = torchrun("train_imagenet.py", *TRAIN, *data, "--srp", tmp_path / "run")
    assert ended.stdout.count("cannot be read and were replaced") == 2, ended.stdout + ended.stderr


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


def test_every_ood_list_is_reported_under_its_name(trained, data, tmp_path):
    root = Path(data[data.index("--iodp") + 1])
    lines = (root / "txt_ood_test.txt").read_text().splitlines()
    for name, chosen in (("sky", lines[:3]), ("sea", lines[3:])):
        (tmp_path / f"{name}.txt").write_text("\n".join(chosen) + "\n")
    argv = [*SMALL, *data, "--ckpt_path", trained, "--srp", tmp_path / "out", "--FC", "False"]
    lists = ["--txt_ood_test", tmp_path / "sky.txt", tmp_path / "sea.txt"]
    assert run(evaluation.main, *argv, *lists) == 0
    rows = results_of(tmp_path / "out")["rows"]
    assert {(row["ood"], row["n_ood"]) for row in rows} == {("sky", 3), ("sea", 2)}


def test_two_ood_lists_of_one_name_are_refused(trained, data, tmp_path, capsys):
    argv = [*SMALL, *data, "--ckpt_path", trained, "--srp", tmp_path, "--FC", "False"]
    twice = [data[data.index("--txt_ood_test") + 1]] * 2
    assert run(evaluation.main, *argv, "--txt_ood_test", *twice) == 2
    assert "two lists 'txt_ood_test'" in capsys.readouterr().err


def torchrun(script, *argv):
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc_per_node=2",
        ROOT / script,
        *argv,
    ]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [str(c) for c in command], cwd=ROOT, env=environment, capture_output=True, text=True
    )


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


KILLED_IN_EPOCH_2 = """
import os, signal, sys, time
from pathlib import Path
import train_imagenet
from utils.run.run import Run

def vote(run):
    if run.epoch == 1:
        while not (run.out.folder / "latest.pth").exists():
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGKILL)
    return False, False

Run._vote = vote
train_imagenet.main(sys.argv[1:])
"""


def test_kill_9_and_resume_gives_the_statistics_of_the_unbroken_run(data, tmp_path):
    flags = [*TRAIN, *data, "-e", "2"]
    assert run(train_imagenet.main, *flags, "--srp", tmp_path / "unbroken") == 0
    command = [sys.executable, "-c", KILLED_IN_EPOCH_2, *flags, "--srp", tmp_path / "killed"]
    killed = subprocess.run([str(c) for c in command], cwd=ROOT, env=os.environ | {"OMP_NUM_THREADS": "1"})
    assert killed.returncode == -signal.SIGKILL and load_run(tmp_path / "killed")["epoch"] == 1
    root = Path(data[data.index("--iidp") + 1])
    shutil.copytree(root, tmp_path / "moved")
    moved = [str(word).replace(str(root), str(tmp_path / "moved")) for word in flags]
    assert moved != flags
    assert run(train_imagenet.main, *moved, "--srp", tmp_path / "killed", "--resume") == 0
    a, b = (torch.load(tmp_path / name / "latest.pth", weights_only=True) for name in ("unbroken", "killed"))
    assert a["epoch"] == b["epoch"] == 2
    for part in ("criterion", "model"):
        assert all(torch.equal(a[part][key], b[part][key]) for key in a[part])


def test_classes_of_one_image_leave_nothing_to_hold_out(data, tmp_path, capsys):
    """Validation then has no images; training and evaluation end all the same."""
    (tmp_path / "list.txt").write_text("".join(f"train/{c}/0.jpg {c}\n" for c in range(CLASSES)))
    lists, out = [*data, "--txtt", tmp_path / "list.txt"], tmp_path / "out"
    sizes = ["-b", "2", "--ob", "2", "--val_fraction", "0.1"]
    assert run(train_imagenet.main, *TRAIN, *lists, *sizes, "--srp", out) == 0
    assert json.loads((out / "log.jsonl").read_text())["val_accuracy"]["all"] is None
    assert run(evaluation.main, *SMALL, *lists, "--ckpt_path", out) == 0
    scores = {row["score"] for row in results_of(out)["rows"]}
    assert scores == set(score_names()) - {"mahalanobis", "combined"} and (out / "detector.pth").is_file()
    auto = run(evaluation.main, *SMALL, *lists, "--ckpt_path", out, "--calibration", "auto")
    assert auto == 2 and "this run held out none" in capsys.readouterr().err


def test_both_command_lines_of_the_authors_parse(data):
    line = "--gpu 0,1,2,3 --ds imagenet --md ResNet50 --lr 0.1 --Lambda1 0.02 --Lambda2 0.5 --srp OUT"
    args = train_imagenet.parse_args([*line.split(), *data])
    assert (args.model, args.opt, args.lr, args.wd, args.batch_size, args.ob) == (
        "ResNet50",
        "sgd",
        0.1,
        5e-5,
        32,
        64,
    )
    assert (args.tem_scale, args.temperature, args.epochs, args.decay_epochs) == (0.7, 0.1, 100, [60, 80])
    assert args.num_ood_samples is None  # the whole list
    args = evaluation.parse_args(["--gpu", "0", "--FC", "True", *data, "--ckpt_path", "DIR"])
    assert args.FC is True and args.num_cal == 30_000


def test_the_released_recipe_departs_where_it_makes_a_difference():
    assert train_imagenet.parse_args(["--recipe", "released"]).depart == ["embeddings", "statistics"]
    with pytest.raises(InputError, match="--depart crop makes no difference on imagenet"):
        train_imagenet.parse_args(["--depart", "crop"])


def test_the_learning_rate_falls_at_the_decay_epochs():
    rate = train_imagenet.step_decay(0.1, [60, 80])
    assert [rate(e) for e in (0, 59, 60, 79, 80, 99)] == pytest.approx([0.1, 0.1, 0.01, 0.01, 0.001, 0.001])


def test_a_calibration_sample_is_as_balanced_as_the_classes_admit():
    labels = torch.tensor([0] * 10 + [1] * 3 + [2] * 1)
    for size, expected in ((3, [1, 1, 1]), (7, [3, 3, 1]), (8, [4, 3, 1]), (100, [10, 3, 1])):
        chosen = balanced_sample(labels, size, seed=0)
        assert len(chosen.unique()) == len(chosen) and torch.bincount(labels[chosen]).tolist() == expected
    assert balanced_sample(labels, 5, 0).tolist() != balanced_sample(labels, 5, 1).tolist()


@pytest.mark.parametrize(
    "lines, words",
    [
        (None, "cannot be read"),
        (["../x.jpg 0"], "climbs out of its folder"),
        (["train/0/0.jpg -1"], "label -1"),
        (["train/0/0.jpg 0", "train/0/1.jpg 2"], "class 1 of 3 has no image"),
        (["train/0/0.jpg 0", "train/0/1.jpg 0"], "images of one class only"),
        (["train/0/0.jpg 0", "train/0/nothing.jpg 0"], "1 of 2 images"),
        (["train/0/0.jpg zero"], "line 1"),
    ],
)
def test_wrong_training_lists_are_refused(lines, words, data, tmp_path, capsys):
    if lines is not None:
        (tmp_path / "list.txt").write_text("\n".join(lines) + "\n")
    flags = [*TRAIN, *data, "--txtt", tmp_path / "list.txt", "--srp", tmp_path / "out"]
    assert run(train_imagenet.main, *flags) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1 and "list.txt" in error
    assert words in error
    assert not (tmp_path / "out").exists()


def test_a_test_label_beyond_the_classes_is_refused_with_its_line(data, tmp_path):
    root = Path(data[data.index("--iidp") + 1])
    (tmp_path / "list.txt").write_text("train/0/0.jpg 2\ntrain/0/1.jpg 3\n")
    with pytest.raises(InputError, match=r"list.txt, line 2: .*has the label 3, outside 0\.\.2$"):
        load_files(tmp_path / "list.txt", root, num_classes=3)


def test_what_does_not_fit_the_checkpoint_is_refused(trained, data, tmp_path, capsys):
    flags = [*SMALL, *data, "--ckpt_path", trained, "--srp", tmp_path]
    root = data[data.index("--iidp") + 1]
    (tmp_path / "more.txt").write_text("".join(f"train/0/{i}.jpg {i}\n" for i in range(4)))
    (tmp_path / "other.txt").write_text("".join(f"train/0/{i}.jpg {i % 3}\n" for i in range(6)))
    for extra, words in (
        (["--txtt", tmp_path / "more.txt"], "not those of the checkpoint"),
        (["--txtt", tmp_path / "other.txt"], "not those of the checkpoint"),
        (["--txtv", tmp_path / "more.txt"], "label 3"),
        (["--image_size", "64"], "contradicts"),
        (["--num_cal", "2"], "--num_cal 2"),
        (["--iodp", f"{root}/train"], "txt_ood_test.txt"),
    ):
        capsys.readouterr()
        assert run(evaluation.main, *flags, *extra) == 2
        assert words in capsys.readouterr().err
    assert not (tmp_path / "results.json").exists()


def test_a_test_list_has_no_more_classes_than_the_training_list(data):
    root = data[data.index("--iidp") + 1]
    with pytest.raises(InputError, match="label 2"):
        load_files(data[data.index("--txtt") + 1], root, num_classes=2)
