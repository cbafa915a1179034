"""The cost of ISAC, forward and backward, including statistics: python -m benchmarks.speed.criterion

Compares it with the plain transcription (benchmarks/speed/plain.py) at three sizes, after checking that the
two agree, and measures how time and peak memory grow with the number of classes.
"""

import argparse
import multiprocessing
import os
from pathlib import Path

import torch
import torch.nn.functional as F

from benchmarks.speed.common import chosen_device, milliseconds, publish, timed
from benchmarks.speed.plain import PlainISAC
from utils.errors import exit_cleanly
from utils.losses import PATTLoss

SIZES = ((128, 10, 512), (128, 100, 512), (32, 1000, 1024))
GOALS = (15, 25, 60)
GROWTH = (10, 100, 1000, 10_000)
# Freed tensors leave the process at once instead of being kept for reuse.
EXACT_MEMORY = {"MALLOC_MMAP_THRESHOLD_": "65536"}


def batch(n, classes, dim, device):
    """Returns embeddings near their class directions, 16 earlier ones per class, labels and class counts.

    With so many, no kappa comes near the order at which the plain recurrence starts, above which it is wrong.
    """
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(classes, (n,), generator=generator)
    centres = torch.randn(classes, dim, generator=generator)
    embeddings = centres[labels] + 2 * torch.randn(n, dim, generator=generator)
    earlier = centres.repeat(16, 1) + 2 * torch.randn(16 * classes, dim, generator=generator)
    counts = torch.logspace(3, 1, classes).long().tolist()
    return embeddings.to(device), labels.to(device), F.normalize(earlier, dim=1).to(device), counts


def ours(n, classes, dim, device):
    """Returns a function that computes our contrastive term once, forward and backward."""
    embeddings, labels, earlier, counts = batch(n, classes, dim, device)
    loss = PATTLoss(counts, dim, oe_weight=0, tla_weight=0, schedule="running", tla=False, oe=False).to(
        device
    )
    loss.statistics.update(earlier, torch.arange(classes, device=device).repeat(16))
    embeddings.requires_grad_()
    return lambda: step(loss.contrast, embeddings, labels)


def plain(n, classes, dim, device):
    embeddings, labels, earlier, counts = batch(n, classes, dim, "cpu")
    loss = PlainISAC(counts, dim)
    for part in earlier.double().chunk(16):
        loss.update(part, torch.arange(classes))
    loss.to(device)
    embeddings, labels = embeddings.to(device).requires_grad_(), labels.to(device)
    return lambda: step(loss, embeddings, labels)


def step(loss, embeddings, labels):
    """Returns (loss, gradient) of one forward and backward pass."""
    embeddings.grad = None
    value = loss(embeddings, labels)
    value.backward()
    return value.detach(), embeddings.grad


def peak_memory(classes, n, dim, device):
    """Returns the peak memory, in MB, that a step adds to the class statistics; for the CPU, in a new
    process."""
    if device.type == "cuda":
        do = ours(n, classes, dim, device)
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        do()
        return (torch.cuda.max_memory_allocated() - before) / 2**20
    os.environ |= EXACT_MEMORY
    spawn = multiprocessing.get_context("spawn")
    queue = spawn.SimpleQueue()
    process = spawn.Process(target=own_peak_memory, args=(classes, n, dim, queue))
    process.start()
    added = queue.get()
    process.join()
    return added


def own_peak_memory(classes, n, dim, queue):
    """Puts this process's peak in the queue, from Linux's VmHWM: getrusage's peak includes the parent's."""
    torch.set_num_threads(1)
    ours(n, 10, dim, "cpu")()
    do = ours(n, classes, dim, "cpu")
    before = resident("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # resets the peak
    do()
    queue.put(resident("VmHWM") - before)


def resident(field):
    """Returns a field of /proc/self/status, in MB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field)) / 1024


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--device", type=chosen_device, default="cpu")
    args = parser.parse_args()
    rows, sizes = [], []
    for (n, classes, dim), goal in zip(SIZES, GOALS, strict=True):
        mine, theirs = ours(n, classes, dim, args.device), plain(n, classes, dim, args.device)
        (a, grad_a), (b, grad_b) = mine(), theirs()
        difference = max(abs(float(a) - float(b)), float((grad_a - grad_b).abs().max() / grad_b.abs().max()))
        if difference > 1e-4:
            raise SystemExit(f"the two do not agree at {(n, classes, dim)}: {difference}")
        fast, slow = timed(mine, 3 * args.repeats, warmup=5), timed(theirs, max(3, args.repeats // 3))
        sizes.append(
            {"n": n, "classes": classes, "dim": dim, "ours": fast, "plain": slow, "difference": difference}
        )
        row = [f"N {n}, C {classes}, D {dim}", milliseconds(slow), milliseconds(fast)]
        rows.append([*row, f"{slow.median / fast.median:.0f}x (goal {goal}x)", f"{difference:.0e}"])
    growth = []
    for classes in GROWTH:
        timing = timed(ours(128, classes, 512, args.device), args.repeats, warmup=3)
        added = peak_memory(classes, 128, 512, args.device)
        growth.append({"classes": classes, "ours": timing, "peak_mb": added})
        statistics = 2 * 8 * classes * 512 / 2**20
        memory = f"peak memory +{added:.1f} MB, statistics {statistics:.1f} MB"
        rows.append([f"N 128, C {classes:,}, D 512", "", milliseconds(timing), "", memory])
    head = ["ISAC, forward + backward", "plain, ms", "ours, ms", "faster", "largest difference"]
    publish(__spec__.name, "criterion", args.device, head, rows, sizes=sizes, growth=growth)


if __name__ == "__main__":
    exit_cleanly(main)
