"""The plain pipeline, the benchmarks' baseline: views of one PIL image at a time, and ISAC transcribed.

The transcription follows the published recipe to the letter: an N x C x D broadcast for the concentrations,
and log I by Miller's downward recurrence over orders from 2 nu, a Python loop in float64. It is only for
measuring and checking.
"""

import torch
import torch.nn.functional as F
from PIL import Image
from torch import nn
from torch.utils.data import Dataset
from torchvision import transforms

from datasets.normalization import CIFAR_NORMALIZATION


class Cutout:
    """Zeroes a square of a normalised image (3, H, W) around a random centre."""

    def __init__(self, length):
        self.length = length

    def __call__(self, image):
        height, width = image.shape[1:]
        row, column = (int(torch.randint(side, ())) for side in (height, width))
        top, left = max(0, row - self.length // 2), max(0, column - self.length // 2)
        image[:, top : row + self.length // 2, left : column + self.length // 2] = 0
        return image


def plain_views(size=32):
    """Returns (strong, contrastive, outlier): transforms of one PIL image to a normalised tensor."""
    jitter = transforms.RandomApply([transforms.ColorJitter(0.4, 0.4, 0.4, 0.1)], p=0.8)
    end = [transforms.ToTensor(), transforms.Normalize(*CIFAR_NORMALIZATION)]
    crop, flip, grey = (
        transforms.RandomCrop(size, padding=4),
        transforms.RandomHorizontalFlip(),
        transforms.RandomGrayscale(0.2),
    )
    policy = transforms.AutoAugment(transforms.AutoAugmentPolicy.CIFAR10)
    return (
        transforms.Compose([crop, flip, policy, *end, Cutout(size // 2)]),
        transforms.Compose([transforms.RandomResizedCrop(size), flip, jitter, grey, *end]),
        transforms.Compose([crop, flip, jitter, grey, *end]),
    )


def as_pil(images):
    """Converts uint8 (N, 3, H, W) to a list of PIL images."""
    return [Image.fromarray(image.permute(1, 2, 0).numpy()) for image in images]


class PlainTrainingSet(Dataset):
    """(view 1, view 2, view 3, label), one PIL image at a time."""

    def __init__(self, images, labels):
        self.images, self.labels = as_pil(images), labels
        self.strong, self.contrastive, _ = plain_views()

    def __len__(self):
        return len(self.images)

    def __getitem__(self, i):
        image = self.images[i]
        return self.strong(image), self.contrastive(image), self.contrastive(image), self.labels[i]


class PlainOutliers(Dataset):
    """The outlier view, one PIL image at a time."""

    def __init__(self, images):
        self.images, self.view = as_pil(images), plain_views()[2]

    def __len__(self):
        return len(self.images)

    def __getitem__(self, i):
        return self.view(self.images[i])


def miller_log_iv(order, x):
    """Returns log I_order(x) for an integer order: downward recurrence from 2 order, normalised by I_0."""
    above, here = torch.zeros_like(x), torch.ones_like(x)
    log_scale, found = torch.zeros_like(x), None
    for v in range(2 * order, 0, -1):
        if v == order:
            found = log_scale.clone()
        above, here = here, above + 2 * v / x * here
        log_scale = log_scale + torch.log(here)
        above, here = above / here, torch.ones_like(x)
    return found - log_scale + torch.log(torch.special.i0e(x)) + x


class MillerLogIv(torch.autograd.Function):
    """:func:`miller_log_iv` with the derivative I_{order+1} / I_order + order / x, from a second
    recurrence."""

    @staticmethod
    def forward(ctx, order, x):
        value = miller_log_iv(order, x)
        ctx.save_for_backward(torch.exp(miller_log_iv(order + 1, x) - value) + order / x)
        return value

    @staticmethod
    def backward(ctx, grad):
        return None, grad * ctx.saved_tensors[0]


class PlainISAC(nn.Module):
    """ISAC with one running average per class, like :class:`utils.losses.PATTLoss` under "running"."""

    def __init__(self, class_counts, dim, temperature=0.1):
        super().__init__()
        counts = torch.as_tensor(class_counts, dtype=torch.float64)
        self.register_buffer("log_prior", torch.log(counts / counts.sum()))
        self.register_buffer("mean", torch.zeros(len(counts), dim, dtype=torch.float64))
        self.register_buffer("seen", torch.zeros(len(counts), dtype=torch.float64))
        self.temperature = temperature

    def forward(self, embeddings, labels):
        embeddings = F.normalize(embeddings.double(), dim=1)
        self.update(embeddings.detach(), labels)
        resultant = self.mean.norm(dim=1)
        dim = embeddings.shape[1]
        kappa = (dim * resultant / (1 - resultant**2)).clamp(1e-3, 1e5)
        direction = self.mean / resultant[:, None]
        shifted = kappa[:, None] * direction + embeddings[:, None, :] / self.temperature  # N x C x D
        k = shifted.norm(dim=2)
        order = dim // 2 - 1

        def minus_log_normalizer(concentration):
            return MillerLogIv.apply(order, concentration) - order * torch.log(concentration)

        scores = minus_log_normalizer(k) - minus_log_normalizer(kappa)
        return F.cross_entropy(scores + self.log_prior, labels)

    def update(self, embeddings, labels):
        one_hot = F.one_hot(labels, len(self.mean)).double()
        of_class = embeddings[:, None, :] * one_hot[:, :, None]  # N x C x D
        count = one_hot.sum(dim=0)
        share = (count / (self.seen + count).clamp(min=1))[:, None]
        self.mean = self.mean * (1 - share) + of_class.sum(dim=0) / count.clamp(min=1)[:, None] * share
        self.seen += count
