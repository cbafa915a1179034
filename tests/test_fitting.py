import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score

from utils import fitting
from utils.calibration import Classifier, attention_weight
from utils.errors import InputError
from utils.evaluation import Features
from utils.fitting import TrainingSets, fit_calibrations, trained_statistics

COUNTS, D = [30, 12, 5], 6


@pytest.fixture
def classifier():
    centres = class_centres()[:3].double()
    return Classifier(centres, -centres.square().sum(dim=1) / 2)


@pytest.fixture
def sets():
    """Overlapping classes around centres, outliers around another."""
    g = torch.Generator().manual_seed(1)

    def draw(labels):
        labels = torch.as_tensor(labels)
        noise = torch.randn(len(labels), D, generator=g)
        return Features((class_centres()[labels] + noise).relu(), torch.where(labels == 3, -1, labels))

    training = draw([c for c, n in enumerate(COUNTS) for _ in range(n)])
    held_out, held_outliers = draw([0] * 20 + [2] * 10), draw([3] * 5)
    outliers = draw([3] * 45)
    return TrainingSets(training, outliers, held_out, held_outliers, training, outliers)


def class_centres():
    return 2 * torch.rand(4, D, generator=torch.Generator().manual_seed(0))


def fit(names, classifier, sets, score="energy", **settings):
    return fit_calibrations(names, classifier, sets, COUNTS, score=score, **settings)


def test_the_strength_of_fc_lies_between_none_and_the_papers(classifier, sets):
    outliers, counts = sets.outliers.features, torch.tensor(COUNTS)
    predicted = classifier.logits(outliers).argmax(dim=1)
    a = attention_weight(*sets.training, outliers, predicted, classifier.weight, counts / counts.sum())
    for strength in (0, 0.25, 1):
        calibrations, facts = fit(["none", "fc"], classifier, sets, strength=strength)
        assert facts["fc_strength"] == strength
        np.testing.assert_allclose(calibrations["fc"][0].attention, 1 + strength * (a - 1), atol=1e-6)
        (none,), (fc,) = (calibrations[name][0].outputs(sets.held_out.features) for name in ("none", "fc"))
        assert torch.equal(none.logits, fc.logits) is (strength == 0)


def test_fc_and_probe_have_outliers_of_their_own(classifier, sets):
    """The release's attention sees them in another normalisation than a deployed network will."""
    others = sets.outliers._replace(features=sets.outliers.features.flip(1))
    states = []
    for changed in (sets, sets._replace(attending_outliers=others), sets._replace(outliers=others)):
        calibrations, _ = fit(["fc", "probe"], classifier, changed)
        states.append((calibrations["fc"][0].attention, calibrations["probe"][0].classifier.weight))
    as_is, of_fc, of_probe = states
    assert not torch.equal(of_fc[0], as_is[0]) and torch.equal(of_fc[1], as_is[1])
    assert torch.equal(of_probe[0], as_is[0]) and not torch.equal(of_probe[1], as_is[1])


def test_auto_judges_what_was_fitted_by_held_out_images_and_outliers_alone(classifier, sets):
    _, facts = fit(["auto"], classifier, sets)
    trials = facts["auto"]["trials"]
    ways = [("none", None), ("fc", 0.1), ("fc", 0.25), ("fc", 0.5), ("fc", 1.0), ("probe", None)]
    assert [(t["calibration"], t["fc_strength"]) for t in trials] == ways

    held_out, shown = sets.held_out, torch.cat([sets.held_out.features, sets.held_outliers.features])
    energy = -classifier.logits(shown).logsumexp(dim=1)
    assert trials[0]["auroc"] == pytest.approx(roc_auc_score([0] * 30 + [1] * 5, energy))
    alone, _ = fit(["none", "fc", "probe"], classifier, sets._replace(held_out=None, held_outliers=None))
    for trial in (trials[0], *trials[4:]):
        (of_images,) = alone[trial["calibration"]][0].outputs(held_out.features)
        right = (of_images.logits.argmax(dim=1) == held_out.labels).double()
        mean = (right[:20].mean() + right[20:].mean()) / 2  # class 1 has no held-out image
        assert trial["accuracy"] == pytest.approx(float(mean))


@pytest.mark.parametrize(
    "aurocs,names,strength",
    [
        ([0.5, 0.5, 0.9, 0.5, 0.5, 0.5], ["none", "fc"], 0.25),
        ([0.5, 0.5, 0.5, 0.5, 0.5, 0.9], ["none", "probe"], None),
        ([0.9, 0.9, 0.9, 0.5, 0.5, 0.90001], ["none"], None),  # the first of a tie
    ],
)
def test_auto_evaluates_none_and_what_did_best(
    aurocs, names, strength, classifier, sets, monkeypatch, capsys
):
    trials = fit(["auto"], classifier, sets)[1]["auto"]["trials"]
    capsys.readouterr()
    for trial, auroc in zip(trials, aurocs, strict=True):
        trial |= {"auroc": auroc, "accuracy": 0.5}
    monkeypatch.setattr(fitting, "try_calibrations", lambda *args: trials)
    calibrations, facts = fit(["auto"], classifier, sets)
    assert list(calibrations) == names and facts.get("fc_strength") == strength
    assert facts["auto"]["chosen"] is trials[aurocs.index(0.9)]
    lines = capsys.readouterr().out.splitlines()
    (chosen,) = [line for line in lines if "90.00 +  50.00 = 140.00  chosen" in line]
    assert names[-1] in chosen
    assert any("4 tie" in line for line in lines) == (aurocs.count(0.9) == 3)


def test_the_results_say_which_class_statistics_each_calibration_used(classifier, sets):
    statistics = torch.nn.functional.normalize(torch.ones(3, D).double()), torch.ones(3).double()
    for kept, source in ((None, "training features"), (statistics, "class statistics of the checkpoint")):
        calibrations, facts = fit(["none", "fc", "probe"], classifier, sets, statistics=kept)
        assert facts["vmf"] == {"none": source, "fc": "training features", "probe": source}
        for name, (_, fitted) in calibrations.items():
            of_checkpoint = torch.equal(fitted.scores["vmf"].mu, statistics[0])
            assert of_checkpoint == (facts["vmf"][name] != "training features")


def test_auto_says_which_score_cannot_be_fitted(classifier, sets):
    first = torch.tensor([0, COUNTS[0], sum(COUNTS[:2])])
    single = sets._replace(training=Features(*(part[first] for part in sets.training)))
    with pytest.raises(InputError, match="--score combined"):
        fit(["auto"], classifier, single, "combined")


def test_statistics_of_embeddings_from_a_head_are_not_those_of_features():
    statistics = {"mean_direction": torch.eye(3), "kappa": torch.ones(3), "counts": torch.ones(3)}
    statistics["has_previous"] = torch.ones(3, dtype=torch.bool)
    criterion = {f"statistics.{name}": value for name, value in statistics.items()}
    args = {"isac": True, "depart": []}
    assert trained_statistics({"args": args, "criterion": criterion}, 3, 3) is not None
    assert trained_statistics({"args": args | {"head": True}, "criterion": criterion}, 3, 3) is None
