"""The loader's two ways to a device. CUDA's way runs on the CPU here, beside streams that only note what is
asked of them, so its values can be compared with those of the CPU's way."""

import contextlib
import threading

import numpy as np
import pytest
import torch
from datasets.delivery import ROOM_PER_FILE, CudaDelivery
from image_files import photograph, truncate
from PIL import Image

from datasets import delivery, imagenet
from datasets.augment.views import imagenet_views
from datasets.decoding import JPEG_DECODERS
from datasets.imagenet import EvalImages, FileTrainLoader, ImageFiles

CPU = torch.device("cpu")
SIZE = 24


@pytest.fixture
def files(tmp_path):
    """12 photographs; a GPU does not decode 2.jpg, which is grey, and 5.jpg, a PNG."""
    for i in range(12):
        photograph(i, 40 + i % 3, 46 + i % 5).save(tmp_path / f"{i}.jpg", quality=95)
    photograph(2).convert("L").save(tmp_path / "2.jpg")
    photograph(5).save(tmp_path / "5.jpg", format="PNG")
    return ImageFiles(tmp_path, [f"{i}.jpg" for i in range(12)], torch.arange(12) % 2)


def train_loader(files, **changes):
    settings = dict(image_size=SIZE, batch_size=3, outlier_batch_size=6, contrastive=True, num_workers=0)
    return FileTrainLoader(files, files, imagenet_views(), seed=5, device=CPU, **settings | changes)


def whole_epoch(loader):
    return [batch._replace(images=batch.images.clone()) for batch in loader.epoch(1)]


class Stream:
    def __init__(self, log, name):
        self.log, self.name, self.events = log, name, 0

    def synchronize(self):
        self.log.append(f"{self.name}: synchronize, {where()}")

    def record_event(self):
        self.events += 1
        return self.events

    def wait_event(self, event):
        self.log.append(f"{self.name}: wait for step {event}, {where()}")


def where():
    main = threading.current_thread() is threading.main_thread()
    return "main thread" if main else "another thread"


@pytest.fixture
def log(monkeypatch):
    """What CUDA's way does with streams and its decoder, which decodes on the CPU here."""
    log = []
    side, main = Stream(log, "side stream"), Stream(log, "main stream")

    def decode(jpegs, device):
        log.append(f"decode {len(jpegs)}, {where()}")
        return JPEG_DECODERS["torchvision"](jpegs, device)

    monkeypatch.setattr(torch.cuda, "Stream", lambda device: side)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: main)
    monkeypatch.setattr(torch.cuda, "stream", lambda stream: contextlib.nullcontext())
    monkeypatch.setattr(torch.Tensor, "record_stream", lambda self, stream: log.append(f"kept {stream.name}"))
    monkeypatch.setattr(imagenet, "CpuDelivery", CudaDelivery)
    monkeypatch.setattr(delivery, "jpeg_decoder", lambda device: (decode, ""))
    return log


def refuse(monkeypatch, name, on_refusal=lambda: None):
    """Makes the GPU's decoder refuse a file, whatever is decoded beside it."""
    data = torch.frombuffer(bytearray(name.read_bytes()), dtype=torch.uint8)

    def decode(jpegs, device):
        if any(torch.equal(jpeg, data) for jpeg in jpegs):
            on_refusal()
            raise RuntimeError("Failed to decode batch: 5\nException raised from decode_images")
        return JPEG_DECODERS["torchvision"](jpegs, device)

    monkeypatch.setattr(delivery, "jpeg_decoder", lambda device: (decode, ""))


def assert_same(batches, others):
    assert len(batches) == len(others) > 0
    for batch, other in zip(batches, others, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(batch, other, strict=True))


@pytest.mark.parametrize("num_workers", [0, 2])
def test_both_ways_give_the_same_batches(files, num_workers, request):
    expected = whole_epoch(train_loader(files))
    request.getfixturevalue("log")
    assert_same(whole_epoch(train_loader(files, num_workers=num_workers)), expected)


def test_a_thread_decodes_the_next_step_on_a_stream_that_it_drained(files, log, monkeypatch):
    second, (decode, _) = threading.Event(), delivery.jpeg_decoder(CPU)

    def decode_and_tell(jpegs, device):
        try:
            return decode(jpegs, device)
        finally:
            if sum(line.startswith("decode") for line in log) == 2:
                second.set()

    monkeypatch.setattr(delivery, "jpeg_decoder", lambda device: (decode_and_tell, ""))
    batches = train_loader(files).epoch(0)
    next(batches)
    assert second.wait(timeout=600)  # step 2 is decoded before it is asked for
    next(batches)
    batches.close()
    decoded = [i for i, line in enumerate(log) if line.startswith("decode")]
    assert len(decoded) == 3 and all(log[i].endswith("another thread") for i in decoded)
    assert all(log[i - 1] == "side stream: synchronize, another thread" for i in decoded)
    # The main stream waits for the step's own work alone, and keeps its images and labels.
    waits = [line for line in log if line.startswith("main stream")]
    assert waits == [f"main stream: wait for step {step}, main thread" for step in (1, 2)]
    assert log.count("kept main stream") == 4


def test_a_file_that_the_gpu_refuses_is_decoded_by_the_cpu_and_told(files, log, monkeypatch):
    refuse(monkeypatch, files.root / "7.jpg")
    loader = train_loader(files)
    batches = whole_epoch(loader)
    monkeypatch.undo()
    expected = whole_epoch(train_loader(files))
    for batch, other in zip(batches, expected, strict=True):
        assert torch.equal(batch.indices, other.indices) and torch.equal(batch.labels, other.labels)
        different = (batch.images != other.images).flatten(1).any(1)
        training = torch.cat([batch.indices == 7] * 3)
        assert torch.equal(different[: len(training)], training)  # its crops are drawn anew, the rest stays
    (line,) = loader.report()
    # An epoch has each file once, and as outlier twice.
    assert line.endswith(f"; the CPU decoded 3 images instead, such as {files.root}/7.jpg")
    assert "(Failed to decode batch: 5)" in line and loader.replaced.times == {}


def test_a_file_that_neither_decodes_is_replaced_and_named(files, log, monkeypatch):
    refuse(monkeypatch, files.root / "7.jpg", on_refusal=lambda: truncate(files.root / "7.jpg"))
    loader = train_loader(files, batch_size=12, contrastive=False)
    (batch,) = loader.epoch(0)
    assert 7 not in batch.indices and (batch.indices == 9).sum() == 2  # 9 is the next of its class
    assert loader.replaced.times[files.root / "7.jpg"] > 0 and len(loader.report()) == 2


def test_a_batch_that_the_decoder_refuses_but_whose_files_it_takes_is_counted(files, log, monkeypatch):
    def one_at_a_time(jpegs, device):
        if len(jpegs) > 1:
            raise RuntimeError("out of memory")
        return JPEG_DECODERS["torchvision"](jpegs, device)

    expected = whole_epoch(train_loader(files))
    monkeypatch.setattr(delivery, "jpeg_decoder", lambda device: (one_at_a_time, ""))
    loader = train_loader(files)
    assert_same(whole_epoch(loader), expected)
    (line,) = loader.report()
    assert "failed in 4 steps (out of memory); all files could be decoded one by one" in line


def test_without_a_gpu_decoder_the_workers_decode(files, log, monkeypatch):
    expected = whole_epoch(train_loader(files))
    monkeypatch.setattr(delivery, "jpeg_decoder", lambda device: (None, "torchcodec: No module"))
    loader = train_loader(files, num_workers=1)
    assert loader.where().endswith("decoded there, as no JPEG decoder works on cpu (torchcodec: No module)")
    assert_same(whole_epoch(loader), expected)


def test_what_a_step_hands_over_is_bounded(files, log):
    """Noise hardly compresses: a file with more bytes than its room is cropped by the worker."""
    noise = np.random.default_rng(0).integers(0, 256, (600, 900, 3), dtype=np.uint8)
    for path in files.paths:
        Image.fromarray(noise).save(files.root / path, format="JPEG", quality=95)
    assert (files.root / "0.jpg").stat().st_size > ROOM_PER_FILE
    batches = whole_epoch(train_loader(files))
    assert len(batches) == 4 and not any(line.startswith("decode") for line in log)


@pytest.mark.parametrize("way", ["cpu", "cuda"])
def test_batches_take_no_room_in_shared_memory(files, way, request, monkeypatch):
    if way == "cuda":
        request.getfixturevalue("log")
    expected = whole_epoch(train_loader(files))
    settings = dict(image_size=SIZE, batch_size=5, device=CPU)
    expected_eval = list(EvalImages(files, num_workers=0, **settings))

    def full(*_, **__):
        raise RuntimeError("unable to allocate shared memory(shm): No space left on device")

    monkeypatch.setattr(torch.UntypedStorage, "_share_fd_cpu_", full)
    assert_same(whole_epoch(train_loader(files, num_workers=2)), expected)
    assert_same(list(EvalImages(files, num_workers=2, **settings)), expected_eval)
