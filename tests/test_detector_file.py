"""The file ``detector.pth``: its defaults, what it may hold, and whose it may be."""

import math
import os
import pickle
import warnings

import pytest
import torch
from image_files import photograph, truncate

from datasets.cifar import class_names
from datasets.imagenet import ImageFiles, folder_names
from datasets.normalization import NORMALIZATIONS
from datasets.preprocessing import Preprocessing
from datasets.registry import BENCHMARKS
from models import build_model
from utils.calibration import Classifier
from utils.detector import Deployment, Detector, write_detector
from utils.errors import InputError
from utils.evaluation import Features
from utils.fitting import TrainingSets, fit_calibrations


@pytest.fixture
def fitted():
    """A network, and calibrations fitted on random features."""
    torch.manual_seed(0)
    network = build_model("ResNet20", 3)
    training = Features(torch.rand(60, 64), torch.arange(60) % 3)
    sets = TrainingSets(training, Features(torch.rand(20, 64), None), None, training)
    names, classifier = ["none", "fc", "probe"], Classifier.of(network)
    calibrations, _ = fit_calibrations(names, classifier, sets, [20, 20, 20], score="energy")
    return network, calibrations, training


def write(folder, fitted, class_names=None, epoch=30, epochs=30, **settings):
    network, calibrations, training = fitted
    settings = {"calibrations": calibrations, "auto": None} | settings
    preprocessing = Preprocessing(16, "squash", NORMALIZATIONS["digits"])
    settings |= {"progress": {"epoch": epoch, "epochs": epochs}, "precision": "fp32"}
    deployment = Deployment("ResNet20", "cifar", preprocessing, class_names)
    write_detector(folder, network, deployment, held_out=training, training=training, **settings)
    return folder / "detector.pth"


def test_the_default_is_what_auto_chose(fitted, tmp_path):
    auto = {"chosen": {"calibration": "fc", "fc_strength": 0.25}, "score": "energy"}
    detector = Detector.load(write(tmp_path, fitted, auto=auto))
    assert (detector.calibration, detector.score, detector.class_names) == ("fc", "energy", None)
    assert detector(photograph(0))[0].name is None


def test_the_default_without_the_network_as_it_is(fitted, tmp_path):
    network, calibrations, training = fitted
    detector = Detector.load(write(tmp_path, fitted, calibrations={"fc": calibrations["fc"]}))
    assert (detector.calibration, detector.score) == ("fc", "combined")


def test_calibrations_share_what_is_equal_on_disk(fitted, tmp_path):
    network, calibrations, training = fitted
    path = write(tmp_path, fitted, calibrations={"none": calibrations["none"]})
    one = path.stat().st_size
    added = write(
        tmp_path, fitted, calibrations={"none": calibrations["none"], "other": calibrations["none"]}
    )
    assert added.stat().st_size - one < 10_000 < training.features.nbytes


def test_an_unfinished_run_is_warned_of(fitted, tmp_path):
    with pytest.warns(UserWarning, match="written at epoch 1 of 4: evaluate the finished run"):
        Detector.load(write(tmp_path, fitted, epoch=1, epochs=4))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        Detector.load(write(tmp_path, fitted, epoch=None, epochs=None))
        assert Detector.load(write(tmp_path, fitted, epoch=4, epochs=4))(photograph(0))


def test_what_is_not_in_the_file_is_refused_with_what_is(fitted, tmp_path):
    path = write(tmp_path, fitted)
    with pytest.raises(InputError, match="no calibration 'auto' in it; there are 'none', 'fc', 'probe'"):
        Detector.load(path, calibration="auto")
    with pytest.raises(InputError, match="no score 'odin' in it; there are 'energy', 'msp'"):
        Detector.load(path, score="odin")
    with pytest.raises(InputError, match="no detector .*run test.py, or test_imagenet.py, on the run first"):
        Detector.load(tmp_path / "nothing")


@pytest.mark.parametrize("device", ["cuda:99", "abacus"])
def test_a_device_that_is_not_there_is_refused(device, fitted, tmp_path):
    with pytest.raises(InputError, match=f"the device {device} cannot be used"):
        Detector.load(write(tmp_path, fitted), device)


class Code:
    def __reduce__(self):
        return os.mkdir, ("executed",)


def test_code_in_the_file_is_refused_and_not_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save({"calibrations": Code()}, tmp_path / "detector.pth")
    (tmp_path / "bare").mkdir()
    (tmp_path / "bare" / "detector.pth").write_bytes(pickle.dumps(Code()))
    for folder in (tmp_path, tmp_path / "bare"):
        with pytest.raises(InputError, match="detector.pth"):
            Detector.load(folder)
    assert not (tmp_path / "executed").exists()


HOSTILE = {
    "nothing": lambda s: s.clear(),
    "another network": lambda s: s.update(network="ResNet18"),
    "no network": lambda s: s.update(network="__class__"),
    "gigabytes of pixels": lambda s: s.update(image_size=10**6),
    "a tensor as size": lambda s: s.update(image_size=torch.tensor(16)),
    "no way to its size": lambda s: s.update(resize="stretch"),
    "one mean": lambda s: s.update(normalization=[[0.5], 3]),
    "control characters": lambda s: s.update(class_names=["a", "b", "\x1b[2J"]),
    "a word for an epoch": lambda s: s.update(epoch="1"),
    "two names": lambda s: s.update(class_names=["a", "b"]),
    "weights of text": lambda s: s.update(weights="linear.weight"),
    "not finite": lambda s: s["weights"]["conv1.weight"].fill_(math.nan),
    "no threshold": lambda s: s["calibrations"]["none"]["thresholds"].update(combined=math.nan),
    "no scores": lambda s: s["calibrations"]["none"].pop("scores"),
    "attention of one": lambda s: s["calibrations"]["none"]["calibration"].update(attention=torch.ones(1, 2)),
    "fewer classes": lambda s: s["calibrations"]["none"]["calibration"].update(
        classifier={"weight": torch.ones(2, 64).double(), "bias": torch.ones(2).double()}
    ),
    "a list": lambda s: s.update(calibrations=[1]),
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_a_strangers_values_are_refused_in_a_sentence(kind, fitted, tmp_path):
    path = write(tmp_path, fitted, class_names=["a", "b", "c"])
    state = torch.load(path, weights_only=True)
    HOSTILE[kind](state)
    torch.save(state, path)
    with pytest.raises(InputError, match="detector.pth") as refusal:
        Detector.load(path)
    assert "\n" not in str(refusal.value)


def test_damage_is_refused(fitted, tmp_path):
    path = write(tmp_path, fitted)
    truncate(path)
    with pytest.raises(InputError, match="detector.pth"):
        Detector.load(path)


def test_names_of_classes(tmp_path):
    assert BENCHMARKS["digits"].class_names(tmp_path) == list("01234567")
    assert class_names("cifar10", tmp_path) is None
    names = [f"class {c}" for c in range(10)]
    path = tmp_path / "cifar-10-batches-py" / "batches.meta"
    path.parent.mkdir()
    for written in (names, [name.encode() for name in names]):
        path.write_bytes(pickle.dumps({"label_names": written}, protocol=2))
        assert BENCHMARKS["cifar10"].class_names(tmp_path) == names
    for wrong in (names[1:], ["\x1b"] * 10, [("a",)] * 10, 3):
        path.write_bytes(pickle.dumps({"label_names": wrong}, protocol=2))
        assert class_names("cifar10", tmp_path) is None
    for paths, expected in (
        (["n1/a.jpg", "n1/b.jpg", "x/n2/a.jpg"], ["n1", "n2"]),
        (["n1/a.jpg", "n3/b.jpg", "n2/a.jpg"], None),
        (["n/a.jpg", "n/b.jpg", "x/n/a.jpg"], None),
        (["a.jpg", "b.jpg", "n/c.jpg"], None),
    ):
        assert folder_names(ImageFiles(tmp_path, paths, torch.tensor([0, 0, 1]))) == expected
