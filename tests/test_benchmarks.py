"""The benchmarks' yardsticks compute what ours computes, and their command lines hold."""

import subprocess
import sys
import time
from pathlib import Path

import mpmath
import pytest
import torch
import torch.nn.functional as F
from command_line import load_script

import train as train_script
from benchmarks import correctness, gpu, reproduce, runs
from benchmarks.speed import common, memory, precision, train
from benchmarks.speed.criterion import batch, ours, peak_memory, plain
from benchmarks.speed.plain import MillerLogIv, PlainISAC
from utils import losses
from utils.checkpoint import save_checkpoint
from utils.errors import InputError
from utils.losses import PATTLoss


def test_millers_recurrence_is_right_where_it_is_used():
    x = torch.tensor([0.5, 5.0, 40.0, 200.0], dtype=torch.float64, requires_grad=True)
    value = MillerLogIv.apply(255, x)
    (gradient,) = torch.autograd.grad(value.sum(), x)
    with mpmath.workdps(30):
        for i, v in enumerate(x.tolist()):
            assert value[i].item() == pytest.approx(float(mpmath.log(mpmath.besseli(255, v))), abs=1e-8)
            slope = mpmath.besseli(256, v) / mpmath.besseli(255, v) + 255 / mpmath.mpf(v)
            assert gradient[i].item() == pytest.approx(float(slope), rel=1e-8)


@pytest.mark.parametrize("size", [(16, 5, 64), (8, 30, 128)])
def test_the_plain_criterion_and_ours_agree(size):
    (a, grad_a), (b, grad_b) = ours(*size, "cpu")(), plain(*size, "cpu")()
    assert float(a) == pytest.approx(float(b), rel=1e-5)
    torch.testing.assert_close(grad_a, grad_b, rtol=1e-3, atol=1e-6)


def test_the_plain_running_average_is_ours_over_several_batches():
    classes, dim = 4, 32
    mine = PATTLoss([4, 3, 2, 1], dim, oe_weight=0, tla_weight=0, schedule="running", tla=False, oe=False)
    theirs = PlainISAC([4, 3, 2, 1], dim)
    for seed in range(3):
        embeddings, labels, *_ = batch(24, classes, dim, "cpu")
        embeddings = embeddings.roll(seed, 0) + seed
        mine.contrast(embeddings, labels)
        theirs(embeddings, labels)
    collected = mine.statistics.sums / mine.statistics.counts[:, None]
    torch.testing.assert_close(collected, theirs.mean, rtol=1e-6, atol=1e-7)
    torch.testing.assert_close(
        F.normalize(theirs.mean, dim=1), mine.statistics.mean_direction, rtol=1e-6, atol=1e-7
    )


def test_peak_memory_grows_with_the_number_of_classes():
    small, large = (peak_memory(classes, 64, 256, torch.device("cpu")) for classes in (20, 4000))
    score = 8 * 64 * 4000 / 2**20  # one float64 N x C
    assert small < score < large < 40 * score  # an N x C x D one would be 256


def test_the_training_benchmark_measures_every_part(tmp_path, monkeypatch):
    monkeypatch.setattr(common, "RESULTS", tmp_path)
    train.main(["--md", "ResNet20", "--batch_size", "4", "--test_images", "8", "--repeats", "1"])
    record = common.json.loads((tmp_path / "train-ResNet20-cpu.json").read_text())
    seconds = {name: timing[0] for name, timing in record["seconds"].items()}
    assert min(seconds.values()) > 0
    assert list(seconds) == [
        "bare forward + backward",
        "data",
        "criterion",
        "optimiser, guard, meter",
        "whole step",
        "plain pipeline's step",
    ]


def test_the_training_benchmark_trains_as_train_py_does(monkeypatch):
    """Its whole step is train.py's function, over as many batches as are timed."""
    done = []
    monkeypatch.setattr(train, "train_one_epoch", lambda *args: done.append([step for step, _ in args[5]]))
    settings = train.parse_args(["--ds", "cifar10", "--md", "ResNet20", "-b", "4", "--ob", "8"])
    train.our_parts(settings, train.random_data(), torch.device("cpu"), False)["whole step"](3)
    assert done == [[0, 1, 2]]


def test_memory_is_read_as_the_log_grows(tmp_path):
    read = memory.memory_by_epoch(3, tmp_path / "run")
    trained = [read[epoch] for epoch in read if epoch]
    assert trained and set(read) <= {0, 1, 2, 3} and all(100 < megabytes < 10_000 for megabytes in trained)


def test_a_results_file_holds_the_table_and_where_it_was_made(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(common, "RESULTS", tmp_path / "results")
    common.publish(
        __spec__.name,
        "claim",
        torch.device("cpu"),
        ["what", "ms"],
        [["a", "1"]],
        numbers=common.timed(lambda: None, 3),
    )
    record = common.json.loads((tmp_path / "results" / "claim-cpu.json").read_text())
    assert record["table"] == {"head": ["what", "ms"], "rows": [["a", "1"]]} and len(record["numbers"]) == 3
    assert record["command"].startswith(f"python -m {__name__}")
    assert {"torch", "device", "cpu_cores", "commit", "date"} <= record["environment"].keys()


def test_timing_gives_median_and_spread(monkeypatch):
    ticks = iter([0.0, 3.0, 10.0, 11.0, 20.0, 22.0])
    monkeypatch.setattr(common.time, "perf_counter", lambda: next(ticks))
    assert common.timed(lambda: None, 3, warmup=0) == (2.0, 1.0, 3.0)


def test_the_gpu_of_device_is_the_one_that_is_measured(monkeypatch, capsys):
    current = []
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", current.append)
    assert train.benchmark_args(["--device", "cuda:1"]).device == torch.device("cuda", 1)
    assert train.benchmark_args(["--device", "cuda"]).device == torch.device("cuda")
    assert train.benchmark_args([]).device == torch.device("cpu")
    assert current == [1, 0]
    with pytest.raises(SystemExit):
        train.benchmark_args(["--device", "cuda:2"])
    assert "no device cuda:2; visible CUDA devices: 2" in capsys.readouterr().err


def test_the_gpu_plan_names_modules_that_exist_and_valid_flags(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "set_device", lambda index: None)
    parts = gpu.plan(tmp_path, tmp_path / "out", ["tin"])
    names = ["correctness", "train", "train", "reproduce", "imagenet_step", "criterion"]
    assert [line[1].rpartition(".")[2] for line, _ in parts] == names
    assert all(gpu.LEAST_SECONDS < seconds < gpu.LIMIT_SECONDS for _, seconds in parts)
    lines = [line for line, _ in parts]
    for line in lines:
        assert (runs.ROOT / f"{line[1].replace('.', '/')}.py").is_file()
        assert not line[1].endswith(".train") or train.benchmark_args(line[2:]).device.type == "cuda"
    (line,) = (line for line in lines if line[1].endswith(".reproduce"))
    args = reproduce.parse_args(line[2:])
    assert (args.table, args.rows, args.seeds, args.dout, args.epochs) == (
        "cifar10",
        ["patt"],
        [0],
        ["tin"],
        None,
    )


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


def test_a_device_that_computes_something_else_is_reported(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(common, "RESULTS", tmp_path)
    correctness.main(["--device", "cpu"])
    found = common.json.loads((tmp_path / "correctness-cpu.json").read_text())["found"]
    assert set(found.values()) == {0.0} and found.keys() == correctness.BOUNDS.keys() - {"DataParallel"}
    normalise, calls = losses.on_sphere, []

    def wrong_at_first(x):
        calls.append(x)
        return normalise(x) * (0.9 if len(calls) == 1 else 1)

    monkeypatch.setattr(losses, "on_sphere", wrong_at_first)
    with pytest.raises(InputError, match="do not agree in: losses, gradients, class statistics"):
        correctness.main(["--device", "cpu"])


def test_what_runs_out_of_time_ends_with_the_processes_it_started(tmp_path):
    child = f"import os, time; open(r'{tmp_path / 'pid'}', 'w').write(str(os.getpid())); time.sleep(60)"
    parent = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {child!r}])"
    process = subprocess.Popen([sys.executable, "-c", parent], start_new_session=True)
    while not (tmp_path / "pid").exists() or not (tmp_path / "pid").read_text():
        assert process.poll() is None
        time.sleep(0.01)
    gpu.end_group(process)
    stat = Path("/proc") / (tmp_path / "pid").read_text() / "stat"
    assert not stat.exists() or stat.read_text().rpartition(")")[2].split()[0] == "Z"  # ended, unreaped
    assert gpu.run_within(["-c", "import time; time.sleep(600)"], 0.1) == "out of time"
    assert gpu.run_within(["-c", "raise SystemExit(3)"], 60) == "status 3"
    assert gpu.run_within(["-c", "pass"], 60) is None


def test_without_cuda_the_gpu_benchmarks_say_so(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(InputError, match="CUDA"):
        gpu.main(["--drp", "anywhere"])


def test_the_precisions_are_compared_seed_by_seed():
    plain = [{"AUROC": 0.80}, {"AUROC": 0.82}]
    rows = precision.compare(
        {"fp32": plain, "near": [{"AUROC": 0.81}, {"AUROC": 0.83}], "far": [{"AUROC": 0.7}] * 2}
    )
    assert rows == [
        ["AUROC", "fp32", "81.00 ± 1.41", "", ""],
        ["AUROC", "near", "82.00 ± 1.41", "+1.00", "yes (2.00)"],
        ["AUROC", "far", "70.00 ± 0.00", "-11.00", "no (2.00)"],
    ]


def test_the_precision_runs_are_valid_command_lines_and_reproduces_own(tmp_path):
    args = precision.benchmark_args(["--drp", str(tmp_path), "--srp", str(tmp_path), "--epochs", "2"])
    for way in precision.TRAINED_IN:
        (training, done), *evaluations = precision.commands(way, 1, args)
        mine = train_script.parse_args(training[1:])
        assert (mine.epochs, mine.model, mine.seed, mine.compile) == (
            2,
            "ResNet20",
            1,
            way == "bf16 compiled",
        )
        mine.srp.mkdir(parents=True)
        save_checkpoint({"args": {"ds": mine.ds}}, mine.srp)  # test.py looks in it for the data
        tests = [load_script("test").parse_args(line[1:]) for line, _ in evaluations]
        assert [t.precision for t in tests] == (["fp32", "bf16"] if way == "fp32" else ["bf16"])
        assert mine.srp == done and {t.ckpt_path for t in tests} == {mine.srp}
    plan = ["cifar10", "--rows", "patt", "--md", "ResNet20", "--epochs", "2", "--precision", "bf16"]
    run = reproduce.Run(
        "cifar10_ResNet20_e2_bf16", "patt", 1, tmp_path / "cifar10_ResNet20_e2_bf16" / "patt" / "seed1"
    )
    theirs = reproduce.commands(run, reproduce.parse_args([*plan, "--drp", str(tmp_path)]), "cpu")[0]
    assert train_script.parse_args(theirs[1:]) == train_script.parse_args(
        precision.commands("bf16", 1, args)[0][0][1:]
    )
