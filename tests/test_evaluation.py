import numpy as np
import pytest
import torch

from utils.calibration import CALIBRATIONS, Classifier
from utils.distributed import Compute
from utils.evaluation import Features, evaluate
from utils.fitting import TrainingSets, fit_calibrations
from utils.metrics import OOD_METRICS, ood_metrics
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
    sets = TrainingSets(training, outliers, None, None, training, outliers)
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
    assert len(results["mean"]) == 3 * len(score_names())
    for mean in results["mean"]:  # unweighted over the sets
        near, far = (
            r for r in results["rows"] if all(r[key] == mean[key] for key in ("calibration", "score"))
        )
        assert {m: mean[m] for m in OOD_METRICS} == pytest.approx(
            {m: (near[m] + far[m]) / 2 for m in OOD_METRICS}
        )


def test_accuracy_is_of_the_test_set_alone(case):
    calibrations, results, _ = run(case)
    test = case[3]
    ways = [("none", False), ("fc", True), ("probe", False)]
    assert [(a["calibration"], a["fc"]) for a in results["accuracy"]] == ways
    for row in results["accuracy"]:
        right = scored(calibrations[row["calibration"]], test.features)[0].argmax(dim=1) == test.labels
        assert row["all"] == pytest.approx(right.double().mean().item())
        assert row["per_class"] == pytest.approx(
            [right[test.labels == c].double().mean().item() for c in range(4)]
        )
