"""Random views: their parameters are distributed as torchvision's, and their pixels follow from their
parameters."""

import dataclasses
import itertools
from collections import Counter

import pytest
import torch
from scipy import stats
from torchvision import transforms
from torchvision.transforms.v2 import functional as tv

from datasets.augment import stages, views
from datasets.digits import digits_views

# Seeds are fixed, so a test that passes once passes always; below this a distribution counts as wrong.
ALPHA = 1e-3


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def random_images(n, size, seed=0):
    coarse = torch.rand((n, 3, size // 4, size // 4), generator=seeded(seed))
    images = torch.nn.functional.interpolate(coarse, size=(size, size), mode="bilinear")
    return images.mul(255.0).to(torch.uint8)


def as_float(images):
    return tv.to_dtype(images, torch.float32, scale=True)


def assert_same_distribution(ours, theirs):
    assert stats.ks_2samp(ours.double().numpy(), theirs.double().numpy(), method="asymp").pvalue > ALPHA


def assert_frequencies(counts, probabilities):
    """Observed ``counts`` by outcome against exact ``probabilities`` by outcome."""
    assert counts.keys() <= probabilities.keys()
    total = sum(counts.values())
    observed = [counts[key] for key in probabilities]
    assert stats.chisquare(observed, [p * total for p in probabilities.values()]).pvalue > ALPHA


def assert_share(chosen, probability):
    assert stats.binomtest(int(chosen.sum()), chosen.numel(), probability).pvalue > ALPHA


# --- crops


@pytest.mark.parametrize(
    "height, width, scale",
    [
        (32, 32, (0.08, 1.0)),
        (30, 45, (0.2, 1.0)),
        (24, 64, (0.5, 1.0)),  # few tries fit: first-valid order and the central fallback both count
        (20, 200, (4.0, 5.0)),  # none fits
        (200, 20, (4.0, 5.0)),
    ],
)
def test_crop_boxes_are_distributed_as_torchvisions(height, width, scale):
    n, image = 4000, torch.empty(3, height, width)
    torch.manual_seed(1)
    theirs = torch.tensor(
        [transforms.RandomResizedCrop.get_params(image, scale, stages.RATIO) for _ in range(n)]
    )
    ours = torch.stack(stages.draw_crop_boxes(n, height, width, scale, seeded(2)), 1)
    if scale[0] > 1:
        assert torch.equal(ours, theirs)
        return
    assert (ours >= 0).all()
    assert (ours[:, 0] + ours[:, 2] <= height).all() and (ours[:, 1] + ours[:, 3] <= width).all()
    for column in range(4):
        assert_same_distribution(ours[:, column], theirs[:, column])
    assert_same_distribution(ours[:, 2] * ours[:, 3], theirs[:, 2] * theirs[:, 3])
    assert_same_distribution(ours[:, 3] / ours[:, 2], theirs[:, 3] / theirs[:, 2])


def test_crops_are_uniform_and_mirror_half():
    assert_share(stages.RandomResizedCrop(24).draw(4000, 32, 32, seeded())[-1], 0.5)
    top, left, flip = stages.PaddedCrop(4).draw(20000, 32, 32, seeded())
    uniform = {pair: 1 / 81 for pair in itertools.product(range(9), repeat=2)}
    assert_frequencies(Counter(zip(top.tolist(), left.tolist(), strict=True)), uniform)
    assert_share(flip, 0.5)
    assert not stages.PaddedCrop(4, flip=0.0).draw(1000, 32, 32, seeded())[-1].any()


def test_cutouts_are_centred_uniformly():
    row, column = stages.Cutout(16).draw(20000, 32, 24, seeded())
    assert_frequencies(Counter(row.tolist()), dict.fromkeys(range(32), 1 / 32))
    assert_frequencies(Counter(column.tolist()), dict.fromkeys(range(24), 1 / 24))


# --- colour


def test_jitter_parameters_are_distributed_as_torchvisions():
    n, amounts = 4000, {"brightness": 0.4, "contrast": 1.5, "saturation": 0.3, "hue": 0.1}
    reference = transforms.ColorJitter(**amounts)
    torch.manual_seed(3)
    theirs = [
        reference.get_params(reference.brightness, reference.contrast, reference.saturation, reference.hue)
        for _ in range(n)
    ]
    chosen, order, factors = stages.ColorJitter(**amounts, probability=0.8).draw(n, 32, 32, seeded(4))
    for column in range(4):
        assert_same_distribution(factors[:, column], torch.tensor([params[1 + column] for params in theirs]))
    orders = dict.fromkeys(itertools.permutations(range(4)), 1 / 24)
    assert_frequencies(Counter(map(tuple, order.tolist())), orders)
    assert_share(chosen, 0.8)


@pytest.mark.parametrize("amounts", [{}, {"hue": 0.0, "probability": 1.0}, {"saturation": 0.0, "hue": 0.0}])
def test_jitter_applies_what_it_draws_in_the_drawn_order(amounts):
    images, stage = as_float(random_images(60, 16)), stages.ColorJitter(**amounts)
    drawn = stage.draw(60, 16, 16, seeded(6))
    functions = [tv.adjust_brightness, tv.adjust_contrast, tv.adjust_saturation, tv.adjust_hue]
    switched_on = [stage.brightness, stage.contrast, stage.saturation, stage.hue]
    for image, result, chosen, order, factors in zip(
        images, stage.apply(images, *drawn), *drawn, strict=True
    ):
        for k in order.tolist():
            if chosen and switched_on[k]:
                image = functions[k](image, float(factors[k]))
        torch.testing.assert_close(result, image, rtol=0, atol=1e-5)


def test_grayscale_turns_its_share_gray_and_leaves_the_rest():
    images = as_float(random_images(1000, 8))
    result = stages.RANDOM_GRAYSCALE.apply(images, *stages.RANDOM_GRAYSCALE.draw(1000, 8, 8, seeded()))
    gray = (result[:, 0] == result[:, 1]).flatten(1).all(1)
    assert_share(gray, 0.2)
    torch.testing.assert_close(result[~gray], images[~gray], rtol=0, atol=0)
    torch.testing.assert_close(result[gray], tv.rgb_to_grayscale(images[gray], 3))


def test_conversions_equal_torchvisions_and_are_inverse():
    images = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16).expand(2, 3, 16, 16)
    torch.testing.assert_close(stages.ToFloat().apply(images), as_float(images))
    assert torch.equal(stages.ToUint8().apply(stages.ToFloat().apply(images)), images)


# --- AutoAugment and RandAugment


def named(kinds, values):
    """Per sample, its steps as (operation, value) or None."""
    return [
        tuple(None if k < 0 else (views.NAMES[k], round(v, 4)) for k, v in zip(*pair, strict=True))
        for pair in zip(kinds.tolist(), values.tolist(), strict=True)
    ]


@pytest.mark.parametrize("height, width", [(32, 32), (16, 48)])
def test_autoaugment_draws_torchvisions_distribution(height, width):
    """But for the release's whole translations, one direction of rotation, and thresholds from 256."""
    reference = transforms.AutoAugment(transforms.AutoAugmentPolicy.CIFAR10)
    space = reference._augmentation_space(10, (height, width))

    def outcomes(name, probability, bin_):
        magnitudes, signed = space[name]
        magnitude = 0.0 if bin_ is None else float(magnitudes[bin_])
        magnitude = round(magnitude) if name.startswith("Translate") else magnitude
        magnitude = magnitude * 256 / 255 if name == "Solarize" else magnitude
        signed = signed and name != "Rotate"
        offset = 1.0 if name in ("Brightness", "Color", "Contrast", "Sharpness") else 0.0
        values = [offset + magnitude, offset - magnitude] if signed else [magnitude]
        yield None, 1.0 - probability
        for value in values:
            yield (name, round(value, 4)), probability / len(values)

    expected = Counter()
    for first, second in reference.policies:
        for (a, p), (b, q) in itertools.product(outcomes(*first), outcomes(*second)):
            expected[a, b] += p * q / len(reference.policies)
    expected = {key: p for key, p in expected.items() if p > 0}
    drawn = views.AutoAugment().draw(200_000, height, width, seeded(7))
    assert_frequencies(Counter(named(*drawn)), expected)


@pytest.mark.parametrize(
    "stage, operations",
    [(views.AutoAugment(), views.AUTOAUGMENT), (views.RandAugment(), views.RANDAUGMENT)],
)
def test_a_policy_applies_its_own_operations(stage, operations):
    images, values = random_images(15, 16), torch.full((15, 1), 0.2)
    result = stage.apply(images, torch.arange(15)[:, None], values)
    for i, (function, *_) in enumerate(operations.values()):
        assert torch.equal(result[i], function(images[i : i + 1], values[i])[0])


def test_randaugment_values_at_full_magnitude():
    drawn = views.RandAugment(2, 10.0, 0.0).draw(60_000, 100, 200, seeded())
    expected = {None: 0.5}
    signed = {"Rotate": 30.0, "ShearX": 0.3, "ShearY": 0.3, "TranslateX": 90.0, "TranslateY": 45.0}
    unsigned = {"Posterize": 4.0, "Solarize": 256.0, "SolarizeAdd": 110.0}
    unsigned |= dict.fromkeys(views.ENHANCEMENTS, 1.9) | dict.fromkeys(
        ["AutoContrast", "Equalize", "Invert"], 0.0
    )
    expected.update({(name, value): 1 / 30 for name, value in unsigned.items()})
    expected.update({(name, sign * value): 1 / 60 for name, value in signed.items() for sign in (1, -1)})
    steps = named(*drawn)
    for k in range(2):
        assert_frequencies(Counter(pair[k] for pair in steps), expected)


def test_randaugment_magnitudes_are_normal_and_clipped():
    kinds, values = views.RandAugment(2, 9.0, 1.0).draw(40_000, 224, 224, seeded())
    level = values[kinds == views.NAMES.index("Rotate")].abs() / 3.0
    assert level.max() == 10.0
    assert_share(level == 10.0, stats.norm.sf(1.0))
    below = level[level < 10.0].numpy()
    assert stats.kstest(below, stats.truncnorm(-9.0, 1.0, loc=9.0, scale=1.0).cdf).pvalue > ALPHA


# --- whole views

PRESETS = ((views.cifar_views(), 32), (digits_views(), 16), (views.imagenet_views(), 48))


@pytest.mark.parametrize("view, size", [(view, size) for preset, size in PRESETS for view in preset])
def test_view_contract(view, size):
    images = random_images(1, size).expand(64, -1, -1, -1).contiguous()
    before, global_state = images.clone(), torch.get_rng_state()
    result = view(images, seeded(1))
    assert result.shape == (64, 3, size, size) and result.dtype == torch.float32
    assert result.min() >= 0.0 and result.max() <= 1.0
    assert torch.equal(images, before), "the caller's images were written to"
    assert torch.equal(torch.get_rng_state(), global_state), "the global random state was used"
    assert torch.equal(view(images, seeded(1)), result), "the same seed gave another result"
    assert not torch.equal(view(images, seeded(2)), result)
    assert len(torch.unique(result.flatten(1), dim=0)) > 20, "samples share their random parameters"


def test_a_view_can_be_written_to_if_every_image_is_grey():
    """As normalisation does, in place."""
    grey = dataclasses.replace(stages.RANDOM_GRAYSCALE, probability=1.0)
    images = random_images(2, 8)
    view = stages.View((stages.ToFloat(), grey))(images, seeded())
    brightness = view[:, :1].clone()
    assert torch.equal(view.mul_(2), (2 * brightness).expand(-1, 3, -1, -1))


@pytest.mark.parametrize("name", stages.Views._fields)
def test_digits_are_never_mirrored(name):
    ramp = torch.linspace(40, 220, 16).to(torch.uint8).expand(200, 3, 16, 16)
    result = getattr(digits_views(), name)(ramp, seeded()).mean((1, 2))
    assert (result[:, 4] < result[:, 11]).all()


def test_strong_cifar_view_hides_with_black():
    result = views.cifar_views().strong(random_images(50, 32), seeded())
    assert ((result == 0).all(1).flatten(1).sum(1) >= 64).all()
