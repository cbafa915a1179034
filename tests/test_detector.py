"""The detector against the evaluation that wrote it, and its command line."""

import csv
import json
import re
import shutil
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch
from command_line import ROOT, assert_one_sentence, load_script, run
from image_files import photograph
from PIL import Image
from test_imagenet_cli import SMALL, TRAIN, write_lists

import train
import train_imagenet
from datasets.digits import load_digits
from utils import results
from utils.detector import Detection, Detector
from utils.errors import InputError
from utils.scores import score_names

evaluation, imagenet_evaluation = load_script("test"), load_script("test_imagenet")
WAYS = ("none", "fc", "probe")
VAL_FRACTION = 0.2
TRAINING_WARNING = "ignore:the detector.s threshold keeps"


class Evaluated(NamedTuple):
    """A run directory that a test script has evaluated, and the scores that its metrics were computed from:
    calibration -> score -> OOD set -> (of ID images, of OOD images)."""

    folder: Path
    scores: dict


def evaluate(script, *argv):
    """Runs a test script and returns the scores that its metrics were computed from."""
    given, original = [], results.evaluate

    def record(*args):
        given.append(original(*args))
        return given[0]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(results, "evaluate", record)
        assert run(script.main, *argv) == 0
    return given[0][1]


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    """A digits run of one epoch with images held out."""
    folder = tmp_path_factory.mktemp("digits") / "run"
    flags = ["--ds", "digits", "--gpu", "cpu", "-b", 128, "--ob", 32, "-e", 1, "--val_fraction", VAL_FRACTION]
    assert run(train.main, *flags, "--srp", folder) == 0
    argv = ["--gpu", "cpu", "--ckpt_path", folder, "--dout", "digits89", "--num_ood_samples", 200]
    argv += ["--score", "knn", "--tb", 50]
    return Evaluated(folder, evaluate(evaluation, *argv))


@pytest.fixture(scope="module")
def photographs(tmp_path_factory):
    """An ImageNet-style run without held-out images; and the folder of its images."""
    root, folder = tmp_path_factory.mktemp("photographs"), tmp_path_factory.mktemp("run") / "run"
    data = write_lists(root)
    assert run(train_imagenet.main, *TRAIN, *data, "--srp", folder) == 0
    scores = evaluate(imagenet_evaluation, *SMALL, "--ckpt_path", folder, "--score", "knn")
    return Evaluated(folder, scores), root


def test_auto_is_not_judged_on_outliers_that_were_trained_on(digits, tmp_path, capsys):
    """Of 4,000 outliers training saw the first 3,600."""
    argv = ["--gpu", "cpu", "--ckpt_path", digits.folder, "--srp", tmp_path, "--calibration", "auto"]
    status = run(evaluation.main, *argv, "--num_ood_samples", 3600)
    assert_one_sentence(capsys, status, "--calibration auto", "--num_ood_samples")
    assert run(evaluation.main, *argv, "--num_ood_samples", 3700, "--dout", "noise") == 0
    assert json.loads((tmp_path / "results.json").read_text())["num_ood_samples"] == 3600


def scores_of(detections):
    return [found.score for found in detections]


@pytest.mark.parametrize("way", WAYS)
def test_scores_of_digits_are_those_of_the_evaluation(way, digits):
    images = load_digits(False).images[::8]
    for score in score_names():
        expected = digits.scores[way][score]["digits89"][0][::8]
        found = Detector.load(digits.folder, "cpu", calibration=way, score=score)(images)
        np.testing.assert_allclose(scores_of(found), expected, atol=1e-5, rtol=1e-5)


def test_classes_and_probabilities_of_digits(digits):
    test = load_digits(False)
    results = json.loads((digits.folder / "results.json").read_text())
    for way in WAYS:
        found = Detector.load(digits.folder, calibration=way, score="msp")(test.images)
        accuracy = np.mean([one.label for one in found] == test.labels.numpy())
        (expected,) = (row["all"] for row in results["accuracy"] if row["calibration"] == way)
        assert accuracy == pytest.approx(expected)
        assert all(
            one.probability == pytest.approx(-one.score) and 1 / 8 <= one.probability <= 1 for one in found
        )
        assert all(one.name == str(one.label) for one in found)


def test_the_default_is_the_network_as_it_is_with_the_combined_score(digits):
    detector = Detector.load(str(digits.folder))
    assert (detector.calibration, detector.score, detector.held_out) == ("none", "combined", True)
    args, results = (json.loads((digits.folder / f"{n}.json").read_text()) for n in ("args", "results"))
    assert (args["num_outliers"], results["num_ood_samples"]) == (3600, 200)  # all of these were trained on
    assert Detector.load(digits.folder / "detector.pth").threshold == detector.threshold


@pytest.mark.filterwarnings(TRAINING_WARNING)
@pytest.mark.parametrize("size", [(16, 16), (41, 24)])
@pytest.mark.parametrize("kind", ["digits", "photographs"])
def test_pictures_lists_and_tensors_give_the_same(kind, size, request, tmp_path):
    run_of = request.getfixturevalue(kind)
    folder = run_of.folder if kind == "digits" else run_of[0].folder
    # After one epoch on 12 images mahalanobis enlarges the rounding of a batch's size a thousand times.
    detector = Detector.load(folder, score="energy")
    pictures = [photograph(seed, *size) for seed in range(3)]
    pixels = torch.stack([torch.from_numpy(np.array(one)).permute(2, 0, 1) for one in pictures])
    expected = detector(pictures)
    assert [type(one) for one in expected] == [Detection] * 3 and len(set(scores_of(expected))) == 3
    for images in (pixels, pixels.float() / 255, pixels.double() / 255, list(pixels), tuple(pictures)):
        assert detector(images) == expected
    for one in (pictures[0], pixels[0], pixels[0].float() / 255, [pictures[0]], pixels[:1]):
        assert scores_of(detector(one)) == pytest.approx(scores_of(expected[:1]), abs=1e-5, rel=1e-5)
    for i, one in enumerate(pictures):
        one.save(tmp_path / f"{i}.png")
    files = torch.stack([detector.preprocessing.of_file(tmp_path / f"{i}.png") for i in range(3)])
    assert detector.of_prepared(files) == expected
    assert detector([]) == []


def test_an_imagenet_run_without_held_out_images(photographs):
    (folder, scores), root = photographs
    files = [root / "val" / f"{i}.jpg" for i in range(6)]
    for way in WAYS:
        for score in score_names():
            with pytest.warns(UserWarning, match="threshold keeps 95 % of 12 training images"):
                detector = Detector.load(folder, calibration=way, score=score)
            expected = scores[way][score]["txt_ood_test"][0]
            found = detector.of_prepared(
                torch.stack([detector.preprocessing.of_file(path) for path in files])
            )
            np.testing.assert_allclose(scores_of(found), expected, atol=1e-5, rtol=1e-5)
    assert detector.class_names == ["0", "1", "2"] and detector.preprocessing.size == 32
    found = detector([Image.open(path) for path in files])
    np.testing.assert_allclose(scores_of(found), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    "images",
    [
        torch.full((1, 3, 16, 16), 1.01),
        torch.full((1, 3, 16, 16), torch.nan),
        torch.zeros(2, 1, 16, 16),
        "x.png",
        np.zeros((16, 16, 3), np.uint8),
        [photograph(0), Image.new("F", (16, 16))],
    ],
    ids=["not in [0, 1]", "nan", "grey", "a name", "numpy", "floats"],
)
def test_what_is_no_image_is_refused(images, digits):
    with pytest.raises(InputError):
        Detector.load(digits.folder)(images)


# --- the command line


@pytest.fixture
def photos(tmp_path):
    """A folder with two pictures, one of them in a folder of its own, and a text."""
    (tmp_path / "photos" / "more").mkdir(parents=True)
    photograph(0).save(tmp_path / "photos" / "a.png")
    photograph(1).save(tmp_path / "photos" / "more" / "b, c.jpg")
    (tmp_path / "photos" / "note.txt").write_text("no picture")
    return tmp_path / "photos"


@pytest.mark.filterwarnings(TRAINING_WARNING)
@pytest.mark.parametrize("kind", ["digits", "photographs"])
def test_images_on_the_command_line(kind, request, photos, tmp_path, capsys):
    run_of = request.getfixturevalue(kind)
    script, folder = (
        (evaluation, run_of.folder) if kind == "digits" else (imagenet_evaluation, run_of[0].folder)
    )
    alone = tmp_path / "deployed"  # without the checkpoint
    alone.mkdir()
    shutil.copy(folder / "detector.pth", alone)
    argv = ["--images", photos, tmp_path / "missing.png", photos / "a.png"]
    argv += ["--ckpt_path", alone, "--gpu", "cpu"]
    assert run(script.main, *argv, "--calibration", "probe", "--score", "energy") == 0
    captured = capsys.readouterr()
    for name in ("note.txt", "missing.png"):
        assert captured.err.count(name) == 1
    assert captured.out.count("a.png: class ") == captured.out.count("b, c.jpg: class ") == 1
    with open(alone / "predictions.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    files = [photos / "a.png", photos / "more" / "b, c.jpg"]
    assert [row["path"] for row in rows] == [str(path) for path in files]
    detector = Detector.load(folder, "cpu", "probe", "energy")
    expected = detector.of_prepared(torch.stack([detector.preprocessing.of_file(path) for path in files]))
    for row, one in zip(rows, expected, strict=True):
        assert list(row) == ["path", "class", "class_name", "probability", "score", "ood"]
        assert (int(row["class"]), row["class_name"], row["ood"]) == (one.label, one.name, str(one.ood))
        numbers = float(row["probability"]), float(row["score"])
        assert numbers == pytest.approx((one.probability, one.score), rel=1e-4)


def test_predictions_may_be_made_again_with_another_share(digits, photos, tmp_path, capsys):
    argv = ["--images", photos, "--ckpt_path", digits.folder, "--gpu", "cpu", "--srp", tmp_path / "out"]
    tables = []
    for flags in ([], ["--keep", 0.0001]):  # which keeps only the image that looks least OOD
        assert run(evaluation.main, *argv, *flags) == 0
        tables.append(list(csv.DictReader((tmp_path / "out" / "predictions.csv").read_text().splitlines())))
    assert not (digits.folder / "predictions.csv").exists()
    assert "keeps 0.01 % of" in capsys.readouterr().out
    assert [row["score"] for row in tables[0]] == [row["score"] for row in tables[1]]
    assert {row["ood"] for row in tables[1]} == {"True"}


def test_images_that_cannot_be_scored(digits, photos, tmp_path, capsys):
    run_of, flags = ["--ckpt_path", digits.folder], ["--gpu", "cpu", "--srp", tmp_path / "out"]
    for argv, named in (
        (["--images", photos, "--ckpt_path", tmp_path], "test.py"),
        (["--images", photos / "note.txt", *run_of], "note.txt"),
        (["--images", photos, *run_of, "--calibration", "fc", "none"], "--calibration"),
        (["--images", photos, *run_of, "--calibration", "auto"], "--calibration"),
        (["--images", photos, *run_of, "--tnorm"], "--tnorm"),
        (["--select", "best", "--ckpt_path", digits.folder / "latest.pth"], "--select"),
    ):
        assert run(evaluation.main, *argv, *flags) == 2
        assert named in capsys.readouterr().err.splitlines()[-1]
    assert not list(tmp_path.rglob("predictions.csv"))


# --- README


def test_the_snippet_in_the_readme_runs(digits, photos, tmp_path, monkeypatch, capsys):
    section = (ROOT / "README.md").read_text().split("\n## Use a trained network\n")[1]
    snippet = re.search(r"^```python\n(.*?)^```", section, re.S | re.M)
    (photos / "a.png").rename(tmp_path / "photo.png")
    (tmp_path / "runs" / "demo").mkdir(parents=True)
    (tmp_path / "runs" / "demo" / "patt").symlink_to(digits.folder)
    monkeypatch.chdir(tmp_path)
    exec(snippet[1], {})
    name, probability, _, decision = capsys.readouterr().out.split()
    (expected,) = Detector.load(digits.folder)(Image.open("photo.png"))
    assert (name, decision) == (expected.name, "OOD" if expected.ood else "ID")
    assert float(probability) == expected.probability
