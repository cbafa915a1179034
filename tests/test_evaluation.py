import numpy as np
import pytest
import torch

from utils.calibration import attention_weight
from utils.distributed import Compute
from utils.evaluation import SCORES, Classifier, Features, evaluate, extract_features
from utils.metrics import OOD_METRICS, ood_metrics
from utils.plots import plot_class_accuracy

COUNTS = [9, 8, 3, 2]
CPU = Compute(torch.device("cpu"))


def random_features(n, labels, seed):
    return Features(torch.randn(n, 6, generator=torch.Generator().manual_seed(seed)), torch.as_tensor(labels))


@pytest.fixture
def case():
    g = torch.Generator().manual_seed(0)
    classifier = Classifier(torch.randn(4, 6, generator=g).double(), torch.randn(4, generator=g).double())
    test = random_features(12, [0, 1, 2, 3] * 3, 1)
    ood = {
        "near": random_features(9, [-1, 2, -1, -1, 0, -1, -1, 3, -1], 2),
        "far": random_features(5, [-1] * 5, 3),
    }
    attention = torch.rand(6, generator=g, dtype=torch.float64) * 2
    return classifier, test, ood, {False: None, True: attention}


def test_the_scores_are_higher_for_more_ood():
    confident, unsure = torch.tensor([[9.0, 0.0, 0.0]]), torch.tensor([[0.1, 0.0, 0.0]])
    assert all(float(f(unsure)) > float(f(confident)) for f in SCORES.values())
    z = torch.tensor([[1.0, 2.0, -1.0]])
    assert float(SCORES["energy"](z)) == pytest.approx(-np.log(np.exp([1, 2, -1]).sum()))
    assert float(SCORES["msp"](z)) == pytest.approx(-np.exp(2) / np.exp([1, 2, -1]).sum())
    assert float(SCORES["maxlogit"](z)) == -2


def test_calibration_multiplies_the_features():
    weight, bias = torch.tensor([[1.0, 2.0], [3.0, 4.0]]).double(), torch.tensor([10.0, 20.0]).double()
    z = Classifier(weight, bias).logits(torch.tensor([[5.0, 6.0]]), torch.tensor([2.0, 0.5]).double())
    assert z.tolist() == [[10 + 10 + 6, 20 + 30 + 12]]


def test_semantically_id_images_of_an_ood_set_count_on_the_id_side(case):
    classifier, test, ood, attentions = case
    results, scores = evaluate(classifier, test, ood, attentions, COUNTS)
    assert len(results["rows"]) == 2 * 3 * 2
    for row in results["rows"]:
        a = attentions[row["fc"]]
        of_set = ood[row["ood"]]
        function = SCORES[row["score"]]
        moved = of_set.labels >= 0
        id_side = torch.cat([test.features, of_set.features[moved]])
        id_scores = function(classifier.logits(id_side, a)).numpy()
        ood_scores = function(classifier.logits(of_set.features[~moved], a)).numpy()
        assert (row["n_id"], row["n_ood"]) == ((15, 6) if row["ood"] == "near" else (12, 5))
        assert {m: row[m] for m in OOD_METRICS} == pytest.approx(ood_metrics(id_scores, ood_scores))
        kept = scores[row["fc"]][row["score"]][row["ood"]]
        np.testing.assert_allclose(kept[0], id_scores)
        np.testing.assert_allclose(kept[1], ood_scores)


def test_the_mean_is_unweighted_over_the_sets(case):
    results, _ = evaluate(*case, COUNTS)
    assert len(results["mean"]) == 2 * 3
    for mean in results["mean"]:
        rows = [r for r in results["rows"] if (r["fc"], r["score"]) == (mean["fc"], mean["score"])]
        for metric in OOD_METRICS:
            assert mean[metric] == pytest.approx((rows[0][metric] + rows[1][metric]) / 2)


def test_accuracy_is_of_the_test_set_alone(case):
    classifier, test, _, attentions = case
    results, _ = evaluate(*case, COUNTS)
    assert [a["fc"] for a in results["accuracy"]] == [False, True]
    for row in results["accuracy"]:
        right = classifier.logits(test.features, attentions[row["fc"]]).argmax(dim=1) == test.labels
        assert row["all"] == pytest.approx(right.double().mean().item())
        assert row["per_class"] == pytest.approx(
            [right[test.labels == c].double().mean().item() for c in range(4)]
        )


def test_a_class_without_test_images_has_no_accuracy(case, tmp_path):
    classifier, _, ood, attentions = case
    results, _ = evaluate(classifier, random_features(12, [0, 1, 3] * 4, 1), ood, attentions, COUNTS)
    for row in results["accuracy"]:
        assert row["per_class"][2] is None and None not in (row["per_class"][0], row["all"])
    plot_class_accuracy({"network": row["per_class"]}, COUNTS, tmp_path / "classes.png")  # leaves a gap


def test_calibration_does_not_depend_on_the_test_set(case):
    """The attention is a function of training images and outliers; shuffled test labels and images change
    accuracy alone."""
    classifier, test, ood, _ = case
    train, outliers = random_features(20, [0, 1, 2, 3] * 5, 5), random_features(15, [-1] * 15, 6).features
    prior = torch.tensor(COUNTS) / sum(COUNTS)

    def run(test):
        a = attention_weight(
            train.features,
            train.labels,
            outliers,
            classifier.logits(outliers).argmax(dim=1),
            classifier.weight,
            prior,
        )
        return a, evaluate(classifier, test, ood, {True: a}, COUNTS)[0]

    order = torch.randperm(12, generator=torch.Generator().manual_seed(1))
    attention, plain = run(test)
    for other in (test._replace(labels=test.labels[order]), Features(*(part[order] for part in test))):
        same, shuffled = run(other)
        assert torch.equal(same, attention)
        for a, b in zip(plain["rows"], shuffled["rows"], strict=True):
            assert {m: a[m] for m in OOD_METRICS} == pytest.approx({m: b[m] for m in OOD_METRICS})
    assert run(test._replace(labels=test.labels.roll(1)))[1]["accuracy"] != plain["accuracy"]


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
