"""Networks that start from trained weights (``--init``; beyond the paper, which trains from scratch)."""

from pathlib import Path
from urllib.error import URLError

import torch
from torch import nn
from torchvision.models import get_model_weights

from models.resnet_imagenet import TORCHVISION_NAMES
from utils.checkpoint import load_checkpoint
from utils.errors import InputError, first_line
from utils.weights import network_weights

NEW = ("linear.", "fc.", "head.")  # the classifier and the projection head, which always start anew


def initialize(model: nn.Module, source: str, name: str) -> str:
    """Loads a trained backbone into a network; classifier and projection head stay newly initialised.

    Args:
        source: "imagenet", for torchvision's weights of the network, or a checkpoint file: a ResNet of
            torchvision or timm, or a network of this project.
        name: the network's, in ``models.FAMILIES``.

    Returns:
        A sentence that says what was loaded, left out and newly initialised.

    Raises:
        InputError: the weights cannot be downloaded or read, or are not those of this backbone.
    """
    weights = (
        _of_torchvision(model, name) if source == "imagenet" else network_weights(load_checkpoint(source))
    )
    wanted = {key for key in model.state_dict() if not key.startswith(NEW)}
    missing = sorted(key for key in wanted - weights.keys() if not key.endswith("num_batches_tracked"))
    if missing:
        raise InputError(
            f"--init {source} is not this {name}: it lacks {len(missing)} weights, such as {missing[0]}"
        )
    state = model.state_dict()
    for key in sorted(wanted & weights.keys()):
        if weights[key].shape != state[key].shape:
            there, here = tuple(weights[key].shape), tuple(state[key].shape)
            raise InputError(f"--init {source}: {key} is {there} there and {here} in {name}")
        state[key] = weights[key]
    model.load_state_dict(state)
    left_out = sorted(weights.keys() - wanted)
    new = sorted({key.partition(".")[0] for key in state.keys() - wanted})
    return (
        f"--init {source}: {len(wanted & weights.keys())} weights loaded; left out: "
        f"{', '.join(left_out) or 'none'}; newly initialised: {', '.join(new)}"
    )


def _of_torchvision(model: nn.Module, name: str) -> dict[str, torch.Tensor]:
    """Returns torchvision's current ImageNet weights of a network, from its cache or the network."""
    if not hasattr(model, "fc"):
        raise InputError(
            "--init imagenet is for train_imagenet.py; networks for small images start from a file"
        )
    weights = get_model_weights(TORCHVISION_NAMES[name]).DEFAULT
    try:
        return weights.get_state_dict(progress=True, check_hash=True)
    except (URLError, OSError) as error:
        target = Path(torch.hub.get_dir()) / "checkpoints" / weights.url.rsplit("/", 1)[1]
        raise InputError(
            f"--init imagenet could not be downloaded ({first_line(error)}): fetch {weights.url} elsewhere "
            f"and put it at {target}"
        ) from None
