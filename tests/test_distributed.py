import os
import socket
import subprocess
import sys

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from command_line import ROOT

from datasets.images import CIFAR_NORMALIZATION
from datasets.loader import evaluation_batches
from models import build_model
from utils.distributed import Compute, InterleavedDataParallel, autocast, parallelize, start
from utils.errors import InputError
from utils.evaluation import extract_features
from utils.guard import StepGuard
from utils.history import EpochMeter
from utils.losses import PATTLoss

BATCH, OUTLIERS, STEPS = 8, 6, 3
COUNTS = [20, 9, 4]


def global_batch(step):
    """(images (views, B, ...), outliers, labels) of one step."""
    g = torch.Generator().manual_seed(step)
    views = torch.randn(3, BATCH, 3, 8, 8, generator=g)
    return views, torch.randn(OUTLIERS, 3, 8, 8, generator=g), torch.randint(3, (BATCH,), generator=g)


def train(compute):
    """A few guarded steps on this process's share; BatchNorm in evaluation mode, since its batch statistics
    are each process's own. Returns what one process on the global batch must reproduce."""
    torch.manual_seed(0)
    model = build_model("ResNet20", 3).eval()
    for parameter in model.parameters():  # without batch statistics activations would die out
        if parameter.dim() == 4:
            torch.nn.init.kaiming_normal_(parameter, mode="fan_out")
    criterion = PATTLoss(COUNTS, 64, oe_weight=0.1, tla_weight=0.5)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, nesterov=True, fused=True)
    network = parallelize(model, compute)
    guard, meter = StepGuard(optimizer, [model, criterion], 3), EpochMeter(3, compute.device)
    result = {}
    for epoch in range(2):
        criterion.start_epoch()
        guard.remember()
        for step in range(STEPS):
            views, outliers, labels = global_batch(STEPS * epoch + step)
            share = slice(compute.rank, None, compute.world_size)
            images = torch.cat([*views[:, share], outliers[share]])
            output = network(images)
            terms = criterion(output.logits, output.embedding, labels[share])
            optimizer.zero_grad(set_to_none=True)
            terms["loss"].backward()
            gradients = torch.cat([p.grad.flatten() for p in model.parameters()])
            applied = guard.step(terms, torch.arange(BATCH)[share], step)
            meter.add(terms, output.logits[: len(labels[share])], labels[share], applied)
            result[f"gradient {epoch} {step}"] = gradients.clone()
    result["losses"] = torch.tensor(list(meter.losses().values()))
    result["right answers"] = meter.state()["correct"]
    result |= {f"statistics {k}": v.clone() for k, v in criterion.statistics.state_dict().items()}
    result["weights"] = torch.cat([p.detach().flatten() for p in model.parameters()])

    # One process's loss is not finite: no process applies the step.
    poisoned = terms | {"oe": torch.tensor(float("nan") if compute.rank == compute.world_size - 1 else 1.0)}
    applied = guard.step(poisoned, torch.arange(BATCH), 0)
    result["bad step applied"] = applied
    result["bad in row"] = torch.tensor(guard.bad_in_row)

    class Flat(torch.nn.Module):
        def forward(self, images):
            return type(output)(images, images, images)

    images, labels = torch.arange(14.0).view(7, 2), torch.arange(7)
    mine = slice(compute.rank, None, compute.world_size)
    features = extract_features(
        Flat(), [(images[mine], labels[mine])], 7, compute, torch.autocast("cpu", enabled=False)
    )
    if compute.is_main:
        result |= {"features": features.features, "labels": features.labels}
    mine = slice(compute.rank, 1, compute.world_size)  # of a set of one image, which leaves process 1 none
    batches = evaluation_batches(
        torch.full((1, 3, 2, 2), 255, dtype=torch.uint8)[mine],
        labels[:1][mine],
        batch_size=2,
        normalization=CIFAR_NORMALIZATION,
        device=compute.device,
    )
    lone = extract_features(Flat(), batches, 1, compute, torch.autocast("cpu", enabled=False))
    if compute.is_main:
        result["features of one image"] = lone.features
    result["has features"] = torch.tensor([features is not None, lone is not None])
    return result


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def worker(rank, port, folder):
    """Process ``rank`` of two."""
    where = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": "2"}
    os.environ |= where | dict.fromkeys(("RANK", "LOCAL_RANK"), str(rank))
    torch.set_num_threads(1)
    sys.stderr = open(os.devnull, "w")
    torch.save(train(start("cpu")), f"{folder}/{rank}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """(of one process, [of two processes])."""
    folder = tmp_path_factory.mktemp("ranks")
    mp.spawn(worker, (free_port(), str(folder)), nprocs=2)
    return train(Compute(torch.device("cpu"))), [torch.load(folder / f"{r}.pt") for r in (0, 1)]


@pytest.mark.parametrize(
    "what", ["losses", "right answers", "statistics", "gradient", "weights", "features", "labels"]
)
def test_two_processes_give_what_one_gives_on_the_global_batch(results, what):
    one, two = results
    keys = [key for key in one if key.startswith(what)]
    assert keys
    for key in keys:
        for other in two[: 1 if what in ("features", "labels") else 2]:
            torch.testing.assert_close(other[key], one[key], atol=1e-5, rtol=1e-5, msg=key)


def test_features_are_gathered_in_the_main_process_alone(results):
    assert [result["has features"].tolist() for result in results[1]] == [[True, True], [False, False]]


def test_a_bad_step_of_one_process_is_skipped_and_counted_by_all(results):
    for result in (results[0], *results[1]):
        assert not result["bad step applied"] and int(result["bad in row"]) == 1


FAILS = """
import atexit, time, torch
from utils.distributed import start, sum_over_processes
from utils.errors import InputError, exit_cleanly

def main():
    compute = start("cpu")
    sum_over_processes(torch.ones(1))
    if compute.rank == 1:
        atexit.register(time.sleep, 600)  # as leaving a group of NCCL may wait
        raise InputError("a file is damaged")
    sum_over_processes(torch.ones(1))

exit_cleanly(main)
"""


def test_an_error_of_one_process_ends_all_within_seconds():
    shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "WORLD_SIZE": "2"}
    processes = []
    for rank in ("0", "1"):
        environment = os.environ | shared | {"RANK": rank, "LOCAL_RANK": rank, "OMP_NUM_THREADS": "1"}
        command = [sys.executable, "-c", FAILS]
        pipe = subprocess.PIPE
        processes.append(subprocess.Popen(command, cwd=ROOT, env=environment, stderr=pipe, text=True))
    messages = [process.communicate(timeout=300)[1] for process in processes]  # below the sleep
    assert processes[1].returncode == 2 and messages[1] == "error: a file is damaged\n"
    assert processes[0].returncode != 0


def test_data_parallel_gives_back_outputs_in_the_batchs_order(monkeypatch):
    """Without GPUs the replicas are played by the plain network on contiguous shares."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    network = build_model("ResNet20", 3).eval()
    parallel = InterleavedDataParallel(network)
    parallel.device_ids = [0, 1, 2]

    def in_shares(self, given):
        shares = given.chunk(3)
        assert torch.equal(torch.cat(shares), torch.cat([images[i::3] for i in range(3)]))
        outputs = [network(share) for share in shares]
        return type(outputs[0])(*(torch.cat(parts) for parts in zip(*outputs, strict=True)))

    monkeypatch.setattr(torch.nn.DataParallel, "forward", in_shares)
    images = torch.randn(10, 3, 8, 8)
    with torch.no_grad():
        for got, expected in zip(parallel(images), network(images), strict=True):
            assert torch.allclose(got, expected, atol=1e-5)


@pytest.mark.parametrize("gpu", ["", "-1", "0,0", "cuda"])
def test_values_that_are_no_list_of_gpus_are_refused(gpu):
    with pytest.raises(InputError, match="--gpu"):
        start(gpu)


def test_a_gpu_that_is_not_there_is_an_error(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(InputError, match="--gpu 0,5.*2 visible"):
        start("0,5")


@pytest.mark.parametrize("native", [True, False])
def test_bf16_is_chosen_only_where_the_gpu_computes_in_it(native, monkeypatch):
    monkeypatch.setattr(torch.cuda.amp.common, "amp_definitely_not_available", lambda: False)
    monkeypatch.setattr(
        torch.cuda, "is_bf16_supported", lambda including_emulation=True: including_emulation or native
    )
    cuda = torch.device("cuda")
    enabled = {precision: autocast(cuda, precision)._enabled for precision in ("auto", "bf16", "fp32")}
    assert enabled == {"auto": native, "bf16": True, "fp32": False}
    assert not autocast(torch.device("cpu"), "auto")._enabled


@pytest.mark.parametrize(
    "gpu,rank,index", [("0", 0, 0), ("0", 5, 5), ("4,5", 0, 4), ("4,5", 1, 5), ("0,1", 1, 1), ("3", 0, 3)]
)
def test_under_torchrun_each_process_takes_its_own_gpu_of_those_named(gpu, rank, index, monkeypatch):
    set_to = []
    settings = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": 8, "MASTER_ADDR": "", "MASTER_PORT": ""}
    for name, value in settings.items():
        monkeypatch.setenv(name, str(value))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 8)
    monkeypatch.setattr(torch.cuda, "set_device", set_to.append)
    monkeypatch.setattr(dist, "init_process_group", lambda backend: None)
    monkeypatch.setattr(dist, "get_rank", lambda: rank)
    monkeypatch.setattr(dist, "get_world_size", lambda: 8)
    assert start(gpu) == Compute(torch.device("cuda", index), (), rank, 8) and set_to == [index]
    with pytest.raises(InputError, match="--gpu 8"):
        start("8")
