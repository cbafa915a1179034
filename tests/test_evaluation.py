import sys

import numpy as np
import pytest
import torch

from utils.calibration import CALIBRATIONS, Calibration, Classifier, attention_weight, fit_attention
from utils.distributed import Compute
from utils.errors import exit_cleanly
from utils.evaluation import (
    Features,
    evaluate,
    extract_features,
)
from utils.fitting import TrainingSets, fit_calibrations, trained_statistics
from utils.losses import PATTLoss
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
    return classifier, training, random_features(15, [-1] * 15, 6).features, test, ood


def run(case, names=CALIBRATIONS):
    classifier, training, outliers, test, ood = case
    sets = TrainingSets(training, Features(outliers, None), None, training)
    calibrations, _ = fit_calibrations(names, classifier, sets, COUNTS, score="combined")
    return calibrations, *evaluate(calibrations, test, ood, COUNTS)


def scored(calibrated, features):
    """(logits, scores) of features under a calibration, all at once."""
    calibration, fitted = calibrated
    (outputs,) = calibration.outputs(features)
    return outputs.logits, fitted(outputs)


def test_calibration_multiplies_the_features():
    weight, bias = torch.tensor([[1.0, 2.0], [3.0, 4.0]]).double(), torch.tensor([10.0, 20.0]).double()
    features, attention = torch.tensor([[5.0, 6.0]]), torch.tensor([2.0, 0.5]).double()
    (outputs,) = Calibration(Classifier(weight, bias), attention).outputs(features)
    assert outputs.logits.tolist() == [[10 + 10 + 6, 20 + 30 + 12]]
    assert outputs.features.tolist() == [[10, 3]] and outputs.probe_logits is None


def test_the_probe_classifies_by_its_logits_of_the_classes(case):
    calibrations, _, _ = run(case)
    calibration, test = calibrations["probe"][0], case[3]
    logits, _ = scored(calibrations["probe"], test.features)
    assert calibration.probe.weight.shape == (5, 6)
    assert torch.equal(logits, calibration.probe.logits(test.features)[:, :4])


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
    sets = TrainingSets(case[1], None, None, case[1])
    calibrations, _ = fit_calibrations(["none"], case[0], sets, COUNTS, score="energy")
    _, fitted = calibrations["none"]
    assert set(fitted.scores) == set(score_names()) - {"probe", "combined"}
    assert not fitted.standards


def test_the_calibrations_have_one_order_and_are_there_once(case):
    assert list(run(case, ["probe", "none", "probe"])[0]) == ["none", "probe"]


def test_the_attention_is_that_of_the_equations(case):
    """tests/test_calibration.py has them; here, that their arguments are the right ones."""
    classifier, training, outliers, _, _ = case
    predicted = classifier.logits(outliers).argmax(dim=1)
    prior = torch.tensor(COUNTS) / sum(COUNTS)
    expected = attention_weight(*training, outliers, predicted, classifier.weight, prior)
    assert torch.equal(fit_attention(classifier, training, outliers, COUNTS), expected)
    assert torch.equal(run(case)[0]["fc"][0].attention, expected)


def statistics_of(checkpoint_args, dim=6, epochs=1, normalize=True):
    """A checkpoint whose criterion has seen embeddings of two classes."""
    criterion = PATTLoss([2, 2], dim, oe_weight=0, tla_weight=0, normalize=normalize)
    for _ in range(epochs):
        criterion.start_epoch()
        criterion.contrast(random_features(4, [0, 0, 1, 1], 1).features[:, :dim], torch.tensor([0, 0, 1, 1]))
    args = {"isac": True, "depart": []} | checkpoint_args
    return {"args": args, "criterion": criterion.state_dict()}, criterion.statistics


def test_class_statistics_are_taken_from_training_where_they_are_of_unit_features():
    checkpoint, statistics = statistics_of({})
    mu, kappa = trained_statistics(checkpoint, 2, 6)
    assert torch.equal(mu, statistics.mean_direction) and torch.equal(kappa, statistics.kappa)
    for other in (
        statistics_of({"isac": False})[0],
        statistics_of({"depart": ["embeddings"]}, normalize=False)[0],
        statistics_of({}, epochs=0)[0],  # random directions
        statistics_of({}, dim=5)[0],  # of another layer
        {"model": {}},
    ):
        assert trained_statistics(other, 2, 6) is None


def test_tau_normalisation_gives_unit_rows_and_no_bias():
    model = torch.nn.Module()
    model.linear = torch.nn.Linear(3, 2)
    plain, unit = Classifier.of(model), Classifier.of(model, tnorm=True)
    assert torch.allclose(unit.weight.norm(dim=1), torch.ones(2).double()) and not unit.bias.any()
    assert torch.allclose(unit.weight * plain.weight.norm(dim=1, keepdim=True), plain.weight)


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


def test_a_set_is_announced_where_there_is_no_terminal(capsys):
    images, labels = torch.arange(14.0).view(7, 2), torch.arange(7)
    plain = torch.autocast("cpu", enabled=False)
    extract_features(Doubling(), [(images, labels)], 7, CPU, plain, "svhn")
    assert capsys.readouterr().err == "svhn: 7 images\n"
    extract_features(Doubling(), [(images, labels)], 7, CPU._replace(rank=1), plain, "svhn")
    assert capsys.readouterr().err == ""


def test_a_set_has_a_bar_on_a_terminal(capsys, monkeypatch):
    images, labels = torch.arange(14.0).view(7, 2), torch.arange(7)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    extract_features(Doubling(), [(images, labels)], 7, CPU, torch.autocast("cpu", enabled=False), "svhn")
    err = capsys.readouterr().err
    assert "svhn:   0%" in err and "0/7" in err and "svhn: 7 images" not in err


def test_ctrl_c_ends_a_script_with_one_line(capsys):
    def interrupted():
        raise KeyboardInterrupt

    with pytest.raises(SystemExit) as end:
        exit_cleanly(interrupted)
    assert end.value.code == 130 and capsys.readouterr().err == "\ninterrupted\n"
