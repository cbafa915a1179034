"""Network weights in our own and third-party checkpoints: finding, identifying and loading them."""

import re
import reprlib
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from models import FAMILIES, build_model
from utils.errors import InputError

CONTAINERS = ("model", "state_dict", "net", "model_state_dict")  # where third-party checkpoints keep weights
WRAPPERS = re.compile(r"^((module|_orig_mod)\.)+")  # of DataParallel, DistributedDataParallel, torch.compile
BACKBONE = re.compile(r"^(conv|bn|layer)\d|\b(shortcut|downsample)\b")
WHICH = {
    "cifar": "a {0} for small images (train.py, --model {0})",
    "imagenet": "a {0} for photographs (train_imagenet.py, --model {0})",
}


def network_weights(checkpoint: Any) -> dict[str, Tensor]:
    """Returns the network's weights in our own or a third-party checkpoint: bare or inside one of
    ``CONTAINERS``, with any of ``WRAPPERS`` before the names.

    Raises:
        InputError: there are no tensors, or two of the same name.
    """
    named = [(WRAPPERS.sub("", key), value) for key, value in _named_tensors(checkpoint)]
    weights = dict(named)
    if not weights:
        keys = (
            f"its keys are {some(checkpoint)}" if isinstance(checkpoint, dict) else "it is not a dictionary"
        )
        raise InputError(
            f"the checkpoint holds no network weights, neither bare nor in {', '.join(CONTAINERS)}: {keys}"
        )
    if len(weights) < len(named):
        raise InputError("the checkpoint holds weights of one name with and without a prefix such as module.")
    return weights


def _named_tensors(holder, depth=3):
    """Returns [(key, tensor)] of the first container in a dict that has tensors, else of the dict."""
    if not isinstance(holder, dict) or depth == 0:
        return []
    for key in CONTAINERS:
        if found := _named_tensors(holder.get(key), depth - 1):
            return found
    return [
        (key, value)
        for key, value in holder.items()
        if isinstance(key, str) and isinstance(value, Tensor) and not value.is_complex()
    ]


def some(names, number: int = 9) -> str:
    """Formats the first of some untrusted names."""
    names = list(names)
    rest = f" and {len(names) - number} more" if len(names) > number else ""
    return ", ".join(map(reprlib.repr, names[:number])) + rest


def load_weights(model: nn.Module, weights: dict[str, Tensor]) -> list[str]:
    """Loads every key the network has, strictly; returns the sorted names of the checkpoint's other keys.

    Raises:
        InputError: the backbone is not the network's, or a key is missing, has another shape, or holds a
            non-finite value.
    """
    wanted = model.state_dict()
    problem = _misfit(wanted, weights)
    if problem:
        raise InputError(f"the checkpoint does not fit the network: {problem}")
    for key in weights.keys() & wanted.keys():
        if not bool(torch.isfinite(weights[key]).all()):
            raise InputError(f"the checkpoint's {key} holds values that are not finite")
    model.load_state_dict(wanted | {key: weights[key] for key in wanted if key in weights})
    return sorted(set(weights) - set(wanted))


def _misfit(wanted, weights):
    """Explains why weights do not fit a network with the state ``wanted``; None if they do."""
    outputs = [state["linear.weight"].shape[:1] for state in (wanted, weights) if "linear.weight" in state]
    if len(outputs) == 2 and outputs[1] == (outputs[0][0] + 1,):
        return (
            f"it has {outputs[1][0]} outputs for {outputs[0][0]} classes; networks with an outlier class, "
            "such as COCL's, cannot be evaluated"
        )
    # BatchNorm's batch counters are not weights; old checkpoints lack them.
    missing = [k for k in wanted if k not in weights and not k.endswith("num_batches_tracked")]
    surplus = [k for k in weights if k not in wanted]
    surplus_backbone = [k for k in surplus if k in _backbone(weights)]
    likely = None if _backbone(weights) == _backbone(wanted) else network_of(weights)
    advice = "" if likely is None else f"; by its keys it is {WHICH[likely[0]].format(likely[1])}"
    if missing:
        instead = f", and has {some(surplus, 3)}" if surplus else ""
        return f"it lacks {len(missing)} keys, such as {some(missing, 3)}{instead}{advice}"
    if surplus_backbone:
        more, which = len(surplus_backbone), some(surplus_backbone, 3)
        return f"it has {more} more keys of a backbone, such as {which}{advice}"
    for key in wanted:
        if key in weights and weights[key].shape != wanted[key].shape:
            there, here = tuple(weights[key].shape), tuple(wanted[key].shape)
            return f"{key} is {there} in the checkpoint, {here} in the network{advice}"
    return None


def network_of(weights: dict[str, Tensor]) -> tuple[str, str] | None:
    """Returns the (family, name) in ``models.FAMILIES`` with this backbone, by names and shapes, or None."""
    backbone = _backbone(weights)
    return next((network for network, shapes in _backbones().items() if shapes == backbone), None)


@cache
def _backbones():
    """Returns the backbone of every network here, by (family, name)."""
    with torch.device("meta"):
        return {
            (family, name): _backbone(build_model(name, num_classes=2, family=family).state_dict())
            for family, networks in FAMILIES.items()
            for name in networks
        }


def _backbone(state):
    """Returns name -> shape of the weights before the classifier; added heads have other names."""
    return {
        key: tuple(value.shape)
        for key, value in state.items()
        if BACKBONE.search(key) and not key.endswith("num_batches_tracked")
    }
