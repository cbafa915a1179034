"""The files of an evaluation: written together, and what others can do with them."""

import json
import re
import resource

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from command_line import ROOT, load_script, run
from pytorch_ood import detector as ood

from utils import results
from utils.results import markdown

evaluation = load_script("test")
OUTPUTS = {"results.json", "results.csv", "results.md", "scores.png", "roc.png", "detector.pth"}


@pytest.fixture
def argv(digits_run, tmp_path):
    return ["--gpu", "cpu", "--dout", "noise", "--FC", "no", "--ckpt_path", digits_run, "--srp", tmp_path]


def names(folder):
    return {path.name for path in folder.iterdir()}


def test_an_evaluation_replaces_all_files_of_an_earlier_one(argv, tmp_path):
    for old in ("scores.svg", "roc.pdf", "detector.pth", "results.json"):
        (tmp_path / old).write_text("old")
    assert run(evaluation.main, *argv, "--save_features") == 0
    assert names(tmp_path) == OUTPUTS | {"features"}
    assert run(evaluation.main, *argv, "--figures", "svg") == 0
    assert names(tmp_path) == {name.replace(".png", ".svg") for name in OUTPUTS}


def test_a_full_disk_leaves_the_files_of_the_earlier_evaluation(argv, tmp_path, capsys):
    for old in ("results.json", "detector.pth"):
        (tmp_path / old).write_text("old")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))  # enough for all but the detector
    try:
        status = run(evaluation.main, *argv)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    error = capsys.readouterr().err
    assert status == 2 and f"error: the results could not be written to {tmp_path}" in error
    assert "File too large" in error.splitlines()[-1]
    assert names(tmp_path) == {"results.json", "detector.pth"}
    assert (tmp_path / "results.json").read_text() == (tmp_path / "detector.pth").read_text() == "old"


def test_a_plot_that_fails_costs_no_number_and_other_files_stay(argv, tmp_path, monkeypatch):
    def fail(*args):
        raise ValueError("no font")

    (tmp_path / "features").mkdir()
    for mine in ("features/mine.npz", "scores.svg"):
        (tmp_path / mine).write_text("of no evaluation")
    monkeypatch.setattr(results, "plot_score_histograms", fail)
    assert run(evaluation.main, *argv) == 1
    assert names(tmp_path) == OUTPUTS - {"scores.png", "roc.png"} | {"features", "scores.svg"}
    assert run(evaluation.main, *argv, "--save_features") == 2
    assert (tmp_path / "features" / "mine.npz").exists() and (tmp_path / "detector.pth").exists()


def test_the_table_of_classes_has_names_and_ends_with_the_rarest():
    accuracy = {"calibration": "none", "all": 0.5, "many": 1, "medium": None, "few": 0, "macro_f1": 0.4}
    found = {"dataset": "imagenet", "data": "birds", "network": "ResNet18", "seed": 1, "epoch": 1}
    found |= {"epochs": 1, "score": "energy", "tnorm": False, "notes": [], "rows": [], "mean": []}
    found |= {"class_counts": [2, 9, 5], "class_names": ["a|b", "$x", "猫"]}
    text = markdown(found | {"accuracy": [accuracy | {"per_class": [0.25, 1.0, None]}]})
    assert text.startswith("# birds\n\nbirds, ResNet18, seed 1")
    rows = [[cell.strip() for cell in line[1:-1].split(" | ")] for line in text.splitlines()[-3:]]
    assert rows == [["$x", "9", "100.00"], ["猫", "5", "-"], ["a\\|b", "2", "25.00"]]


@pytest.fixture(scope="module")
def exported(digits_run, tmp_path_factory):
    """Files of features by set, and the scores of digits89 that the evaluation computed from them."""
    folder, given = tmp_path_factory.mktemp("exported"), []
    original = results.evaluate

    def record(*args):
        given.append(original(*args))
        return given[0]

    argv = ["--gpu", "cpu", "--ckpt_path", digits_run, "--srp", folder, "--dout", "digits89", "photo"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(results, "evaluate", record)
        assert run(evaluation.main, *argv, "--num_ood_samples", 50, "--save_features") == 0
    files = {path.stem: np.load(path) for path in (folder / "features").iterdir()}
    return files, {score: of["digits89"] for score, of in given[0][1]["none"].items()}, folder


def test_features_of_every_set_are_written(exported):
    files, _, folder = exported
    counts = json.loads((folder / "results.json").read_text())["class_counts"]
    sizes = {"test": 320, "training": sum(counts), "outliers": 50, "digits89": 354, "photo": 400}
    assert {name: len(file["labels"]) for name, file in files.items()} == sizes
    for file in files.values():
        shapes = (file["features"].shape, file["logits"].shape)
        assert shapes == ((len(file["labels"]), 64), (len(file["labels"]), 8))
        assert file["features"].dtype == file["logits"].dtype == np.float32
    assert np.bincount(files["training"]["labels"]).tolist() == counts
    assert (files["digits89"]["labels"] < 0).all() and (files["test"]["labels"] >= 0).all()


def pytorch_oods(score, training, features, logits):
    """The same score by pytorch-ood, where its definition differs with ours: 1 - cosine is half the squared
    distance of unit vectors; our covariance has a ridge, and our Mahalanobis distance is whole, not half."""
    if score in ("energy", "msp", "maxlogit"):
        kinds = {"energy": ood.EnergyBased, "msp": ood.MaxSoftmax, "maxlogit": ood.MaxLogit}
        return kinds[score](None).predict_logits(logits)
    labels = torch.from_numpy(training["labels"])
    if score == "knn":
        detector = ood.KNN(None, k=5).fit_features(torch.from_numpy(training["features"]), labels)
        return detector.predict_features(features).square() / 2
    u = F.normalize(torch.from_numpy(training["features"]))
    detector = ood.Mahalanobis(None).fit_features(u, labels)
    covariance = detector.cov.double() / len(u)
    covariance += 0.1 * covariance.trace() / len(covariance) * torch.eye(len(covariance))
    detector.precision = covariance.inverse().float()
    return 2 * detector.predict_features(F.normalize(features))


@pytest.mark.parametrize("score", ["energy", "msp", "maxlogit", "knn", "mahalanobis"])
def test_pytorch_ood_finds_our_scores_in_the_files(score, exported):
    files, scores, _ = exported
    of_set = [torch.from_numpy(files["digits89"][name]) for name in ("features", "logits")]
    theirs = pytorch_oods(score, files["training"], *of_set)
    np.testing.assert_allclose(scores[score][1], theirs, rtol=2e-3, atol=1e-4)


def test_the_readmes_recipe_for_pytorch_ood_finds_our_auroc(exported, tmp_path, monkeypatch, capsys):
    folder = exported[2]
    (tmp_path / "runs" / "demo").mkdir(parents=True)
    (tmp_path / "runs" / "demo" / "patt").symlink_to(folder)
    monkeypatch.chdir(tmp_path)
    _, recipe = re.findall(r"(?s)```python\n(.*?)```", (ROOT / "README.md").read_text())
    exec(recipe, {})
    found = float(re.search(r"'AUROC': ([0-9.]+)", capsys.readouterr().out)[1])
    rows = json.loads((folder / "results.json").read_text())["rows"]
    (row,) = (r for r in rows if (r["ood"], r["calibration"], r["score"]) == ("digits89", "none", "energy"))
    assert found == pytest.approx(row["auroc"], abs=1e-4)  # float32 logits may swap a near tie
