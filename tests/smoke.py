"""Imports every module, then trains and evaluates an epoch on the digits: ``python tests/smoke.py``.

``make versions`` runs it with the oldest and the newest Python and packages that are promised.
"""

import importlib
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from command_line import load_script  # noqa: E402


def main():
    for package in ("models", "datasets", "utils", "benchmarks"):
        for file in sorted((ROOT / package).rglob("*.py")):
            parts = file.relative_to(ROOT).with_suffix("").parts
            importlib.import_module(".".join(part for part in parts if part != "__init__"))
    scripts = {name: load_script(name) for name in ("train", "train_imagenet", "test", "test_imagenet")}
    with tempfile.TemporaryDirectory() as folder:
        scripts["train"].main(["--ds", "digits", "--gpu", "cpu", "-e", "1", "--srp", folder])
        scripts["test"].main(["--gpu", "cpu", "--ckpt_path", folder])
        assert (Path(folder) / "detector.pth").is_file()
    print(f"every module and a digits run work on Python {sys.version.split()[0]}")


if __name__ == "__main__":
    main()
