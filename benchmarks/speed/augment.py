"""Images per second of each random view of CIFAR: python -m benchmarks.speed.augment

Compares batched tensors with torchvision's transforms on one PIL image at a time, on one core, also for a
whole training step's 640 images (128 strong, 256 contrastive, 256 outliers). With CUDA, ours runs there, many
steps at once, as in the loader.
"""

import argparse

import torch
from PIL import Image
from torchvision import transforms

from benchmarks.speed.common import chosen_device, publish, timed
from datasets.augment.views import cifar_views
from datasets.loader import STEPS_AT_ONCE
from datasets.normalization import CIFAR_NORMALIZATION
from utils.errors import exit_cleanly

SIZES = {"strong": 128, "contrastive": 256, "outlier": 256}


def cutout(image: torch.Tensor) -> torch.Tensor:
    """Blackens a square of 16 x 16 around a random centre of an image (3, 32, 32)."""
    row, column = torch.randint(32, (2,)).tolist()
    image[:, max(0, row - 8) : row + 8, max(0, column - 8) : column + 8] = 0
    return image


def plain_views() -> dict[str, transforms.Compose]:
    """Returns the views as transforms of one PIL image of 32 x 32 to a normalised tensor."""
    crop, flip = transforms.RandomCrop(32, padding=4), transforms.RandomHorizontalFlip()
    jitter = transforms.RandomApply([transforms.ColorJitter(0.4, 0.4, 0.4, 0.1)], p=0.8)
    colours = [flip, jitter, transforms.RandomGrayscale(0.2)]
    policy = transforms.AutoAugment(transforms.AutoAugmentPolicy.CIFAR10, fill=[128] * 3)
    tensor, normalize = transforms.ToTensor(), transforms.Normalize(*CIFAR_NORMALIZATION)
    return {
        "strong": transforms.Compose([crop, flip, policy, tensor, cutout, normalize]),
        "contrastive": transforms.Compose([transforms.RandomResizedCrop(32), *colours, tensor, normalize]),
        "outlier": transforms.Compose([crop, *colours, tensor, normalize]),
    }


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--device", type=chosen_device, default="cpu")
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    steps, generator = STEPS_AT_ONCE[args.device.type], torch.Generator().manual_seed(0)
    # Smooth colours, so operations such as equalising have an effect.
    coarse = torch.rand(256, 3, 4, 4, generator=generator)
    images = torch.nn.functional.interpolate(coarse, 32, mode="bilinear").mul(255).byte()
    pictures = [Image.fromarray(image.permute(1, 2, 0).numpy()) for image in images]
    plain, ours, seconds = plain_views(), cifar_views(), {}
    for name, size in SIZES.items():
        batch, some = images[:size].repeat(steps, 1, 1, 1).to(args.device), pictures[:size]
        transform, view = plain[name], getattr(ours, name)
        slow = timed(lambda transform=transform, some=some: [transform(one) for one in some], args.repeats)
        fast = timed(lambda view=view, batch=batch: view(batch, generator), args.repeats, steps)
        seconds[f"{name}, {size} images"] = size, slow.median, fast.median
    seconds["a step, 640 images (goal 5x)"] = [sum(column) for column in zip(*seconds.values(), strict=True)]
    head = ["view", "one PIL image at a time, images/s", "batched, images/s", "faster"]
    rows = [
        [name, f"{size / slow:,.0f}", f"{size / fast:,.0f}", f"{slow / fast:.1f}x"]
        for name, (size, slow, fast) in seconds.items()
    ]
    publish(__spec__.name, "augment", args.device, head, rows, seconds=seconds, steps_at_once=steps)


if __name__ == "__main__":
    exit_cleanly(main)
