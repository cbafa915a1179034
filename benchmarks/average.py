"""A trial: the average of a run's weights over epochs 6 to 10, BatchNorm's statistics refreshed.

python -m benchmarks.average RUN OUT    reads RUN/epochN.pth, copies of latest.pth that were kept after each
                                        epoch, and makes OUT a run for test.py --calibration auto
"""

import shutil
import sys
from pathlib import Path

import torch

import train

EPOCHS = range(6, 11)


def main():
    run, out = map(Path, sys.argv[1:])
    states = [torch.load(run / f"epoch{epoch}.pth", weights_only=False) for epoch in EPOCHS]
    last = states[-1]
    weights = {
        name: torch.stack([state["model"][name] for state in states]).mean(0) if value.is_floating_point() else value
        for name, value in last["model"].items()
    }

    def refresh(args, compute, data, model, schedule):
        """In place of training: one epoch's batches through the averaged network, no step."""
        model.load_state_dict(weights)
        for module in model.modules():
            if isinstance(module, torch.nn.modules.batchnorm._BatchNorm):
                module.reset_running_stats()
                module.momentum = None  # a plain mean
        model.train()
        with torch.no_grad():
            for batch in data.loader.epoch(99, 0):
                with torch.autocast("cpu", torch.bfloat16):
                    model(batch.images)
        weights.update(model.state_dict())

    train.train = refresh
    shutil.copytree(run, out, ignore=shutil.ignore_patterns("*.pth", "results*", "auto", "run.lock"))
    shutil.copyfile(run / "latest.pth", out / "latest.pth")
    train.main(["--srp", str(out), "--resume", "--gpu", "cpu"])
    torch.save(last | {"model": weights}, out / "latest.pth")


if __name__ == "__main__":
    main()
