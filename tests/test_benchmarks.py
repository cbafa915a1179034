"""The benchmarks measure what they say, and the parts of the GPU's plan hold."""

import json
import subprocess
import time
from pathlib import Path

import mpmath
import pytest
import torch

from benchmarks import correctness, gpu, records, reproduce
from benchmarks.speed import common, train
from benchmarks.speed.criterion import log_iv, ours_and_plain
from utils import losses
from utils.errors import InputError


@pytest.mark.parametrize("order, x", [(255, 0.5), (255, 40.0), (255, 500.0), (511, 690.0)])
def test_the_series_of_the_plain_criterion_is_right_where_it_is_used(order, x):
    x = torch.tensor(x, dtype=torch.float64, requires_grad=True)
    value = log_iv(order, x)
    value.backward()
    with mpmath.workdps(40):
        exact = mpmath.besseli(order, x.item())
        slope = mpmath.besseli(order + 1, x.item()) / exact + order / mpmath.mpf(x.item())
        assert value.item() == pytest.approx(float(mpmath.log(exact)), abs=1e-8)
        assert x.grad.item() == pytest.approx(float(slope), rel=1e-8)


@pytest.mark.parametrize("size", [(16, 5, 64), (8, 30, 128)])
def test_the_plain_criterion_and_ours_agree(size):
    ours, plain = ours_and_plain(*size, torch.device("cpu"))
    (a, grad_a), (b, grad_b) = ours(), plain()
    assert float(a) == pytest.approx(float(b), rel=1e-5)
    torch.testing.assert_close(grad_a, grad_b, rtol=1e-3, atol=1e-6)


def test_the_training_benchmark_measures_every_part(tmp_path, monkeypatch):
    monkeypatch.setattr(common, "RESULTS", tmp_path)
    train.main(["--md", "ResNet20", "--batch_size", "4", "--repeats", "1"])
    record = json.loads((tmp_path / "train-ResNet20-cpu.json").read_text())
    assert record["command"].startswith("python -m benchmarks.speed.train")
    assert {"torch", "device", "commit", "date", "float32_matmul_precision"} <= record["environment"].keys()
    parts = ["bare forward + backward", "data", "criterion", "optimiser, guard, meter", "whole step"]
    assert list(record["seconds"]) == parts and [row[0] for row in record["table"]["rows"]][:5] == parts
    assert all(0 < low <= median <= high for median, low, high in record["seconds"].values())


def test_time_is_per_step_with_its_spread():
    timing = common.timed(lambda: time.sleep(0.1), 2, steps=10)
    assert 0.01 <= timing.low <= timing.median <= timing.high < 0.1
    assert (
        str(common.Timing(0.002, 0.001, 1.5)) == "2 (1 to 1,500)" and str(common.Timing(1, 1, 1)) == "1,000"
    )


def test_a_device_that_is_not_there_is_refused(capsys):
    assert train.benchmark_args([]).device == torch.device("cpu")
    for name in ("cuda:99", "gpu"):
        with pytest.raises(SystemExit):
            train.benchmark_args(["--device", name])
        assert f"no device {name}" in capsys.readouterr().err


def test_the_gpu_plan_names_modules_that_exist_and_valid_flags(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "set_device", lambda index: None)
    lines = [line for line, _ in gpu.plan(tmp_path, tmp_path / "out", ["tin"])]
    names = [line[1].rpartition(".")[2] for line in lines]
    assert names == ["correctness", "train", "train", "reproduce", "criterion"]
    for line in lines:
        assert (records.ROOT / f"{line[1].replace('.', '/')}.py").is_file()
        assert not line[1].endswith(".train") or train.benchmark_args(line[2:]).device.type == "cuda"
    args = reproduce.parse_args(lines[3][2:])
    assert (args.table, args.rows, args.seeds, args.dout) == ("cifar10", ["patt"], [0], ["tin"])
    assert args.epochs is None


def test_each_gpu_part_has_its_limit_and_those_without_time_are_left_out(monkeypatch):
    now, given = [0.0], []

    def run_within(line, seconds):
        given.append((line[0], seconds))
        now[0] += min(seconds, {"a": 30, "b": 500, "c": 70}[line[0]])
        return "out of time" if line[0] == "b" else None

    monkeypatch.setattr(gpu, "run_within", run_within)
    parts = [(["a"], 60), (["b"], 100), (["c"], 90), (["d"], 90)]
    failed = gpu.run_all(parts, 200 + gpu.GRACE_SECONDS, clock=lambda: now[0])
    assert given == [("a", 60), ("b", 100), ("c", 70)]
    assert failed == ["python b (out of time)", "python d (no time left)"]
    assert gpu.PLANNED_SECONDS <= 540


def test_what_runs_out_of_time_ends_with_the_processes_it_started(tmp_path, monkeypatch):
    monkeypatch.setattr(gpu, "GRACE_SECONDS", 0.1)
    child = f"import os, time; open(r'{tmp_path / 'pid'}', 'w').write(str(os.getpid())); time.sleep(60)"
    parent = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {child!r}])"
    waited = subprocess.Popen.wait

    def wait(process, seconds=None):  # until the child is there
        while seconds and not ((tmp_path / "pid").exists() and (tmp_path / "pid").read_text()):
            time.sleep(0.01)
        return waited(process, seconds)

    monkeypatch.setattr(subprocess.Popen, "wait", wait)
    assert gpu.run_within(["-c", parent], 0.1) == "out of time"
    stat = Path("/proc") / (tmp_path / "pid").read_text() / "stat"
    assert not stat.exists() or stat.read_text().rpartition(")")[2].split()[0] == "Z"  # ended, unreaped
    assert gpu.run_within(["-c", "raise SystemExit(3)"], 60) == "status 3"
    assert gpu.run_within(["-c", "pass"], 60) is None


def test_without_cuda_the_gpu_benchmarks_say_so(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(InputError, match="CUDA"):
        gpu.main(["--drp", "anywhere"])


def test_a_device_that_computes_something_else_is_reported(tmp_path, monkeypatch):
    monkeypatch.setattr(common, "RESULTS", tmp_path)
    correctness.main(["--device", "cpu"])
    found = json.loads((tmp_path / "correctness-cpu.json").read_text())["found"]
    assert set(found.values()) == {0.0} and found.keys() == correctness.BOUNDS.keys()
    normalise, calls = losses.on_sphere, []

    def wrong_at_first(x):
        calls.append(x)
        return normalise(x) * (0.9 if len(calls) == 1 else 1)

    monkeypatch.setattr(losses, "on_sphere", wrong_at_first)
    with pytest.raises(InputError, match="do not agree in: losses, gradients, class statistics"):
        correctness.main(["--device", "cpu"])
