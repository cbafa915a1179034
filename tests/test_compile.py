"""--compile: the network and the criterion are one graph each, and compute what they compute without it."""

import json

import pytest
import torch

import train
from models.resnet import SmallImageResNet
from utils.losses import PATTLoss

COUNTS = [9, 5, 3, 2]
BATCH, OUTLIERS = 4, 6


@pytest.fixture(autouse=True)
def fresh_compiler():
    torch.compiler.reset()
    yield
    torch.compiler.reset()


@pytest.mark.parametrize("dim", [16, 64])
@pytest.mark.parametrize("schedule,normalize", [("epoch", True), ("running", False)])
def test_the_criterion_is_one_graph_and_its_statistics_stay_right(schedule, normalize, dim):
    criteria = []
    for _ in range(2):
        torch.manual_seed(0)
        criteria.append(
            PATTLoss(COUNTS, dim, oe_weight=0.1, tla_weight=0.5, schedule=schedule, normalize=normalize)
        )
    plain, original = criteria
    fast = torch.compile(original, fullgraph=True, backend="aot_eager")  # without a C++ compiler
    for step in range(6):
        if step % 3 == 0:
            plain.start_epoch()
            fast.start_epoch()
        g = torch.Generator().manual_seed(step)
        n = 3 * BATCH + OUTLIERS
        logits, embeddings = (torch.randn(n, width, generator=g) for width in (4, dim))
        labels = torch.randint(4, (BATCH,), generator=g)
        found = []
        for criterion in (plain, fast):
            inputs = [x.clone().requires_grad_() for x in (logits, embeddings)]
            terms = criterion(*inputs, labels)
            terms["loss"].backward()
            found.append([*(t.detach() for t in terms.values()), *(x.grad for x in inputs)])
        for a, b in zip(*found, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-8)
        for (name, a), (_, b) in zip(plain.named_buffers(), original.named_buffers(), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12, msg=name)


def test_a_compiled_run_logs_and_saves_what_a_plain_one_does(tmp_path, monkeypatch, capsys):
    modules = []

    def without_a_compiler(module, real=torch.compile):
        modules.append(type(module))
        return real(module, backend="aot_eager")

    monkeypatch.setattr(torch, "compile", without_a_compiler)
    line = "--ds digits -e 2 -b 200 --ob 64 --num_ood_samples 128 --gpu cpu".split()
    records, states = [], []
    for name, more in (("plain", []), ("compiled", ["--compile"])):
        train.main([*line, "--srp", str(tmp_path / name), *more])
        records.append(json.loads((tmp_path / name / "log.jsonl").read_text().splitlines()[0]))
        states.append(torch.load(tmp_path / name / "latest.pth"))
    assert modules == [SmallImageResNet, PATTLoss]
    for term in ("loss", "isac", "tla", "oe"):
        assert records[0][term] == pytest.approx(records[1][term], rel=1e-3)
    for part in ("model", "criterion"):
        assert states[0][part].keys() == states[1][part].keys()
