"""The demo's time and result, as `make demo` runs it after installation: python -m benchmarks.demo"""

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

from benchmarks.speed.common import publish

ROOT = Path(__file__).resolve().parent.parent


def main():
    with tempfile.TemporaryDirectory() as folder:
        run, seconds = Path(folder) / "demo", []
        lines = (
            ["train.py", "--ds", "digits", "--gpu", "cpu", "--srp", run],
            ["test.py", "--gpu", "cpu", "--ckpt_path", run],
        )
        for line in lines:
            begun = time.monotonic()
            subprocess.run([sys.executable, *map(str, line)], cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
            seconds.append(time.monotonic() - begun)
        results = json.loads((run / "results.json").read_text())
    auroc = {m["calibration"]: m["auroc"] for m in results["mean"] if m["score"] == "energy"}
    accuracy = {a["calibration"]: a for a in results["accuracy"]}
    rows = [["train.py", f"{seconds[0]:.0f} s"], ["test.py", f"{seconds[1]:.0f} s"]]
    rows.append(["both", f"{sum(seconds):.0f} s (goal 180 s)"])
    for fc, name in (("none", "without FC"), ("fc", "with FC")):
        rows.append([f"mean AUROC, {name}", f"{100 * auroc[fc]:.2f} %"])
        shots = ", ".join(f"{shots} {100 * accuracy[fc][shots]:.2f}" for shots in ("all", "many", "few"))
        rows.append([f"accuracy, {name}", f"{shots} %"])
    publish(
        "demo",
        torch.device("cpu"),
        ["the demo", ""],
        rows,
        seconds=seconds,
        auroc=auroc["none"],
        auroc_with_fc=auroc["fc"],
    )


if __name__ == "__main__":
    main()
