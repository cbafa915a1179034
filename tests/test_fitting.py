"""What is fitted after training, and how "auto" chooses."""

import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score

from utils import fitting
from utils.calibration import Classifier, attention_weight, build_calibration
from utils.errors import InputError
from utils.evaluation import Features
from utils.fitting import fit_calibrations, trained_statistics, try_calibrations

COUNTS, D = [30, 12, 5], 6


def problem():
    """Overlapping classes around centres, outliers around another, and a classifier of the centres."""
    g = torch.Generator().manual_seed(0)
    centres = 2 * torch.rand(4, D, generator=g)

    def draw(labels):
        labels = torch.as_tensor(labels)
        noise = torch.randn(len(labels), D, generator=g)
        return Features((centres[labels] + noise).relu(), torch.where(labels == 3, -1, labels))

    classifier = Classifier(centres[:3].double(), -centres[:3].double().square().sum(dim=1) / 2)
    training = draw([c for c, n in enumerate(COUNTS) for _ in range(n)])
    return classifier, training, draw([3] * 45).features, draw([0] * 20 + [2] * 10)


def test_the_strength_of_fc_lies_between_none_and_the_papers():
    classifier, training, outliers, held_out = problem()
    counts = torch.tensor(COUNTS)
    predicted = classifier.logits(outliers).argmax(dim=1)
    a = attention_weight(*training, outliers, predicted, classifier.weight, counts / counts.sum())
    for strength in (0, 0.25, 1):
        calibrations, facts = fit_calibrations(
            ["none", "fc"], classifier, training, outliers, COUNTS, strength=strength
        )
        assert facts["fc_strength"] == strength
        attention = calibrations["fc"][0].attention
        np.testing.assert_allclose(attention, 1 + strength * (a - 1), atol=1e-12)
        (none,), (fc,) = (calibrations[name][0].outputs(held_out.features) for name in ("none", "fc"))
        assert torch.equal(none.logits, fc.logits) is (strength == 0)


def test_auto_tries_on_held_out_images_and_on_outliers_that_nothing_was_fitted_on(monkeypatch):
    classifier, training, outliers, held_out = problem()
    attending = Features(*(part[::3] for part in training))
    fitted_on = []
    for name in ("fit_attention", "fit_probe"):
        original = getattr(fitting, name)

        def record(*args, original=original):
            fitted_on.extend(arg.features for arg in args if isinstance(arg, Features))
            fitted_on.extend(arg for arg in args if isinstance(arg, torch.Tensor) and arg.ndim == 2)
            return original(*args)

        monkeypatch.setattr(fitting, name, record)
    trials = try_calibrations(classifier, training, attending, outliers, COUNTS, held_out)
    kept = torch.stack([outliers[i] for i in range(45) if i % 10])
    # Images and outliers, of the attention and then of the probe.
    for found, expected in zip(fitted_on, [attending.features, kept, training.features, kept], strict=True):
        assert torch.equal(found, expected)
    ways = [("none", None), ("fc", 0.1), ("fc", 0.25), ("fc", 0.5), ("fc", 1.0), ("probe", None)]
    assert [(t["calibration"], t["fc_strength"]) for t in trials] == ways

    none = trials[0]
    images, others = classifier.logits(held_out.features), classifier.logits(outliers[::10])
    energy = -torch.cat([images, others]).logsumexp(dim=1)
    assert none["auroc"] == pytest.approx(roc_auc_score([0] * 30 + [1] * 5, energy))
    right = (images.argmax(dim=1) == held_out.labels).double()
    assert none["accuracy"] == pytest.approx(
        float(right[:20].mean() + right[20:].mean()) / 2
    )  # class 1 has none


@pytest.mark.parametrize(
    "best,names,strength",
    [(0, ["none"], None), (2, ["none", "fc"], 0.25), (5, ["none", "probe"], None)],
)
def test_auto_evaluates_none_and_what_did_best(best, names, strength, monkeypatch, capsys):
    classifier, training, outliers, held_out = problem()
    trials = try_calibrations(classifier, training, training, outliers, COUNTS, held_out)
    for i, trial in enumerate(trials):
        trial |= {"auroc": 0.9 if i == best else 0.5, "accuracy": 0.5}
    monkeypatch.setattr(fitting, "try_calibrations", lambda *args: trials)
    calibrations, facts = fit_calibrations(
        ["auto"], classifier, training, outliers, COUNTS, held_out=held_out
    )
    assert list(calibrations) == names and facts.get("fc_strength") == strength
    assert facts["auto"]["chosen"] is trials[best]
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("--calibration auto, on 30 held-out images") and "energy" in lines[0]
    chosen = [line for line in lines if "chosen" in line]
    assert len(chosen) == 1 and "90.00 +  50.00 = 140.00" in chosen[0]


def test_the_results_say_which_class_statistics_each_calibration_used():
    classifier, training, outliers, _ = problem()
    statistics = torch.nn.functional.normalize(torch.ones(3, D).double()), torch.ones(3).double()
    for kept, source in ((None, "training features"), (statistics, "class statistics of the checkpoint")):
        calibrations, facts = fit_calibrations(
            ["none", "fc", "probe"], classifier, training, outliers, COUNTS, statistics=kept
        )
        assert facts["vmf"] == {"none": source, "fc": "training features", "probe": source}
        used = {
            name: torch.equal(fitted.scores["vmf"].mu, statistics[0])
            for name, (_, fitted) in calibrations.items()
        }
        assert used == {name: said != "training features" for name, said in facts["vmf"].items()}


def test_auto_says_which_score_cannot_be_fitted():
    classifier, training, outliers, held_out = problem()
    first = torch.tensor([0, COUNTS[0], sum(COUNTS[:2])])
    single = Features(*(part[first] for part in training))
    with pytest.raises(InputError, match="--score mahalanobis cannot be fitted: no class has two"):
        fit_calibrations(
            ["auto"], classifier, single, outliers, [1, 1, 1], held_out=held_out, score="mahalanobis"
        )


def test_of_equals_auto_takes_the_simplest(monkeypatch):
    classifier, training, outliers, held_out = problem()
    same = [
        {"calibration": n, "fc_strength": s, "auroc": 1, "accuracy": 1}
        for n, s in (("none", None), ("fc", 0.1))
    ]
    monkeypatch.setattr(fitting, "try_calibrations", lambda *args: same)
    calibrations, _ = fit_calibrations(["auto"], classifier, training, outliers, COUNTS, held_out=held_out)
    assert list(calibrations) == ["none"]


def test_a_calibration_is_built_by_name():
    classifier, training, outliers, _ = problem()
    assert build_calibration("none", classifier).attention is None
    attention = torch.tensor([0.0, 2.0])
    assert build_calibration("fc", classifier, attention, strength=0.5).attention.tolist() == [0.5, 1.5]


def test_statistics_of_embeddings_from_a_head_are_not_those_of_features():
    statistics = {"mean_direction": torch.eye(3), "kappa": torch.ones(3), "counts": torch.ones(3)}
    statistics["has_previous"] = torch.ones(3, dtype=torch.bool)
    criterion = {f"statistics.{name}": value for name, value in statistics.items()}
    args = {"isac": True, "depart": []}
    assert trained_statistics({"args": args, "criterion": criterion}, 3, 3) is not None
    assert trained_statistics({"args": args | {"head": True}, "criterion": criterion}, 3, 3) is None
