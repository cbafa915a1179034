"""A trained network, ready to use: classes, OOD scores and decisions for any images.

    detector = Detector.load("runs/demo/patt", "cpu")
    detector(pictures)[0].ood

test.py and test_imagenet.py write ``detector.pth`` into the run directory: one self-contained file of tensors
and plain values, network weights included. It holds every score but knn, which needs the features of all
training images and is stored with ``--score knn`` alone.
"""

import math
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from PIL import Image
from torch import Tensor, nn

from datasets.images import Normalization
from datasets.preprocessing import Preprocessing
from models import build_model
from utils.calibration import Calibration, Classifier
from utils.checkpoint import is_unfinished, load_checkpoint, on_device, results_folder, save_checkpoint
from utils.distributed import autocast
from utils.errors import InputError, first_line
from utils.evaluation import Settings, predict
from utils.fitting import TrainingSets
from utils.scores import SCORES, FittedScores
from utils.weights import load_weights

FILE = "detector.pth"
BATCH = 100  # images per forward pass
FEW = 20  # a threshold from fewer images is unreliable


def find_detector(run: Path | str) -> Path:
    """Returns the path of the detector of a run directory, checkpoint file or detector file."""
    path = Path(run)
    of_run = results_folder(path) / FILE
    return of_run if path.is_dir() or of_run.exists() else path


class Subject(NamedTuple):
    """A network that is evaluated, ``name`` and ``family`` as in ``models.FAMILIES``."""

    model: nn.Module
    name: str
    family: str
    preprocessing: Preprocessing
    normalization: Normalization
    class_counts: list[int]
    class_names: list[str] | None
    checkpoint: Any


class Detection(NamedTuple):
    """The predicted class of an image, its name (None if unknown) and its probability among the C classes;
    the score, higher = more OOD, and whether it exceeds the threshold."""

    label: int
    name: str | None
    probability: float
    score: float
    ood: bool


class ScoringModule(nn.Module):
    """From uint8 images (N, 3, S, S) to class logits and one OOD score, in its own precision whatever
    surrounds it. ``torch.export.export(module, (images,), strict=False)`` accepts it."""

    def __init__(self, network, normalization, calibration, fitted, score, precision):
        super().__init__()
        self.network, self.calibration, self.fitted = network, calibration, fitted
        self.score, self.precision = score, precision
        for name, values in normalization._asdict().items():
            self.register_buffer(name, torch.tensor(values, dtype=torch.float32).view(1, 3, 1, 1))

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Returns float32 logits (N, C) and scores (N,)."""
        with torch.autocast(images.device.type, enabled=False):
            pixels = (images.float() / 255 - self.mean) / self.std
            with autocast(images.device, self.precision):
                output = self.network(pixels.contiguous(memory_format=torch.channels_last))
            logits, scores = [], []
            for rows in self.calibration.outputs(output.features.float()):
                logits.append(rows.logits.float())
                scores.append(self.fitted(rows)[self.score].float())
            return torch.cat(logits), torch.cat(scores)


class Detector:
    """A network with one calibration, one score and its threshold; made by :meth:`load`.

    Worker processes that are *forked* after its use hang, as with any PyTorch model on a CPU: use "spawn".

    Attributes:
        calibration, score: their names. threshold: images with a higher score are OOD.
        keep: the share that the threshold keeps of ``num_images`` images, ``held_out`` or training images.
        class_names: C names, or None. preprocessing: of images.
    """

    def __init__(self, state, device, calibration, score, keep):
        default = state["default"]
        self.device, self.class_names, self.held_out = device, state["class_names"], state["held_out"]
        self.calibration, self.score = calibration or default["calibration"], score or default["score"]
        stored = _chosen("calibration", self.calibration, state["calibrations"])
        id_scores = _chosen("score", self.score, stored["id_scores"])
        self.keep = default["keep"] if keep is None else keep
        self.num_images, self.threshold = len(id_scores), keeping_threshold(id_scores, self.keep)
        normalization = Normalization(*map(tuple, state["normalization"]))
        self.preprocessing = Preprocessing(state["image_size"], state["resize"])
        classes = len(state["weights"]["linear.weight"])
        network = build_model(state["network"], classes, state["family"]).float().requires_grad_(False)
        load_weights(network, state["weights"])
        parts = on_device(device, stored["calibration"])
        probe = parts["probe"] and Classifier(**parts["probe"])
        calibration = Calibration(Classifier(**parts["classifier"]), parts["attention"], probe)
        standards = stored["standards"] if self.score == "combined" else {}
        fields = {name: on_device(device, stored["scores"][name]) for name in standards or [self.score]}
        fitted = FittedScores({name: SCORES[name](**fields[name]) for name in fields}, standards)
        precision = state["precision"] if device.type == "cuda" else "fp32"  # a CPU may have to emulate bf16
        module = ScoringModule(network, normalization, calibration, fitted, self.score, precision)
        self._module = module.eval().to(device, memory_format=torch.channels_last)

    @classmethod
    def load(
        cls,
        run: Path | str,
        device: torch.device | str = "cpu",
        calibration: str | None = None,
        score: str | None = None,
        keep: float | None = None,
    ) -> "Detector":
        """Loads the detector of an evaluated run directory or checkpoint file, or a ``detector.pth``, without
        running code from it. Warns if the run was unfinished, or the threshold is from training images or
        fewer than 20. Raises InputError if the file is not one, or lacks the calibration or score.

        ``calibration``, ``score``: names from the evaluation. Default: the choice of --calibration auto and
        its score; without auto, ``none`` (or the first that was evaluated) and ``combined``, or ``energy``
        where that could not be fitted. ``keep``: the share of images that the threshold keeps, in (0, 1].
        """
        if keep is not None and not 0 < keep <= 1:
            raise InputError(f"keep is a share above 0 and at most 1, not {keep}")
        path = find_detector(run)
        if not path.is_file():
            raise InputError(f"there is no detector {path}: first run test.py or test_imagenet.py")
        state = load_checkpoint(path)
        try:
            detector = cls(state, torch.device(device), calibration, score, keep)
        except InputError as error:
            raise InputError(f"{path}: {error}") from None
        except (KeyError, TypeError, AttributeError) as error:  # of a checkpoint, or an earlier version
            if "calibrations" not in state:
                raise InputError(f"{path} is not a detector: run test.py or test_imagenet.py") from error
            why = first_line(error)
            raise InputError(f"{path} is not this version's ({why}): evaluate the run again") from error
        kept = f"the detector's threshold keeps {100 * detector.keep:g} % of {detector.describe_images()}"
        if state["unfinished"]:
            warnings.warn("the detector is of an unfinished run: evaluate the finished run", stacklevel=2)
        if not detector.held_out:
            warnings.warn(f"{kept}, as none were held out (--val_fraction)", stacklevel=2)
        if detector.num_images < FEW:
            warnings.warn(f"{kept}: too few to rely on it", stacklevel=2)
        return detector

    def describe_images(self) -> str:
        return f"{self.num_images:,} {'held-out' if self.held_out else 'training'} images"

    def module(self) -> ScoringModule:
        """Returns the network with its score, for images of ``preprocessing``, not normalised."""
        return self._module

    def __call__(self, images: Image.Image | Tensor | Sequence[Image.Image | Tensor]) -> list[Detection]:
        """Returns one :class:`Detection` per image; raises InputError if one is not an image.

        ``images``: a PIL image, a tensor (3, H, W) or (N, 3, H, W), or a list of PIL images and tensors
        (3, H, W). Tensors are uint8, or floating-point in [0, 1], and not normalised. Like image files, they
        are resized and rounded to 8 bits.
        """
        if isinstance(images, Image.Image) or (isinstance(images, Tensor) and images.dim() == 3):
            images = [images]
        if isinstance(images, Tensor):
            images = images.cpu()  # once, not for each image
        prepared = []
        for image in images:
            if isinstance(image, Image.Image):
                prepared.append(self.preprocessing.of_picture(image))
            elif isinstance(image, Tensor):
                prepared.append(self.preprocessing.of_tensor(image))
            else:
                raise InputError(f"images are PIL images or tensors, not {type(image).__name__}")
        return self.of_prepared(torch.stack(prepared)) if prepared else []

    @torch.inference_mode()
    def of_prepared(self, images: Tensor) -> list[Detection]:
        """Returns one :class:`Detection` per image from ``preprocessing``, uint8 (N, 3, S, S)."""
        found = []
        for batch in images.split(BATCH):
            logits, scores = self._module(batch.to(self.device))
            probabilities, labels = logits.double().softmax(dim=1).max(dim=1)
            columns = (part.tolist() for part in (labels, probabilities, scores))
            for label, probability, score in zip(*columns, strict=True):
                name = None if self.class_names is None else self.class_names[label]
                found.append(Detection(label, name, probability, score, score > self.threshold))
        return found


def write_detector(
    path: Path, subject: Subject, calibrations: dict, sets: TrainingSets, settings: Settings, auto: Any
) -> None:
    """Writes a detector file, whole or not at all (OSError), with thresholds from the held-out images, or
    else the training images. ``calibrations`` and ``auto``, whose choice becomes the detector's default, are
    from :func:`utils.fitting.fit_calibrations`; the precision in ``settings`` is not "auto"."""
    stored = {}
    for name, (calibration, fitted) in calibrations.items():
        kept = {n: s for n, s in fitted.scores.items() if n != "knn" or settings.score == "knn"}
        fitted = fitted._replace(scores=kept)
        _, scores = predict(calibration, fitted, (sets.held_out or sets.training).features)
        id_scores = {score: torch.from_numpy(of).float().sort().values for score, of in scores.items()}
        stored[name] = {"calibration": calibration.state(), "id_scores": id_scores} | fitted.state()
    calibration = "none" if "none" in stored else next(iter(stored))
    score = "combined" if "combined" in stored[calibration]["id_scores"] else "energy"
    if auto is not None:
        calibration, score = auto["chosen"]["calibration"], auto["score"]
    state = {
        "network": subject.name,
        "family": subject.family,
        "weights": subject.model.state_dict(),
        "image_size": subject.preprocessing.size,
        "resize": subject.preprocessing.resize,
        "normalization": [list(part) for part in subject.normalization],
        "precision": settings.precision,
        "class_names": subject.class_names,
        "unfinished": is_unfinished(subject.checkpoint),
        "calibrations": stored,
        "default": {"calibration": calibration, "score": score, "keep": settings.keep},
        "held_out": sets.held_out is not None,
    }
    save_checkpoint(state, path)


def keeping_threshold(scores: Tensor, keep: float) -> float:
    """Returns the threshold that at least the share ``keep`` of the scores (N,) do not exceed: between two
    scores, so rounding does not decide, or the largest."""
    ordered = scores.double().sort().values
    kept = max(1, math.ceil(round(keep * len(ordered), 6)))
    return float((ordered[kept - 1] + ordered[min(kept, len(ordered) - 1)]) / 2)


def _chosen(what, name, stored):
    if name not in stored:
        there = ", ".join(stored)
        raise InputError(f"it has no {what} {name!r}, only {there}; evaluate the run with --{what} {name}")
    return stored[name]
