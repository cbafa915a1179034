"""The CUDA paths, run without a GPU: one device per operation, no wait in a training step."""

from unittest import mock

import fake_cuda
import pytest
import torch
from command_line import load_script
from fake_cuda import CUDA, DeviceMistake
from test_imagenet_data import save_list

import train
from datasets import imagenet
from datasets.augment import ops
from datasets.augment.stages import ToFloat, View, Views
from datasets.augment.views import cifar_views, imagenet_views
from datasets.digits import digits_views
from datasets.images import CIFAR_NORMALIZATION
from datasets.loader import TrainLoader
from models.resnet import SmallImageResNet
from utils import losses
from utils.detector import Detector
from utils.distributed import Compute, autocast, parallelize
from utils.guard import StepGuard
from utils.history import EpochMeter
from utils.run import EXIT_STOPPED, Run

pytestmark = pytest.mark.skipif(
    not fake_cuda.SUPPORTED,
    reason=f"the fake CUDA device is for torch 2.14 built with CUDA, not {torch.__version__}",
)
COUNTS = [9, 5, 3, 2]
PLAIN = Views(*[View((ToFloat(),))] * 3)


def tiny_network():
    return SmallImageResNet(4, False, (1, 1), (8, 16))


def an_epoch(opt="adam", schedule="epoch", gpus=(0,), views=PLAIN):
    """Two of CIFAR's training steps on the fake device, their parts made as train.py makes them."""
    with fake_cuda.fake_cuda():
        images = torch.randint(0, 256, (16, 3, 32, 32), dtype=torch.uint8)
        settings = {"batch_size": 8, "outlier_batch_size": 8, "contrastive": True, "seed": 0, "device": CUDA}
        settings |= dict.fromkeys(("normalization", "outlier_normalization"), CIFAR_NORMALIZATION)
        loader = TrainLoader(images, torch.arange(16) % 4, images, views, **settings)
        model = tiny_network().to(CUDA, memory_format=torch.channels_last)
        weights = {"oe_weight": 0.1, "tla_weight": 0.5}
        criterion = losses.PATTLoss(COUNTS, model.embedding_dim, schedule=schedule, **weights).to(CUDA)
        optimizer = train.build_optimizer(model, train.parse_args(["--opt", opt]))
        guard, meter = StepGuard(optimizer, [model, criterion], 3), EpochMeter(4, CUDA)
        network, batches = parallelize(model, Compute(CUDA, gpus)), enumerate(loader.epoch(0))
        criterion.start_epoch()
        train.train_one_epoch(network, criterion, optimizer, guard, meter, batches, autocast(CUDA, "auto"))
        meter.losses(), meter.accuracies(COUNTS)


def test_the_harness_gives_autograds_gradients():
    torch.manual_seed(0)
    model = tiny_network().eval()
    criterion = losses.PATTLoss(COUNTS, model.embedding_dim, oe_weight=0.1, tla_weight=0.5).eval()
    images, found = torch.randn(16, 3, 16, 16), []
    for function in (torch.Tensor.backward, fake_cuda.backward):
        model.zero_grad()
        output = model(images)
        function(criterion(output.logits, output.embedding, torch.arange(4))["loss"])
        found.append([p.grad.clone() for p in model.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


def test_every_view():
    with fake_cuda.fake_cuda():
        generator = torch.Generator().manual_seed(0)
        for n in (1, 60):
            images = torch.zeros(n, 32, 32, 3, dtype=torch.uint8, device=CUDA).permute(0, 3, 1, 2)
            for view in (*cifar_views(), *digits_views(), *imagenet_views()):
                out = view(images, generator)
                assert out.is_cuda and out.dtype == torch.float32 and len(out) == n


@pytest.mark.parametrize("opt,schedule", [("adam", "epoch"), ("sgd", "running")])
def test_a_training_step(opt, schedule):
    an_epoch(opt=opt, schedule=schedule, views=cifar_views() if opt == "adam" else PLAIN)


def test_a_training_step_on_two_gpus():
    an_epoch(gpus=(0, 1))


def test_a_run_of_train_that_is_stopped_and_resumed(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(train, "start", lambda gpu: Compute(CUDA, (0,)))
    line = ["--ds", "digits", "-e", "1", "-b", "100", "--ob", "64", "--num_ood_samples", "72"]
    line += ["--val_fraction", "0.2", "--srp", str(tmp_path)]
    with fake_cuda.fake_cuda():
        stop = mock.patch.object(Run, "_vote", lambda self: (True, False))
        with stop, pytest.raises(SystemExit) as stopped:
            train.main(line)
        assert stopped.value.code == EXIT_STOPPED
        train.main([*line, "--resume"])
    assert "epoch 1/1" in capsys.readouterr().out


def test_a_run_of_test(tmp_path, monkeypatch, capsys):
    test = load_script("test")
    line = ["--ds", "digits", "-e", "1", "-b", "200", "--isac", "False", "--oe", "False", "--gpu", "cpu"]
    train.main([*line, "--srp", str(tmp_path)])
    monkeypatch.setattr("utils.evaluation_script.start", lambda gpu: Compute(CUDA, (0,)))
    with fake_cuda.fake_cuda():
        test.main(["--num_ood_samples", "64", "--ckpt_path", str(tmp_path)])
        with pytest.warns(UserWarning, match="none were held out"):
            detector = Detector.load(tmp_path, CUDA)
        for dtype in (torch.uint8, torch.float32):
            assert len(detector(torch.zeros(2, 3, 16, 16, dtype=dtype, device=CUDA))) == 2
    assert (tmp_path / "results.json").exists()


@pytest.mark.parametrize("num_workers", [0, 1])
@pytest.mark.filterwarnings("ignore:'pin_memory' argument")
def test_imagenets_batches(tmp_path, num_workers):
    photographs = save_list(tmp_path, 4)
    with fake_cuda.fake_cuda():
        loader = imagenet.FileTrainLoader(
            photographs,
            photographs,
            imagenet_views(),
            image_size=32,
            batch_size=2,
            outlier_batch_size=4,
            contrastive=True,
            num_workers=num_workers,
            seed=0,
            device=CUDA,
        )
        for batch in loader.epoch(0):
            assert batch.images.is_cuda and batch.images.shape == (10, 3, 32, 32)
            assert batch.labels.is_cuda and not batch.indices.is_cuda


# --- bugs that are planted, to see that the device reports them


def contrast_with_host_prior(self, embeddings, labels, old=losses.PATTLoss.contrast):
    with mock.patch.object(self, "log_prior", torch.zeros(4)):
        return old(self, embeddings, labels)


def host_zero(self, logits, embeddings, labels, old=losses.PATTLoss.forward):
    return old(self, logits, embeddings, labels) | {"oe": torch.zeros(())}


def add_with_item(self, terms, logits, labels, applied=True, old=EpochMeter.add):
    self.last = terms["loss"].item()
    old(self, terms, logits, labels, applied)


@pytest.mark.parametrize(
    "owner,name,bug,report",
    [
        (losses.PATTLoss, "contrast", contrast_with_host_prior, "losses.py:.*on cuda and cpu"),
        (losses.PATTLoss, "forward", host_zero, "guard.py:.*on cuda and cpu"),
        (EpochMeter, "add", add_with_item, "train.py:.*waits.*item"),
    ],
    ids=["constant", "term", "item"],
)
def test_a_planted_bug_is_reported_with_its_line(owner, name, bug, report, monkeypatch):
    monkeypatch.setattr(owner, name, bug)
    with pytest.raises(DeviceMistake, match=report):
        an_epoch()


def test_parameters_of_views_that_are_not_pinned_are_reported(monkeypatch):
    monkeypatch.setattr(ops, "to_device", lambda values, device: values.to(device, non_blocking=True))
    with pytest.raises(DeviceMistake, match="ops.py:.*a blocking copy"):
        an_epoch(views=cifar_views())
