"""A network's weights in our own and third-party checkpoints: finding, identifying and loading them."""

import re
import reprlib
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models import get_model_weights

from models import FAMILIES, build_model
from utils.checkpoint import open_checkpoint
from utils.errors import InputError, first_line

CONTAINERS = ("model", "state_dict", "net", "model_state_dict")  # where third-party checkpoints keep weights
WRAPPERS = re.compile(r"^((module|_orig_mod)\.)+")  # of DataParallel, DistributedDataParallel, torch.compile
BACKBONE = re.compile(r"^(conv|bn|layer)\d|\b(shortcut|downsample)\b")
NEW = ("linear.", "fc.", "head.")  # the classifier and the projection head, which --init starts anew
SCRIPTS = {"cifar": "train.py", "imagenet": "train_imagenet.py"}  # by family of networks


def network_weights(checkpoint: Any) -> dict[str, Tensor]:
    """Returns the network's weights in our own or a third-party checkpoint, without ``WRAPPERS``; raises
    InputError if there are no tensors, bare or in one of ``CONTAINERS``, or two of one name."""
    named = [(WRAPPERS.sub("", key), value) for key, value in _named_tensors(checkpoint)]
    weights = dict(named)
    if not weights:
        keys = some(checkpoint) if isinstance(checkpoint, dict) else "none"
        raise InputError(f"the checkpoint holds no network weights; its keys: {keys}")
    if len(weights) < len(named):
        raise InputError("the checkpoint has weights of one name with and without a prefix such as module.")
    return weights


def _named_tensors(holder):
    if not isinstance(holder, dict):
        return []
    for key in CONTAINERS:
        if found := _named_tensors(holder.get(key)):
            return found
    return [
        (key, value) for key, value in holder.items() if isinstance(key, str) and isinstance(value, Tensor)
    ]


def some(names, number: int = 9) -> str:
    """Formats the first of some untrusted names."""
    names = [reprlib.repr(name) for name in names]
    return ", ".join(names[:number] + ["..."] * (len(names) > number))


def load_weights(model: nn.Module, weights: dict[str, Tensor]) -> list[str]:
    """Loads every key the network has, and returns the sorted names of the checkpoint's other keys; raises
    InputError if the weights do not fit the network or are not finite."""
    wanted = model.state_dict()
    # BatchNorm's batch counters are not weights; old checkpoints lack them.
    missing = [key for key in wanted if key not in weights and not key.endswith("num_batches_tracked")]
    surplus = sorted(weights.keys() - wanted.keys())
    deeper = [key for key in surplus if BACKBONE.search(key)]
    other = [key for key in wanted if key in weights and weights[key].shape != wanted[key].shape]
    if missing or deeper or other:
        problem = f"has no {some(missing, 3)}" if missing else f"also has {some(deeper, 3)}"
        if other and not missing and not deeper:
            there, here = tuple(weights[other[0]].shape), tuple(wanted[other[0]].shape)
            problem = f"has {other[0]} of shape {there}, the network of {here}"
        likely = network_of(weights)
        if likely is not None and likely != network_of(wanted):
            problem += f"; by its keys it is a {likely[1]} of {SCRIPTS[likely[0]]} (--model {likely[1]})"
        raise InputError(f"the checkpoint does not fit the network: it {problem}")
    for key in wanted.keys() & weights.keys():
        if not bool(torch.isfinite(weights[key]).all()):
            raise InputError(f"the checkpoint's {key} holds values that are not finite")
    model.load_state_dict(wanted | {key: weights[key] for key in wanted if key in weights})
    return surplus


def network_of(weights: dict[str, Tensor]) -> tuple[str, str] | None:
    """Returns the (family, name) in ``models.FAMILIES`` with this backbone, or None."""
    backbone = _backbone(weights)
    return next((network for network, shapes in _backbones().items() if shapes == backbone), None)


@cache
def _backbones():
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


def initialize(model: nn.Module, source: str, name: str) -> str:
    """Loads a trained backbone, but no classifier or head, into a network of this name, and says what was
    left out (``--init``; beyond the paper). ``source``: "imagenet", for torchvision's weights, or a
    checkpoint of torchvision, timm or this project."""
    from_file = source != "imagenet"
    weights = network_weights(open_checkpoint(source)) if from_file else _of_torchvision(model, name)
    backbone = {key: value for key, value in weights.items() if not key.startswith(NEW)}
    new = {key: value for key, value in model.state_dict().items() if key.startswith(NEW)}
    try:
        surplus = load_weights(model, backbone | new)
    except InputError as error:
        raise InputError(f"--init {source}: {error}") from None
    left_out = ", ".join(sorted(weights.keys() - backbone.keys()) + surplus) or "none"
    heads = ", ".join(sorted({key.partition(".")[0] for key in new}))
    return f"--init {source}: backbone loaded; left out: {left_out}; newly initialised: {heads}"


def _of_torchvision(model, name):
    """Returns torchvision's current ImageNet weights of a network, from its cache or the network."""
    if not hasattr(model, "fc"):
        raise InputError("--init imagenet is for train_imagenet.py; small images' networks start from a file")
    weights = get_model_weights(name.lower()).DEFAULT
    try:
        return weights.get_state_dict(progress=True, check_hash=True)
    except OSError as error:
        advice = f"put {weights.url} into {torch.hub.get_dir()}/checkpoints"
        raise InputError(f"--init imagenet: the download failed ({first_line(error)}); {advice}") from None
