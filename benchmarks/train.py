"""Where a training step's time goes: python -m benchmarks.train

The step of train.py on CIFAR10-LT's sizes (128 x 3 + 256 images of 32 x 32), taken apart: data, the network's forward and
backward, criterion, optimiser with its guard, meter; and the evaluation of 10,000 images. Against (a) the bare forward and
backward of the same network on ready tensors, and (b) the plain pipeline: PIL images in this process's cores, fp32, the
transcribed criterion. Data are random; time does not depend on them.
"""

import argparse
from concurrent.futures import ProcessPoolExecutor

import torch

from benchmarks.augment import VIEWS, plain_chunk
from benchmarks.common import milliseconds, publish, timed
from benchmarks.plain import PlainISAC, as_pil
from datasets.loader import CIFAR_NORMALIZATION, TrainLoader, evaluation_batches
from datasets.long_tail import long_tail_counts
from datasets.views import cifar_views
from models import build_model
from train import build_optimizer, parse_args
from utils.distributed import autocast
from utils.guard import StepGuard
from utils.losses import PATTLoss
from utils.meter import EpochMeter

STEPS_AN_EPOCH, TEST_IMAGES = 96, 10_000
GFLOP_AN_IMAGE = {"ResNet18": 3.35}  # forward and backward of a 32 x 32 image, multiply and add counted apart
CARD_TFLOPS = 790  # bf16 matrix products of one H200


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--md", default="ResNet18")
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--device", type=torch.device, default=torch.device("cpu"))
    parser.add_argument("--skip_plain", action="store_true", help="leave out the plain pipeline's images and criterion")
    args = parser.parse_args()
    device = args.device
    torch.backends.cudnn.benchmark = True
    settings = parse_args(["--ds", "cifar10", "--md", args.md])
    counts = long_tail_counts(5000, 10, 0.01)
    labels = torch.repeat_interleave(torch.arange(10), torch.tensor(counts))
    images = torch.randint(0, 256, (len(labels), 3, 32, 32), dtype=torch.uint8)
    outliers = torch.randint(0, 256, (20_000, 3, 32, 32), dtype=torch.uint8)
    loader = TrainLoader(
        images, labels, outliers, cifar_views(), batch_size=settings.batch_size, outlier_batch_size=settings.ob,
        normalization=CIFAR_NORMALIZATION, outlier_normalization=CIFAR_NORMALIZATION, contrastive=True, seed=0, device=device,
    )  # fmt: skip
    model = build_model(args.md, 10).to(device, memory_format=torch.channels_last).train()
    criterion = PATTLoss(counts, model.embedding_dim, oe_weight=0.1, tla_weight=0.5).to(device)
    optimizer = build_optimizer(model, settings)
    guard, meter = StepGuard(optimizer, [model, criterion], 3), EpochMeter(10, device)
    guard.remember()
    mixed = autocast(device, "auto")
    batches = iter(loader.epoch(0))
    batch = next(batches)

    def network():
        with mixed:
            output = model(batch.images)
        (output.logits.sum() + output.embedding.sum()).backward()

    def loss(output_of=model.embedding_dim):
        n = len(batch.images)
        logits = torch.randn(n, 10, device=device, requires_grad=True)
        embeddings = torch.randn(n, output_of, device=device, requires_grad=True)
        terms = criterion(logits, embeddings, batch.labels)
        terms["loss"].backward()
        return terms, logits

    terms, logits = loss()
    network()

    def update():
        applied = guard.step(terms, batch.indices, 0)
        meter.add(terms, logits[: len(batch.labels)].detach(), batch.labels, applied)

    def whole():
        batch = next(batches)
        with mixed:
            output = model(batch.images)
        values = criterion(output.logits, output.embedding, batch.labels)
        optimizer.zero_grad(set_to_none=True)
        values["loss"].backward()
        applied = guard.step(values, batch.indices, 0)
        meter.add(values, output.logits[: len(batch.labels)], batch.labels, applied)

    @torch.inference_mode()
    def evaluation():
        model.eval()
        test = torch.randint(0, 256, (TEST_IMAGES, 3, 32, 32), dtype=torch.uint8, device=device)
        for x, _ in evaluation_batches(
            test, torch.zeros(TEST_IMAGES), batch_size=1000, normalization=CIFAR_NORMALIZATION, device=device
        ):
            with mixed:
                model(x)
        model.train()

    parts = {"bare forward + backward": timed(network, args.steps)}
    parts["data"] = timed(lambda: next(batches), 4 * args.steps)
    parts["criterion"] = timed(loss, 4 * args.steps)
    parts["optimiser, guard, meter"] = timed(update, 4 * args.steps)
    parts["whole step"] = timed(whole, args.steps)
    parts["evaluation, 10,000 images"] = timed(evaluation, 1, warmup=0 if device.type == "cpu" else 1)
    step, bare = parts["whole step"].median, parts["bare forward + backward"].median
    rows = [[name, milliseconds(t), f"{100 * t.median / step:.1f} %"] for name, t in parts.items() if "evaluation" not in name]
    rest = sum(parts[name].median for name in ("data", "criterion", "optimiser, guard, meter"))
    rows.append(["everything but forward + backward", f"{1e3 * rest:.4g}", f"{100 * rest / step:.1f} % (goal at most 10 %)"])
    rows.append(["evaluation, 10,000 images", milliseconds(parts["evaluation, 10,000 images"]), ""])
    rows.append([f"an epoch of {STEPS_AN_EPOCH} steps", f"{STEPS_AN_EPOCH * step:.4g} s", ""])
    if args.md in GFLOP_AN_IMAGE:
        achieved = GFLOP_AN_IMAGE[args.md] * len(batch.images) / step / 1e3
        card = f" (an H200: {CARD_TFLOPS})" if device.type == "cuda" else ""
        rows.append(["achieved", f"{achieved:.3g} TFLOP/s{card}", ""])
    if not args.skip_plain:
        rest = plain_rest(images, device, model.embedding_dim, batch)
        parts["plain: data and criterion"] = rest
        rows.append(
            ["plain pipeline's data and criterion", milliseconds(rest), f"step {(bare + rest.median) / step:.2f}x as long"]
        )
    head = [f"{args.md}, 128 x 3 + 256 images", "ms (lowest to highest)", "share of the step"]
    publish(f"train-{args.md}", device, head, rows, seconds=parts, network=args.md)


def plain_rest(images, device, dim, batch):
    """The plain pipeline's data and criterion for one step; its forward and backward is the same network's."""
    workers = torch.get_num_threads()
    pictures = as_pil(images[: max(VIEWS.values())])
    criterion, embeddings = PlainISAC([100] * 10, dim), torch.randn(2 * len(batch.labels), dim)
    labels = batch.labels.cpu().repeat(2)
    with ProcessPoolExecutor(workers) as pool:

        def rest():
            for name, size in VIEWS.items():
                parts = [pictures[:size][i::workers] for i in range(workers)]
                list(pool.map(plain_chunk, [name] * workers, parts, range(workers)))
            e = embeddings.clone().requires_grad_()
            criterion(e, labels).backward()

        return timed(rest, 3)


if __name__ == "__main__":
    main()
