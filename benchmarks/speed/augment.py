"""Images per second of each random view of CIFAR: python -m benchmarks.speed.augment

Compares batched tensors with torchvision's transforms on one PIL image at a time, on the same cores, also for
a whole training step's 640 images (128 strong, 256 contrastive, 256 outliers). With CUDA, ours runs there,
many steps at once, as in the loader.
"""

import argparse
from concurrent.futures import ProcessPoolExecutor

import torch

from benchmarks.speed.common import chosen_device, publish, timed
from benchmarks.speed.plain import as_pil, plain_views
from datasets.augment.views import cifar_views
from datasets.loader import STEPS_AT_ONCE
from utils.errors import exit_cleanly

VIEWS = {"strong": 128, "contrastive": 256, "outlier": 256}


def plain_chunk(view, images, seed):
    """Transforms one worker's share of the images, one at a time."""
    torch.set_num_threads(1)
    torch.manual_seed(seed)
    transform = plain_views()[list(VIEWS).index(view)]
    return len([transform(image) for image in images])


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--device", type=chosen_device, default="cpu")
    args = parser.parse_args()
    workers, at_once = torch.get_num_threads(), STEPS_AT_ONCE[args.device.type]
    generator = torch.Generator().manual_seed(0)
    # Smooth colours, so operations such as equalising have an effect.
    coarse = torch.rand(256, 3, 4, 4, generator=generator)
    images = torch.nn.functional.interpolate(coarse, 32, mode="bilinear").mul(255).byte()
    views, rows, measured, total = cifar_views(), [], [], {"plain": 0.0, "ours": 0.0}
    with ProcessPoolExecutor(workers) as pool:
        for name, size in VIEWS.items():
            pictures = as_pil(images[:size])
            parts = [pictures[i::workers] for i in range(workers)]
            on_device = images[:size].repeat(at_once, 1, 1, 1).to(args.device)
            view = getattr(views, name)

            def plain(name=name, parts=parts):
                return list(pool.map(plain_chunk, [name] * workers, parts, range(workers)))

            def ours(view=view, on_device=on_device):
                return view(on_device, generator)

            slow, fast = timed(plain, args.repeats), timed(ours, 3 * args.repeats, warmup=3)
            rates = {"plain": size / slow.median, "ours": size * at_once / fast.median}
            total = {way: total[way] + size / rates[way] for way in total}
            measured.append(
                {"view": name, "images": size, "plain": slow, "ours": fast, "ours_steps_at_once": at_once}
            )
            rows.append(
                [
                    f"{name}, {size} images",
                    *(f"{rates[w]:,.0f}" for w in rates),
                    f"{rates['ours'] / rates['plain']:.1f}x",
                ]
            )
    step = [f"{sum(VIEWS.values()) / total[way]:,.0f}" for way in total]
    rows.append(["a step, 640 images", *step, f"{total['plain'] / total['ours']:.1f}x (goal 5x)"])
    head = ["view", "one PIL image at a time, images/s", "batched, images/s", "faster"]
    publish(__spec__.name, "augment", args.device, head, rows, views=measured, cores_used=workers)


if __name__ == "__main__":
    exit_cleanly(main)
