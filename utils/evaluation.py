"""From a network to rows of a results table: features once per set, then scores and metrics in many ways."""

from typing import NamedTuple

import numpy as np
import torch
import torch.distributed as dist

from utils.calibration import attention_weight
from utils.distributed import over_gpus
from utils.metrics import OOD_METRICS, accuracy_by_shot, class_accuracies, class_tally, ood_metrics
from utils.run.weights import load_weights, network_weights

# Higher = more OOD.
SCORES = {
    "energy": lambda logits: -logits.logsumexp(dim=1),
    "msp": lambda logits: -logits.softmax(dim=1).amax(dim=1),
    "maxlogit": lambda logits: -logits.amax(dim=1),
}


class Features(NamedTuple):
    """``features`` float32 (N, D) and ``labels`` int64 (N,), on the CPU."""

    features: torch.Tensor
    labels: torch.Tensor


class Classifier(NamedTuple):
    """The network's last layer: ``weight`` (C, D) and ``bias`` (C,)."""

    weight: torch.Tensor
    bias: torch.Tensor

    @classmethod
    def of(cls, model, tnorm=False):
        """Of a network of this project; ``tnorm``: unit rows and no bias (tau-normalisation, Kang et al.
        2020, tau = 1)."""
        weight, bias = model.linear.weight.detach().cpu().double(), model.linear.bias.detach().cpu().double()
        return (
            cls(weight / weight.norm(dim=1, keepdim=True), torch.zeros_like(bias))
            if tnorm
            else cls(weight, bias)
        )

    def logits(self, features, attention=None):
        """z = W (f * A) + b, float64 (N, C)."""
        features = features.double()
        return (features if attention is None else features * attention) @ self.weight.T + self.bias


def prepare_network(model, checkpoint, compute, precision):
    """Loads the checkpoint's weights, says which of its keys were left over, and returns the network on its
    device(s).

    Raises:
        InputError: see :func:`utils.run.weights.load_weights`.
    """
    extra = load_weights(model, network_weights(checkpoint))
    if extra and compute.is_main:
        names = ", ".join(repr(name[:80]) for name in extra[:9]) + (
            f" and {len(extra) - 9} more" if len(extra) > 9 else ""
        )
        print(f"the checkpoint's keys that the network does not have were left out: {names}")
    model.to(compute.device, memory_format=torch.channels_last)
    return over_gpus(model.eval(), compute, precision)


@torch.inference_mode()
def extract_features(network, batches, size, compute, mixed_precision):
    """The features of a whole set, every image once and in order.

    Args:
        batches: (normalised images, labels) of this process's share of the set, rows rank, rank + world_size,
            ...
        size: the number of images in the whole set.

    Raises:
        RuntimeError: another number of images came through.
    """
    features, labels = [], []
    for images, targets in batches:
        with mixed_precision:
            features.append(network(images).features.float().cpu())
        labels.append(targets.cpu())
    mine = (
        Features(torch.cat(features), torch.cat(labels)) if features else None
    )  # a small set may leave a process none
    if compute.world_size > 1:
        shares = [None] * compute.world_size
        dist.all_gather_object(shares, mine)
        shares = {rank: share for rank, share in enumerate(shares) if share is not None}
        whole = Features(*(torch.empty(size, *part.shape[1:], dtype=part.dtype) for part in shares[0]))
        for rank, share in shares.items():
            for target, part in zip(whole, share, strict=True):
                target[rank :: compute.world_size] = part
        mine = whole
    if len(mine.labels) != size:
        raise RuntimeError(f"{len(mine.labels)} images were evaluated of a set of {size}")
    return mine


def calibrate(classifier, training, outlier_features, class_counts):
    """The attention vector (D,) from the :class:`Features` of training images and the features of surrogate
    outliers (M, D)."""
    counts = torch.as_tensor(class_counts)
    predicted = classifier.logits(outlier_features).argmax(dim=1)
    return attention_weight(*training, outlier_features, predicted, classifier.weight, counts / counts.sum())


def evaluate(classifier, test, ood_sets, attentions, class_counts):
    """Scores and metrics with and without calibration.

    Args:
        classifier: :class:`Classifier`.
        test: the ID test set. ood_sets: dict of name to :class:`Features` whose labels >= 0 count on the ID
            side.
        attentions: dict of fc (bool) to the attention vector, None for fc False.
        class_counts: (C,) training-set sizes.

    Returns:
        (results, scores): ``results`` has the lists ``rows`` [ood, fc, score, n_id, n_ood, the five metrics],
        ``mean`` [fc, score, the five metrics], their unweighted mean over the sets, and ``accuracy`` [fc,
        all, many, medium, few, macro_f1, per_class], all fractions, None where there are no images;
        ``scores[fc][score][ood]`` is (id_scores, ood_scores).
    """
    rows, means, accuracies, scores = [], [], [], {}
    labels = test.labels.numpy()
    for fc, attention in attentions.items():
        logits = classifier.logits(test.features, attention)
        predictions = logits.argmax(dim=1).numpy()
        correct, total = class_tally(predictions, labels, len(class_counts))
        per_class = class_accuracies(correct, total)
        accuracies.append(
            {"fc": fc} | accuracy_by_shot(predictions, labels, class_counts) | {"per_class": per_class}
        )
        ood_logits = {name: classifier.logits(s.features, attention) for name, s in ood_sets.items()}
        scores[fc] = {}
        for score, function in SCORES.items():
            id_scores, of_sets, new_rows = function(logits), {}, []
            for name, ood in ood_sets.items():
                set_scores, is_ood = function(ood_logits[name]), ood.labels < 0
                of_sets[name] = (
                    torch.cat([id_scores, set_scores[~is_ood]]).numpy(),
                    set_scores[is_ood].numpy(),
                )
                sizes = {"n_id": len(of_sets[name][0]), "n_ood": len(of_sets[name][1])}
                new_rows.append({"ood": name, "fc": fc, "score": score} | sizes | ood_metrics(*of_sets[name]))
            mean = {metric: float(np.mean([row[metric] for row in new_rows])) for metric in OOD_METRICS}
            means.append({"fc": fc, "score": score} | mean)
            rows += new_rows
            scores[fc][score] = of_sets
    return {"rows": rows, "mean": means, "accuracy": accuracies}, scores
