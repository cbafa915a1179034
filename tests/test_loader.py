import pytest
import torch

from datasets.augment.stages import Views
from datasets.images import CIFAR_NORMALIZATION, IMAGENET_NORMALIZATION, Normalization
from datasets.loader import STEPS_AT_ONCE, TrainLoader

N, M, SIZE = 23, 9, 16
IDENTITY = Normalization((0.0, 0.0, 0.0), (1.0, 1.0, 1.0))


def marked(n, first=0):
    """Images whose every pixel is their number."""
    counted = torch.arange(first, first + n, dtype=torch.uint8)
    return counted.view(-1, 1, 1, 1).expand(-1, 3, SIZE, SIZE).contiguous()


def as_it_is(images, generator):
    """A view that changes nothing and draws one number for each image."""
    torch.rand(len(images), generator=generator)
    return images.float() / 255


def noisy(images, generator):
    return torch.rand(images.shape, generator=generator) * 0.001 + images / 255


def loader(views=None, **settings):
    defaults = dict(
        batch_size=6,
        outlier_batch_size=4,
        normalization=IDENTITY,
        outlier_normalization=IDENTITY,
        contrastive=True,
        seed=7,
        device=torch.device("cpu"),
        outliers=marked(M, first=200),
    )
    settings = defaults | settings
    return TrainLoader(
        marked(N),
        torch.arange(N) % 5,
        settings.pop("outliers"),
        views or Views(as_it_is, as_it_is, as_it_is),
        **settings,
    )


def numbers(images):
    return (images[:, 0, 0, 0] * 255).round().long()


def same(a, b):
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


def test_a_batch_is_view_1_2_3_and_outliers_with_their_labels():
    batches = list(loader().epoch(0))
    assert len(batches) == len(loader()) == 3
    for batch in batches:
        assert batch.images.shape == (3 * 6 + 4, 3, SIZE, SIZE) and batch.images.dtype == torch.float32
        shown = numbers(batch.images)
        assert torch.equal(shown[:18], batch.indices.repeat(3))
        assert torch.equal(batch.labels, batch.indices % 5)
        assert (shown[18:] >= 200).all()


def test_views_2_and_3_or_the_outliers_can_be_left_out():
    assert len(next(loader(contrastive=False).epoch(0)).images) == 6 + 4
    assert len(next(loader(outliers=None).epoch(0)).images) == 18
    assert len(next(loader(contrastive=False, outliers=None).epoch(0)).images) == 6


def test_every_image_at_most_once_an_epoch_and_once_where_batches_divide_the_set():
    shown = torch.cat([b.indices for b in loader().epoch(3)])
    assert len(shown) == 18 and len(shown.unique()) == 18
    shown = torch.cat([b.indices for b in loader(batch_size=1).epoch(3)])
    assert sorted(shown.tolist()) == list(range(N))


def test_outliers_are_used_evenly_where_an_epoch_needs_more_than_there_are():
    shown = torch.cat([numbers(b.images[18:]) for b in loader().epoch(0)])  # 12 of 9
    counts = torch.bincount(shown - 200, minlength=M)
    assert counts.min() >= 1 and counts.max() <= 2


@pytest.mark.parametrize("at_once", [1, 2])
def test_an_epoch_begun_at_a_step_is_the_tail_of_the_whole(at_once, monkeypatch):
    """On CUDA several steps are made at once; a start within such a chunk makes it again."""
    monkeypatch.setitem(STEPS_AT_ONCE, "cpu", at_once)
    views = Views(noisy, noisy, noisy)
    whole = list(loader(views).epoch(2))
    assert [b.indices.tolist() for b in whole] == [b.indices.tolist() for b in loader().epoch(2)]
    for other in (loader(views).epoch(3), loader(views, seed=8).epoch(2)):
        assert not same(whole[0], next(other))
    one, two, three = whole[0].images[:18].split(6)
    assert not torch.equal(one, two) and not torch.equal(two, three)
    for start in range(4):
        tail = list(loader(views).epoch(2, start))
        assert len(tail) == 3 - start and all(same(a, b) for a, b in zip(whole[start:], tail, strict=True))


def test_the_processes_batches_make_up_the_global_batch_with_noise_of_their_own():
    whole, views = list(loader().epoch(1)), Views(noisy, noisy, noisy)
    shares = [list(loader(views, rank=r, world_size=2).epoch(1)) for r in range(2)]
    for batch, *mine in zip(whole, *shares, strict=True):
        assert all(len(b.labels) == 3 and len(b.images) == 9 + 2 for b in mine)
        assert sorted(torch.cat([b.indices for b in mine]).tolist()) == sorted(batch.indices.tolist())
        outliers = torch.cat([numbers(b.images[9:]) for b in mine])
        assert sorted(outliers.tolist()) == sorted(numbers(batch.images[18:]).tolist())
        noise = [b.images[:3] * 255 - b.indices.view(-1, 1, 1, 1) for b in mine]
        assert not torch.allclose(*noise, atol=0.01)


def test_outliers_have_their_own_normalisation():
    normalizations = CIFAR_NORMALIZATION, IMAGENET_NORMALIZATION
    data = loader(normalization=normalizations[0], outlier_normalization=normalizations[1])
    parts, plain = (next(some.epoch(0)).images.split([18, 4]) for some in (data, loader()))
    for part, before, normalization in zip(parts, plain, normalizations, strict=True):
        mean, std = (torch.tensor(v).view(3, 1, 1) for v in normalization)
        torch.testing.assert_close(part, (before - mean) / std)
