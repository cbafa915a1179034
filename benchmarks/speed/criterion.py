"""The cost of ISAC, forward and backward, including statistics: python -m benchmarks.speed.criterion

Compares it with the plain transcription (benchmarks/speed/plain.py) at three sizes, after checking that the
two agree, and measures how time, and on a GPU memory, grow with the number of classes.
"""

import argparse
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.speed.common import chosen_device, milliseconds, publish, timed
from benchmarks.speed.plain import PlainISAC
from utils.errors import InputError, exit_cleanly
from utils.losses import PATTLoss

SIZES = {(128, 10, 512): 15, (128, 100, 512): 25, (32, 1000, 1024): 60}  # N, C, D -> times faster, the goal
GROWTH = (10, 100, 1000, 10_000)

Step = Callable[[], tuple[Tensor, Tensor]]  # one forward and backward pass: (loss, gradient)


def ours_and_plain(n: int, classes: int, dim: int, device: torch.device) -> tuple[Step, Step]:
    """Returns a step of our contrastive term and one of the plain one, on the same numbers.

    The embeddings are near their class directions, with 16 earlier ones per class. With so many, no kappa
    comes near the order at which the plain recurrence starts, above which it is wrong.
    """
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(classes, (n,), generator=generator)
    centres = torch.randn(classes, dim, generator=generator)
    embeddings = centres[labels] + 2 * torch.randn(n, dim, generator=generator)
    earlier = F.normalize(
        centres.repeat(16, 1) + 2 * torch.randn(16 * classes, dim, generator=generator), dim=1
    )
    counts = torch.logspace(3, 1, classes).long().tolist()
    loss = PATTLoss(counts, dim, oe_weight=0, tla_weight=0, schedule="running", tla=False, oe=False).to(
        device
    )
    loss.statistics.update(earlier.to(device), torch.arange(classes, device=device).repeat(16))
    plain = PlainISAC(counts, dim)
    for part in earlier.double().chunk(16):
        plain.update(part, torch.arange(classes))
    batch = embeddings.to(device), labels.to(device)
    return step_of(loss.contrast, *batch), step_of(plain.to(device), *batch)


def step_of(loss: nn.Module | Callable, embeddings: Tensor, labels: Tensor) -> Step:
    embeddings = embeddings.clone().requires_grad_()

    def step():
        embeddings.grad = None
        value = loss(embeddings, labels)
        value.backward()
        return value.detach(), embeddings.grad

    return step


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--device", type=chosen_device, default="cpu")
    args = parser.parse_args(argv)
    rows, sizes, growth = [], [], []
    for size, goal in SIZES.items():
        mine, theirs = ours_and_plain(*size, args.device)
        (a, grad_a), (b, grad_b) = mine(), theirs()
        difference = max(abs(float(a - b)), float((grad_a - grad_b).abs().max() / grad_b.abs().max()))
        if difference > 1e-4:
            raise InputError(f"the two do not agree at {size}: {difference}")
        fast, slow = timed(mine, args.repeats), timed(theirs, max(3, args.repeats // 3))
        sizes.append({"size": size, "ours": fast, "plain": slow, "difference": difference})
        faster = f"{slow.median / fast.median:.0f}x (goal {goal}x)"
        name = "N {}, C {}, D {}".format(*size)
        rows.append([name, milliseconds(slow), milliseconds(fast), faster, f"{difference:.0e}"])
    for classes in GROWTH:
        step, _ = ours_and_plain(128, classes, 512, args.device)
        timing, memory = timed(step, args.repeats), ""
        if args.device.type == "cuda":
            before = torch.cuda.memory_allocated()
            torch.cuda.reset_peak_memory_stats()
            step()
            memory = f"peak memory +{(torch.cuda.max_memory_allocated() - before) / 2**20:.1f} MB"
        growth.append({"classes": classes, "ours": timing, "memory": memory})
        rows.append([f"N 128, C {classes:,}, D 512", "", milliseconds(timing), "", memory])
    head = ["ISAC, forward + backward", "plain, ms", "ours, ms", "faster", "largest difference"]
    publish(__spec__.name, "criterion", args.device, head, rows, sizes=sizes, growth=growth)


if __name__ == "__main__":
    exit_cleanly(main)
