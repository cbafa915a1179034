"""A trained network, ready to use: classes, OOD scores and decisions for any images.

    detector = Detector.load("runs/demo/patt", "cpu")
    detector(pictures)[0].ood

test.py and test_imagenet.py write ``detector.pth`` into the run directory: one self-contained file of tensors
and plain values, network weights included. It takes 0.1 GB for ResNet18 on CIFAR10-LT and about 2 GB for
ResNet50 on ImageNet-LT, mostly for the training features of the knn score, with and without FC.
"""

import math
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from PIL import Image
from torch import Tensor, nn

from datasets.loader import evaluation_batches
from datasets.normalization import Normalization
from datasets.preprocessing import PHOTOGRAPH, Preprocessing
from datasets.scood import RESIZE_MODES
from models import build_model
from utils.calibration import Calibration
from utils.checkpoint import load_checkpoint, load_weights, results_folder, save_whole
from utils.console import say
from utils.distributed import Compute, autocast
from utils.errors import InputError, first_line
from utils.evaluation import Features, extract_features, predict
from utils.scores import FittedScores

FILE = "detector.pth"
KEPT = 0.95  # share of ID images that the threshold keeps
BATCH = 100  # images per forward pass


def find_detector(run: Path | str) -> Path:
    """Returns where the detector of a run directory or checkpoint file is; a detector file is its own."""
    path = Path(run)
    of_run = results_folder(path) / FILE
    return of_run if path.is_dir() or of_run.exists() else path


class Detection(NamedTuple):
    """What a detector says about one image.

    ``label``: the predicted class, 0 .. C - 1; ``name``: its name, None if unknown; ``probability``: its
    probability among the C classes. ``score``: higher = more OOD; ``ood``: whether it exceeds the threshold.
    """

    label: int
    name: str | None
    probability: float
    score: float
    ood: bool


class Deployment(NamedTuple):
    """What it takes to apply a network, beside its weights.

    ``name``, ``family``: of the network, in ``models.FAMILIES``. ``preprocessing``: of images.
    ``class_names``: C names, None if unknown.
    """

    name: str
    family: str
    preprocessing: Preprocessing
    class_names: list[str] | None


class Detector:
    """A network with one calibration, one score and its threshold; made by :meth:`load`.

    Attributes:
        calibration, score: their names. threshold: images with a higher score are OOD.
        held_out: whether the threshold keeps 95 % of held-out images, or else of training images.
        class_names: C names, or None.
    """

    def __init__(self, state: dict, device: torch.device, calibration: str | None, score: str | None):
        """Builds the detector from ``state``, as :func:`write_detector` made it; the rest as for
        :meth:`load`."""
        names = list(state["calibrations"])
        self.calibration = _choose("calibration", calibration or state["default"][0], names)
        stored = state["calibrations"][self.calibration]
        self.score = _choose("score", score or state["default"][1], list(stored["thresholds"]))
        self.threshold, self.held_out = stored["thresholds"][self.score], state["held_out"]
        self.class_names, self.precision = state["class_names"], state["precision"]
        self.device = device
        self.preprocessing = Preprocessing(
            state["image_size"], state["resize"], Normalization(*map(tuple, state["normalization"]))
        )
        weights = state["weights"]
        network = build_model(state["network"], len(weights["linear.weight"]), state["family"])
        load_weights(network, weights)
        self.network = network.to(device, memory_format=torch.channels_last).eval()
        self._calibration = Calibration.restore(_on(device, stored["calibration"]))
        combined = self.score == "combined"
        members = stored["standards"] if combined else [self.score]
        scores = {name: _on(device, stored["scores"][name]) for name in members}
        standards = stored["standards"] if combined else {}
        self._scores = FittedScores.restore({"scores": scores, "standards": standards})

    @classmethod
    def load(
        cls,
        run: Path | str,
        device: torch.device | str = "cpu",
        calibration: str | None = None,
        score: str | None = None,
    ) -> "Detector":
        """Loads the detector of a run without running code from the file.

        Warns if the run was unfinished, or no images were held out of training to take the threshold from.

        Args:
            run: a run directory or checkpoint file evaluated by test.py or test_imagenet.py, or the
                ``detector.pth`` that they wrote.
            calibration, score: names from the evaluation. Default: the choice of --calibration auto and the
                score it was judged by; without auto, ``none`` (or the first calibration that was evaluated)
                and ``combined``, or ``energy`` if there is no ``combined``.

        Raises:
            InputError: the file is missing, damaged or not a detector, lacks the calibration or score, or the
                device cannot be used.
        """
        path = find_detector(run)
        if not path.is_file():
            raise InputError(
                f"there is no detector {path}: run test.py, or test_imagenet.py, on the run first"
            )
        try:
            device = torch.empty(0, device=device).device
        except (RuntimeError, AssertionError) as error:  # the latter where torch was built without CUDA
            raise InputError(f"the device {device} cannot be used: {first_line(error)}") from error
        state = load_checkpoint(path)
        try:
            _check(state)
            detector = cls(state, device, calibration, score)
            size = detector.preprocessing.size
            detector.of_prepared(torch.zeros(1, 3, size, size, dtype=torch.uint8))  # whether all shapes fit
        except InputError as error:
            raise InputError(f"{path}: {error}") from None
        except Exception as error:  # an untrusted file can cause any error
            raise InputError(f"{path} is no detector that test.py wrote: {first_line(error)}") from error
        epoch, epochs = state.get("epoch"), state.get("epochs")
        if None not in (epoch, epochs) and epoch < epochs:
            warnings.warn(
                f"the detector was written at epoch {epoch} of {epochs}: evaluate the finished run",
                stacklevel=2,
            )
        if not detector.held_out:
            warnings.warn(
                "no images were held out of training (--val_fraction), so the detector's threshold keeps "
                f"{KEPT:.0%} of the training images; it will keep fewer new ones",
                stacklevel=2,
            )
        return detector

    def __call__(self, images: Image.Image | Tensor | Sequence[Image.Image | Tensor]) -> list[Detection]:
        """Returns one :class:`Detection` per image.

        Args:
            images: a PIL image, a tensor (3, H, W) or (N, 3, H, W), or a list of PIL images and tensors
                (3, H, W). Tensors are uint8, or floating-point in [0, 1], and not normalised. Like image
                files, they are resized and rounded to 8 bits.

        Raises:
            InputError: an image is anything else; the message says which.
        """
        if isinstance(images, Tensor):
            images = images.cpu()  # once, not for each image
        if isinstance(images, Image.Image) or (isinstance(images, Tensor) and images.dim() == 3):
            images = [images]
        if not isinstance(images, Tensor | list | tuple):
            raise InputError(
                f"images are PIL images, tensors or lists of them, not {type(images).__name__}; Image.open "
                "makes a PIL image of a file, Image.fromarray of an array (H, W, 3)"
            )
        prepared = []
        for number, image in enumerate(images):
            try:
                if isinstance(image, Image.Image):
                    prepared.append(self.preprocessing.of_picture(image))
                elif isinstance(image, Tensor):
                    prepared.append(self.preprocessing.of_tensor(image))
                else:
                    raise InputError(f"neither a PIL image nor a tensor but {type(image).__name__}")
            except InputError as error:
                raise InputError(f"image {number}: {error}") from error
        return self.of_prepared(torch.stack(prepared)) if prepared else []

    def of_prepared(self, images: Tensor) -> list[Detection]:
        """Returns one :class:`Detection` per image that :class:`datasets.preprocessing.Preprocessing` has
        brought to size, uint8 (N, 3, S, S)."""
        batches = evaluation_batches(
            images,
            torch.full((len(images),), -1),
            batch_size=BATCH,
            normalization=self.preprocessing.normalization,
            device=self.device,
        )
        precision = autocast(self.device, self.precision)
        features = extract_features(
            self.network, batches, len(images), Compute(self.device), precision
        ).features
        found = []
        with torch.inference_mode():
            for outputs in self._calibration.outputs(features):
                probabilities, labels = outputs.logits.softmax(dim=1).max(dim=1)
                scores = self._scores(outputs)[self.score]
                for row in zip(labels.tolist(), probabilities.tolist(), scores.tolist(), strict=True):
                    found.append(self._detection(*row))
        return found

    def _detection(self, label, probability, score):
        name = None if self.class_names is None else self.class_names[label]
        return Detection(label, name, probability, score, score > self.threshold)


def write_detector(
    folder: Path,
    network: nn.Module,
    deployment: Deployment,
    calibrations: dict[str, tuple[Calibration, FittedScores]],
    held_out: Features | None,
    training: Features,
    *,
    auto: dict | None,
    progress: dict[str, int | None],
    precision: str,
) -> None:
    """Writes ``detector.pth``, whole or not at all, and says so.

    Args:
        calibrations: those evaluated, see :func:`utils.fitting.fit_calibrations`.
        held_out: features of held-out ID images; None if there are none: ``training`` is used instead.
        auto: the choice of --calibration auto, which becomes the detector's default; None without auto. See
            the facts of :func:`utils.fitting.fit_calibrations`.
        progress: of the run, see :func:`utils.checkpoint.progress_of`.
        precision: of the network's evaluation, without "auto".

    Raises:
        InputError: it cannot be written.
    """
    stored = {}
    for name, (calibration, fitted) in calibrations.items():
        scores = predict(calibration, fitted, (held_out or training).features).scores
        thresholds = {score: keeping_threshold(values) for score, values in scores.items()}
        stored[name] = {"calibration": calibration.state(), "thresholds": thresholds} | fitted.state()
    if auto is not None:
        default = auto["chosen"]["calibration"], auto["score"]
    else:
        calibration = "none" if "none" in stored else next(iter(stored))
        has_combined = "combined" in stored[calibration]["thresholds"]
        default = calibration, "combined" if has_combined else "energy"
    preprocessing = deployment.preprocessing
    state = {
        "network": deployment.name,
        "family": deployment.family,
        "weights": network.state_dict(),
        "image_size": preprocessing.size,
        "resize": preprocessing.resize,
        "normalization": [list(part) for part in preprocessing.normalization],
        "precision": precision,
        "class_names": deployment.class_names,
        "epoch": progress["epoch"],
        "epochs": progress["epochs"],
        "calibrations": stored,
        "default": list(default),
        "held_out": held_out is not None,
    }
    path = Path(folder) / FILE
    try:
        save_whole(_shared(_on("cpu", state)), path)
    except OSError as error:
        raise InputError(str(error)) from None
    say(f"written: {path} ({path.stat().st_size / 1e6:.0f} MB), for --images and utils.detector")


def keeping_threshold(scores: Tensor) -> float:
    """Returns the threshold that at least 95 % of the scores (N,) do not exceed. It lies between two
    scores, so rounding does not decide; for under 20 scores it is the largest."""
    ordered = scores.double().sort().values
    kept = math.ceil(KEPT * len(ordered))
    return float((ordered[kept - 1] + ordered[min(kept, len(ordered) - 1)]) / 2)


def _check(state):
    """Raises ValueError if plain values in an untrusted file are not a detector's; other defects show on
    use."""
    if not isinstance(state, dict) or "calibrations" not in state:
        raise ValueError("it holds something else; a run or a checkpoint has to be evaluated first")
    size, resize, names = state["image_size"], state["resize"], state["class_names"]
    if type(size) is not int or not 1 <= size <= 1024 or resize not in (*RESIZE_MODES, PHOTOGRAPH):
        raise ValueError("its images have no size")
    if not all(type(state.get(name)) in (int, type(None)) for name in ("epoch", "epochs")):
        raise ValueError("its epochs are no numbers")
    if names is not None and not all(isinstance(word, str) and word.isprintable() for word in names):
        raise ValueError("its class names are no text")
    num_classes = len(state["weights"]["linear.weight"])
    if names is not None and len(names) != num_classes:
        raise ValueError("it has another number of class names than of classes")
    for stored in state["calibrations"].values():
        if len(stored["calibration"]["classifier"]["weight"]) != num_classes:
            raise ValueError("a calibration of it has another number of classes")
        if not all(type(value) is float and math.isfinite(value) for value in stored["thresholds"].values()):
            raise ValueError("a threshold of it is no number")


def _choose(what, name, there):
    if name not in there:
        raise InputError(f"there is no {what} {name!r} in it; there are {', '.join(map(repr, there))}")
    return name


def _on(device, value):
    """Moves the tensors of nested dicts to a device."""
    if isinstance(value, Tensor):
        return value.detach().to(device)
    return {key: _on(device, item) for key, item in value.items()} if isinstance(value, dict) else value


def _shared(value, seen=None):
    """Replaces equal tensors in nested dicts by one tensor, which torch.save stores once."""
    seen = [] if seen is None else seen
    if isinstance(value, dict):
        return {key: _shared(item, seen) for key, item in value.items()}
    if not isinstance(value, Tensor):
        return value
    for other in seen:
        if other.dtype == value.dtype and other.shape == value.shape and torch.equal(other, value):
            return other
    seen.append(value)
    return value
