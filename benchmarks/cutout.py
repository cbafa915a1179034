"""Does a network tell outliers by augmentation? python -m benchmarks.cutout RUN ... --drp DATA

In the paper's recipe view 1 alone has Cutout's black square. The mean confidence, max softmax, of finished
networks on test images and surrogate outliers, as they are and with a black square at a random place.
"""

import argparse
from pathlib import Path

import torch
from torch import Generator, Tensor, nn

from benchmarks.rows import label_of
from benchmarks.speed import publish
from datasets.augment.stages import Cutout, ToFloat, View
from datasets.images import NORMALIZATIONS, Normalization
from datasets.registry import BENCHMARKS
from models import build_model
from utils import flags
from utils.checkpoint import open_checkpoint, stored_arguments
from utils.errors import exit_cleanly
from utils.weights import load_weights, network_weights

IMAGES = 2000
VIEWS = {"as they are": View((ToFloat(),)), "with a square": View((Cutout(16), ToFloat()))}


def some(images: Tensor) -> Tensor:
    return images[torch.randperm(len(images), generator=Generator().manual_seed(0))[:IMAGES]]


@torch.inference_mode()
def confidence(network: nn.Module, images: Tensor, view: View, normalize: Normalization) -> float:
    pixels = normalize(view(images, Generator().manual_seed(0)))
    logits = torch.cat([network(part).logits for part in pixels.split(500)])
    return float(logits.softmax(dim=1).amax(dim=1).mean())


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("runs", type=flags.path, nargs="+", metavar="RUN", help="folders ROW/seedS")
    parser.add_argument("--drp", type=flags.path, default=Path("data"))
    args = parser.parse_args(argv)
    table, measured = [], {}
    for run in args.runs:
        checkpoint = open_checkpoint(run)
        settings = stored_arguments(checkpoint)
        benchmark = BENCHMARKS[settings["ds"]]
        network = build_model(settings["model"], benchmark.num_classes).eval()
        load_weights(network, network_weights(checkpoint))
        test = benchmark.load_split(args.drp, False).images
        outliers = benchmark.load_outliers(args.drp, settings["num_ood_samples"])
        values = [
            confidence(network, some(images), view, NORMALIZATIONS[settings["normalization"]])
            for images in (test, outliers)
            for view in VIEWS.values()
        ]
        table.append([label_of(run.parent.name), *(f"{100 * value:.1f}" for value in values)])
        measured[run.parent.name] = values
    head = ["mean confidence, %", *(f"{of} {how}" for of in ("test images", "outliers") for how in VIEWS)]
    publish(__spec__.name, "cutout", torch.device("cpu"), head, table, measured=measured)


if __name__ == "__main__":
    exit_cleanly(main)
