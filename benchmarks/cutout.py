"""Do networks need Cutout's square? python -m benchmarks.cutout RUN ... --drp DATA --dout SET ...

Finished networks of train.py on CIFAR: mean confidence (max softmax) and accuracy on test images, and energy's
AUROC, a mean over the OOD sets; with the images as they are, and all with a black square at a random place.
"""

import argparse
from pathlib import Path

import torch
from torch import Generator, Tensor, nn

from benchmarks.rows import label_of
from benchmarks.speed import publish
from datasets.augment.stages import Cutout, ToFloat, View
from datasets.images import NORMALIZATIONS, ImageSet, Normalization
from datasets.registry import BENCHMARKS
from models import build_model
from utils import flags
from utils.checkpoint import open_checkpoint, stored_arguments
from utils.errors import exit_cleanly
from utils.metrics import ood_metrics
from utils.weights import load_weights, network_weights

IMAGES = 2000  # of each set
VIEWS = {"as is": View((ToFloat(),)), "square": View((Cutout(16), ToFloat()))}


def some(images: ImageSet, ood: bool) -> ImageSet:
    kept = ((images.labels < 0) == ood).nonzero().flatten()
    return images.select(kept[torch.randperm(len(kept), generator=Generator().manual_seed(0))[:IMAGES]])


@torch.inference_mode()
def logits(network: nn.Module, images: Tensor, view: View, normalize: Normalization) -> Tensor:
    pixels = normalize(view(images, Generator().manual_seed(0)))
    return torch.cat([network(part).logits for part in pixels.split(500)])


def measure(run: Path, root: Path, ood_sets: list[str]) -> dict[str, list[float]]:
    """Returns the three numbers of a run under each of ``VIEWS``."""
    checkpoint = open_checkpoint(run)
    settings = stored_arguments(checkpoint)
    benchmark = BENCHMARKS[settings["ds"]]
    network = build_model(settings["model"], benchmark.num_classes).eval()
    load_weights(network, network_weights(checkpoint))
    test = some(benchmark.load_split(root, False), ood=False)
    others = [some(images, ood=True) for images in benchmark.load_ood(ood_sets, root, "squash").values()]
    found = {"confidence": [], "accuracy": [], "AUROC, energy": []}
    for view in VIEWS.values():
        of_test, *of_ood = (
            logits(network, of.images, view, NORMALIZATIONS[settings["normalization"]])
            for of in (test, *others)
        )
        found["confidence"].append(float(of_test.softmax(dim=1).amax(dim=1).mean()))
        found["accuracy"].append(float((of_test.argmax(dim=1) == test.labels).float().mean()))
        energies = [-of.logsumexp(dim=1) for of in (of_test, *of_ood)]
        aurocs = [ood_metrics(energies[0], of)["auroc"] for of in energies[1:]]
        found["AUROC, energy"].append(sum(aurocs) / len(aurocs))
    return found


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("runs", type=flags.path, nargs="+", metavar="RUN", help="folders ROW/seedS")
    parser.add_argument("--drp", type=flags.path, default=Path("data"))
    parser.add_argument("--dout", nargs="+", required=True)
    args = parser.parse_args(argv)
    measured = {str(run): measure(run, args.drp, args.dout) for run in args.runs}
    head = ["%", *(f"{what}, {view}" for what in next(iter(measured.values())) for view in VIEWS)]
    table = []
    for run in args.runs:
        values = sum(measured[str(run)].values(), [])
        table.append([label_of(run.parent.name), *(f"{100 * value:.1f}" for value in values)])
    publish(__spec__.name, "cutout", torch.device("cpu"), head, table, measured=measured)


if __name__ == "__main__":
    exit_cleanly(main)
