import json

import numpy as np
import pytest
import torch
from command_line import load_script, run
from sklearn.neighbors import NearestNeighbors
from test_vmf import exact_log_normaliser
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from utils import calibration, scores
from utils.calibration import Calibration, Classifier
from utils.scores import SCORES, Score, Training, fit_scores, score_names

C, D = 3, 6


def features(n, seed):
    return torch.randn(n, D, generator=torch.Generator().manual_seed(seed)) + torch.arange(D) / 3


def make(attention=False, probe=True, statistics=None, n=40):
    """A calibration of random weights, and what its scores are fitted on."""
    g = torch.Generator().manual_seed(0)
    weights = [
        torch.randn(*shape, generator=g, dtype=torch.float64)
        for shape in ((C, D), (C,), (C + 1, D), (C + 1,))
    ]
    a = torch.rand(D, generator=g, dtype=torch.float64) * 2 if attention else None
    way = Calibration(Classifier(*weights[:2]), a, Classifier(*weights[2:]) if probe else None)
    labels = torch.cat([torch.arange(C), torch.randint(C, (n - C,), generator=g)])
    return Training(way, features(n, 1), labels, statistics)


def values(training, name, rows):
    """The score ``name``, fitted alone, of the features ``rows``."""
    fitted = fit_scores(training, [name])
    return torch.cat([fitted(outputs)[name] for outputs in training.calibration.outputs(rows)]).numpy()


def unit(training, rows):
    f = rows.double().numpy()
    if training.calibration.attention is not None:
        f = f * training.calibration.attention.numpy()
    return f / np.linalg.norm(f, axis=1, keepdims=True)


@pytest.fixture(params=[7, 4096], ids=["in chunks of 7", "whole"])
def chunk(request, monkeypatch):
    monkeypatch.setattr(calibration, "CHUNK", request.param)
    monkeypatch.setattr(scores, "CHUNK", request.param)


def test_the_scores_of_logits():
    z = torch.tensor([[1.0, 2.0, -1.0]]).double()
    outputs = calibration.Outputs(torch.ones(1, D).double(), z, None)
    expected = {"energy": -np.log(np.exp([1, 2, -1]).sum()), "maxlogit": -2}
    expected["msp"] = -np.exp(2) / np.exp([1, 2, -1]).sum()
    for name, value in expected.items():
        assert float(SCORES[name]()(outputs)) == pytest.approx(value)


@pytest.mark.parametrize("attention", [False, True], ids=["none", "fc"])
def test_knn_against_scikit_learn(attention, chunk):
    training, rows = make(attention), features(20, 2)
    nearest = NearestNeighbors(n_neighbors=5, metric="cosine", algorithm="brute")
    distances, _ = nearest.fit(unit(training, training.features)).kneighbors(unit(training, rows))
    np.testing.assert_allclose(values(training, "knn", rows), distances[:, 4], atol=1e-6)


class LargestTensor(TorchDispatchMode):
    """Notes the number of entries of the largest tensor that any operation returns."""

    entries = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        for part in tree_leaves(result):
            if isinstance(part, torch.Tensor) and part.storage_offset() == 0 and not part._is_view():
                self.entries = max(self.entries, part.untyped_storage().nbytes() // part.element_size())
        return result


def test_no_score_makes_a_matrix_of_all_pairs(monkeypatch):
    monkeypatch.setattr(calibration, "CHUNK", 32)
    monkeypatch.setattr(scores, "CHUNK", 32)
    training, rows = make(n=2000), features(1000, 2)
    with LargestTensor() as largest:
        fitted = fit_scores(training)
        assert sum(len(fitted(outputs)["knn"]) for outputs in training.calibration.outputs(rows)) == 1000
    assert 2000 * D <= largest.entries < 3 * 2000 * D  # the bank of knn, and a chunk by a chunk is far less


@pytest.mark.parametrize("attention", [False, True], ids=["none", "fc"])
def test_mahalanobis_against_a_loop_and_a_matrix_inverse(attention, chunk):
    training, rows = make(attention), features(20, 2)
    u, labels = unit(training, training.features), training.labels.numpy()
    means = [u[labels == c].mean(axis=0) for c in range(C)]
    sigma = sum(np.outer(v - means[y], v - means[y]) for v, y in zip(u, labels, strict=True)) / len(u)
    inverse = np.linalg.inv(sigma + 0.1 * np.trace(sigma) / D * np.eye(D))
    expected = [min((v - m) @ inverse @ (v - m) for m in means) for v in unit(training, rows)]
    np.testing.assert_allclose(values(training, "mahalanobis", rows), expected, rtol=1e-9)


@pytest.mark.parametrize("attention", [False, True], ids=["none", "fc"])
def test_vmf_estimated_from_training_features_against_mpmath(attention, chunk):
    training, rows = make(attention), features(12, 2)
    u, labels = unit(training, training.features), training.labels.numpy()
    means = [u[labels == c].mean(axis=0) for c in range(C)]
    lengths = [np.linalg.norm(m) for m in means]
    classes = [(m / r, D * r / (1 - r * r)) for m, r in zip(means, lengths, strict=True)]
    shown = unit(training, rows)
    exact = [[exact_log_normaliser(D, k) + k * float(mu @ x) for mu, k in classes] for x in shown]
    expected = [-float(max(of_image)) for of_image in exact]
    np.testing.assert_allclose(values(training, "vmf", rows), expected, atol=1e-8)


def test_combined_is_the_sum_of_three_scores_standardised_over_training_images():
    training, rows = make(), features(20, 2)
    expected = 0
    for name in ("energy", "mahalanobis", "probe"):
        of_training = values(training, name, training.features)
        expected = expected + (values(training, name, rows) - of_training.mean()) / of_training.std()
    np.testing.assert_allclose(values(training, "combined", rows), expected)
    (outputs,) = training.calibration.outputs(rows)
    assert set(fit_scores(training)(outputs)) == set(score_names())


def test_combined_is_absent_without_one_of_its_members():
    training = make()
    first = torch.stack([(training.labels == c).nonzero()[0, 0] for c in range(C)])
    single = training._replace(features=training.features[first], labels=training.labels[first])
    constant = training._replace(features=torch.ones(40, D))
    lacks = ((make(probe=False), "probe"), (single, "mahalanobis"), (constant, "mahalanobis"))
    for lacking, missing in lacks:
        fitted = fit_scores(lacking)
        (outputs,) = lacking.calibration.outputs(features(20, 2))
        assert set(fitted(outputs)) == set(score_names()) - {missing, "combined"}


def test_a_score_is_added_by_one_class(digits_run, tmp_path, monkeypatch):
    """It can be asked for, and is in tables and results."""
    monkeypatch.setitem(SCORES, "norm", None)  # removed again after the test

    class Norm(Score):
        name = "norm"

        def __call__(self, outputs):
            return -outputs.features.norm(dim=1)

    argv = "--gpu cpu --FC False --dout noise --score norm --srp".split()
    assert run(load_script("test").main, *argv, tmp_path, "--ckpt_path", digits_run) == 0
    results = json.loads((tmp_path / "results.json").read_text())
    assert {"norm", "energy"} <= {row["score"] for row in results["rows"]} and results["score"] == "norm"
    assert "norm" in (tmp_path / "results.md").read_text()
