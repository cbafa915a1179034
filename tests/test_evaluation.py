import sys

import numpy as np
import pytest
import torch

from utils.calibration import CALIBRATIONS, Classifier
from utils.distributed import Compute
from utils.evaluation import Features, evaluate, extract_features
from utils.fitting import TrainingSets, fit_calibrations
from utils.metrics import OOD_METRICS, ood_metrics
from utils.plots import plot_class_accuracy
from utils.scores import score_names

COUNTS = [9, 8, 3, 2]
CPU = Compute(torch.device("cpu"))


def random_features(n, labels, seed):
    return Features(torch.randn(n, 6, generator=torch.Generator().manual_seed(seed)), torch.as_tensor(labels))


@pytest.fixture
def case():
    """A classifier, training and outlier features, the test set and OOD sets."""
    g = torch.Generator().manual_seed(0)
    classifier = Classifier(torch.randn(4, 6, generator=g).double(), torch.randn(4, generator=g).double())
    test = random_features(12, [0, 1, 2, 3] * 3, 1)
    ood = {
        "near": random_features(9, [-1, 2, -1, -1, 0, -1, -1, 3, -1], 2),
        "far": random_features(5, [-1] * 5, 3),
    }
    training = random_features(sum(COUNTS), [c for c, n in enumerate(COUNTS) for _ in range(n)], 5)
    return classifier, training, random_features(15, [-1] * 15, 6), test, ood


def run(case, names=CALIBRATIONS):
    classifier, training, outliers, test, ood = case
    sets = TrainingSets(training, outliers, None, training)
    calibrations, _ = fit_calibrations(names, classifier, sets, COUNTS, score="energy")
    return calibrations, *evaluate(calibrations, test, ood, COUNTS)


def scored(calibrated, features):
    """(logits, scores) of features under a calibration, all at once."""
    calibration, fitted = calibrated
    (outputs,) = calibration.outputs(features)
    return outputs.logits, fitted(outputs)


def test_semantically_id_images_of_an_ood_set_count_on_the_id_side(case):
    calibrations, results, scores = run(case)
    _, _, _, test, ood = case
    assert len(results["rows"]) == 3 * len(score_names()) * 2
    for row in results["rows"]:
        assert row["fc"] is (row["calibration"] == "fc")
        of_set = ood[row["ood"]]
        moved = of_set.labels >= 0
        id_side = torch.cat([test.features, of_set.features[moved]])
        id_scores = scored(calibrations[row["calibration"]], id_side)[1][row["score"]].numpy()
        ood_scores = scored(calibrations[row["calibration"]], of_set.features[~moved])[1][
            row["score"]
        ].numpy()
        assert (row["n_id"], row["n_ood"]) == ((15, 6) if row["ood"] == "near" else (12, 5))
        kept = scores[row["calibration"]][row["score"]][row["ood"]]
        np.testing.assert_allclose(kept[0], id_scores, atol=1e-9)
        np.testing.assert_allclose(kept[1], ood_scores, atol=1e-9)
        assert {m: row[m] for m in OOD_METRICS} == pytest.approx(ood_metrics(*kept))


def test_the_mean_is_unweighted_over_the_sets(case):
    _, results, _ = run(case)
    assert len(results["mean"]) == 3 * len(score_names())
    for mean in results["mean"]:
        keys = ("calibration", "score")
        rows = [r for r in results["rows"] if all(r[key] == mean[key] for key in keys)]
        for metric in OOD_METRICS:
            assert mean[metric] == pytest.approx((rows[0][metric] + rows[1][metric]) / 2)


def test_accuracy_is_of_the_test_set_alone(case):
    calibrations, results, _ = run(case)
    test = case[3]
    assert [(a["calibration"], a["fc"]) for a in results["accuracy"]] == [
        ("none", False),
        ("fc", True),
        ("probe", False),
    ]
    for row in results["accuracy"]:
        right = scored(calibrations[row["calibration"]], test.features)[0].argmax(dim=1) == test.labels
        assert row["all"] == pytest.approx(right.double().mean().item())
        assert row["per_class"] == pytest.approx(
            [right[test.labels == c].double().mean().item() for c in range(4)]
        )


def test_a_class_without_test_images_has_no_accuracy(case, tmp_path):
    _, results, _ = run([*case[:3], random_features(12, [0, 1, 3] * 4, 1), case[4]])
    for row in results["accuracy"]:
        assert row["per_class"][2] is None and None not in (row["per_class"][0], row["all"])
    plot_class_accuracy({"network": row["per_class"]}, COUNTS, tmp_path / "classes.png")  # leaves a gap


def test_without_outliers_there_is_no_probe(case):
    calibrations, _, _ = run([*case[:2], None, *case[3:]], ["none"])
    _, fitted = calibrations["none"]
    assert set(fitted.scores) == set(score_names()) - {"probe", "combined"} and not fitted.standards


def test_without_ood_sets_there_is_accuracy(case):
    _, results, scores = run([*case[:4], {}])
    assert results["rows"] == results["mean"] == [] and not any(scores.values())
    assert [a["all"] for a in results["accuracy"]] == [a["all"] for a in run(case)[1]["accuracy"]]


def test_the_calibrations_have_one_order_and_are_there_once(case):
    assert list(run(case, ["probe", "none", "probe"])[0]) == ["none", "probe"]


class Doubling(torch.nn.Module):
    def forward(self, images):
        return Features(2 * images.flatten(1), None)


def test_features_of_every_image_once_and_in_order():
    images, labels = torch.arange(14.0).view(7, 2), torch.arange(7)
    batches = list(zip(images.split(3), labels.split(3), strict=True))
    plain = torch.autocast("cpu", enabled=False)
    features = extract_features(Doubling(), batches, 7, CPU, plain)
    assert torch.equal(features.features, 2 * images) and torch.equal(features.labels, labels)
    with pytest.raises(RuntimeError, match="6 images"):
        extract_features(Doubling(), batches[:2], 7, CPU, plain)


@pytest.mark.parametrize("terminal", [True, False])
def test_a_set_is_announced_once_or_has_a_bar_on_a_terminal(terminal, capsys, monkeypatch):
    images, labels = torch.arange(14.0).view(7, 2), torch.arange(7)
    plain = torch.autocast("cpu", enabled=False)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: terminal)
    extract_features(Doubling(), [(images, labels)], 7, CPU._replace(rank=1), plain, "svhn")
    assert capsys.readouterr().err == ""
    extract_features(Doubling(), [(images, labels)], 7, CPU, plain, "svhn")
    err = capsys.readouterr().err
    assert ("svhn:   0%" in err) is terminal and (err == "svhn: 7 images\n") is not terminal


def test_a_daemon_without_streams_evaluates(monkeypatch):
    monkeypatch.setattr(sys, "stdout", None)
    monkeypatch.setattr(sys, "stderr", None)
    batches, plain = [(torch.ones(7, 2), torch.arange(7))], torch.autocast("cpu", enabled=False)
    assert extract_features(Doubling(), batches, 7, CPU, plain, "svhn").features.shape == (7, 2)
