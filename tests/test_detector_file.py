"""The file ``detector.pth``: its defaults, its threshold, what it may hold, and what other files give."""

import math
import warnings

import pytest
import torch
from image_files import photograph

from datasets.images import NORMALIZATIONS
from datasets.preprocessing import Preprocessing
from models import build_model
from utils.calibration import Classifier
from utils.detector import Detector, Subject, keeping_threshold, write_detector
from utils.errors import InputError
from utils.evaluation import Features, Settings
from utils.fitting import TrainingSets, fit_calibrations

SETTINGS = Settings(["none", "fc", "probe"], "energy", 1.0, 0.95, "train", False, "fp32", "png", False)


@pytest.fixture
def fitted():
    """A network, and calibrations fitted on random features of 60 images."""
    torch.manual_seed(0)
    network = build_model("ResNet20", 3)
    training = Features(torch.rand(60, 64), torch.arange(60) % 3)
    outliers = Features(torch.rand(20, 64), -torch.ones(20).long())
    sets = TrainingSets(training, outliers, training, outliers, training, outliers)
    calibrations, _ = fit_calibrations(
        SETTINGS.calibrations, Classifier.of(network), sets, [20, 20, 20], score="energy"
    )
    return network, calibrations, sets


def write(folder, fitted, names=None, auto=None, epoch=30, sets=None, calibrations=None, **settings):
    network, made, made_from = fitted
    look = Preprocessing(16, "squash"), NORMALIZATIONS["digits"]
    checkpoint = {"epoch": epoch, "args": {"epochs": 30}}
    subject = Subject(network, "ResNet20", "cifar", *look, [20, 20, 20], names, checkpoint)
    chosen = {name: made[name] for name in calibrations or made}
    path = folder / "detector.pth"
    write_detector(path, subject, chosen, sets or made_from, SETTINGS._replace(**settings), auto)
    return path


def test_the_default_is_what_auto_chose(fitted, tmp_path):
    auto = {"chosen": {"calibration": "fc", "fc_strength": 0.25}, "score": "energy"}
    detector = Detector.load(write(tmp_path, fitted, auto=auto))
    assert (detector.calibration, detector.score, detector.class_names) == ("fc", "energy", None)
    assert detector(photograph(0))[0].name is None


def test_the_scores_of_all_training_images_are_there_on_request(fitted, tmp_path):
    path = write(tmp_path, fitted)
    small = path.stat().st_size
    with pytest.raises(InputError, match="--score knn"):
        Detector.load(path, score="knn")
    assert Detector.load(write(tmp_path, fitted, score="knn"), score="knn")(photograph(0))
    assert path.stat().st_size > small + 60 * 64 * 4
    detector = Detector.load(write(tmp_path, fitted, calibrations=["fc"]))
    assert (detector.calibration, detector.score) == ("fc", "combined")
    with pytest.raises(InputError, match="--calibration probe"):
        Detector.load(path, calibration="probe")
    with pytest.raises(InputError, match="test.py"):
        Detector.load(tmp_path / "nothing")


@pytest.mark.parametrize(
    "scores, keep, threshold",
    [
        ([3.0, 1.0, 2.0], 0.95, 3.0),
        (list(range(100)), 0.95, 94.5),
        (list(range(100)), 0.07, 6.5),
        (list(range(100)), 1.0, 99),
        (list(range(100)), 1e-9, 0.5),
        ([1.0] * 99 + [2.0], 0.95, 1.0),
    ],
)
def test_the_threshold_of_known_scores(scores, keep, threshold):
    assert keeping_threshold(torch.tensor(scores), keep) == threshold


def test_the_share_to_keep_is_the_users(fitted, tmp_path):
    path = write(tmp_path, fitted, keep=0.9)
    stored = torch.load(path)["calibrations"]["none"]["id_scores"]["energy"]
    assert stored.dtype == torch.float32 and torch.equal(stored, stored.sort().values) and len(stored) == 60
    for keep, kept in ((None, 54), (0.9, 54), (0.5, 30), (1, 60)):
        detector = Detector.load(path, score="energy", keep=keep)
        assert (detector.keep, detector.num_images) == (keep or 0.9, 60)
        assert int((stored <= detector.threshold).sum()) == kept
    with pytest.raises(InputError, match="95"):
        Detector.load(path, keep=95)


def test_what_a_user_should_know_is_warned_of(fitted, tmp_path):
    training = fitted[2].training
    few = Features(*(part[:19] for part in training))
    sets = fitted[2]._replace(held_out=None)
    for settings, words in (
        ({"epoch": 1}, "unfinished run"),
        ({"sets": fitted[2]._replace(held_out=few)}, "19 held-out images"),
        ({"sets": sets}, "60 training images, as none were held out"),
    ):
        with pytest.warns(UserWarning, match=words):
            Detector.load(write(tmp_path, fitted, **settings))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        Detector.load(write(tmp_path, fitted, epoch=None))
        assert Detector.load(write(tmp_path, fitted))(photograph(0))


WRONG = {
    "nothing": lambda s: s.clear(),
    "another network": lambda s: s.update(network="ResNet18"),
    "not finite": lambda s: s["weights"]["conv1.weight"].fill_(math.nan),
    "thresholds of an earlier version": lambda s: s["calibrations"]["none"].pop("id_scores"),
}


@pytest.mark.parametrize("kind", WRONG)
def test_other_files_are_refused_in_a_sentence(kind, fitted, tmp_path):
    path = write(tmp_path, fitted)
    state = torch.load(path, weights_only=True)
    WRONG[kind](state)
    torch.save(state, path)
    with pytest.raises(InputError, match="detector.pth") as refusal:
        Detector.load(path)
    assert "\n" not in str(refusal.value)


def test_precision_does_not_depend_on_the_surroundings(fitted, tmp_path):
    path = write(tmp_path, fitted)
    images = torch.randint(256, (40, 3, 16, 16), dtype=torch.uint8, generator=torch.manual_seed(1))
    detector = Detector.load(path)
    found = detector(images)
    assert Detector.load(write(tmp_path, fitted, precision="bf16"))(images) == found  # fp32 on a CPU
    with torch.autocast("cpu", torch.bfloat16):
        assert detector(images) == found
    torch.set_default_dtype(torch.float64)
    try:
        assert Detector.load(path)(images) == found
    finally:
        torch.set_default_dtype(torch.float32)


def test_the_module_is_exported_and_gives_the_same(fitted, tmp_path):
    detector = Detector.load(write(tmp_path, fitted))
    images = torch.randint(256, (5, 3, 16, 16), dtype=torch.uint8, generator=torch.manual_seed(1))
    sizes = ({0: torch.export.Dim("images", min=1, max=64)},)
    program = torch.export.export(detector.module(), (images,), dynamic_shapes=sizes, strict=False)
    torch.export.save(program, tmp_path / "detector.pt2")
    logits, scores = torch.export.load(tmp_path / "detector.pt2").module()(images[:3])
    assert logits.dtype == scores.dtype == torch.float32 and logits.shape == (3, 3)
    for one, of_one, outputs in zip(detector(images[:3]), scores.tolist(), logits, strict=True):
        assert of_one == pytest.approx(one.score, rel=1e-5)
        assert one.label == int(outputs.argmax())
        assert float(outputs.softmax(dim=0).max()) == pytest.approx(one.probability)
