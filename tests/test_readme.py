"""README's recipe for other tools; that of the detector is in test_detector.py."""

import re
from pathlib import Path

import numpy as np
import pytest
import torch

from utils.metrics import ood_metrics

README = Path(__file__).resolve().parent.parent / "README.md"


def test_pytorch_ood_reads_what_save_features_wrote(tmp_path, monkeypatch, capsys):
    """The energy's AUROC is ours; test_results.py tells what the files hold."""
    features = tmp_path / "runs" / "demo" / "patt" / "features"
    features.mkdir(parents=True)
    torch.manual_seed(0)
    logits = {"test": torch.randn(60, 8) + 0.5, "digits89": torch.randn(40, 8)}
    for name, values in logits.items():
        np.savez(features / f"{name}.npz", logits=values.numpy())
    _, snippet = re.findall(r"(?s)```python\n(.*?)```", README.read_text())
    monkeypatch.chdir(tmp_path)
    exec(snippet, {})
    found = float(re.search(r"'AUROC': ([0-9.]+)", capsys.readouterr().out)[1])
    energy = [-values.logsumexp(dim=1).numpy() for values in logits.values()]
    assert found == pytest.approx(ood_metrics(*energy)["auroc"], abs=1e-5)
