import pytest
import torch
from torchvision.models import get_model
from torchvision.models.resnet import BasicBlock, ResNet

from models import FAMILIES, build_model
from models.resnet import IMAGENET_NETWORKS, Output
from utils.errors import InputError
from utils.weights import load_weights

EVERY = [(family, name) for family, networks in FAMILIES.items() for name in networks]


@pytest.mark.parametrize("family,name", EVERY)
def test_every_choice_constructs_and_runs(family, name):
    network = build_model(name, 7, family).eval()
    with torch.no_grad():
        output = network(torch.zeros(2, 3, 32, 32))
        features = network.forward_features(torch.zeros(2, 3, 32, 32))
    assert isinstance(output, Output) and output.logits.shape == (2, 7)
    assert output.features.shape == (2, network.embedding_dim)
    assert torch.equal(output.embedding, output.features) and torch.equal(output.features, features)
    assert torch.allclose(output.logits, torch.nn.functional.linear(features, *network.linear.parameters()))


@pytest.mark.parametrize(
    "name,width,blocks",
    [
        ("ResNet18", 512, (2, 2, 2, 2)),
        ("ResNet34", 512, (3, 4, 6, 3)),
        ("ResNet20", 64, (3, 3, 3)),
        ("ResNet32", 64, (5, 5, 5)),
    ],
)
def test_widths_and_parameter_names_are_the_published_ones(name, width, blocks):
    network = build_model(name, 10)
    named = ResNet(BasicBlock, (*blocks, 1)[:4]).state_dict()  # torchvision's always have four stages
    named = {key.replace("downsample", "shortcut").replace("fc.", "linear.") for key in named}
    assert set(network.state_dict()) == {k for k in named if len(blocks) == 4 or "layer4" not in k}
    assert network.embedding_dim == network.linear.in_features == width
    assert network.conv1.weight.shape == (64 if width == 512 else 16, 3, 3, 3)


@pytest.mark.parametrize("family, name, dim", [("cifar", "ResNet20", 128), ("imagenet", "ResNet18", 1024)])
def test_the_head_is_as_described(family, name, dim):
    network = build_model(name, 3, family, head=True).eval()
    with torch.no_grad():
        logits, features, embedding = network(torch.randn(5, 3, 32, 32))
        first, norm, _, last = network.head
        hidden = features @ first.weight.T + first.bias
        hidden = (hidden - norm.running_mean) / (norm.running_var + norm.eps).sqrt() * norm.weight + norm.bias
        torch.testing.assert_close(embedding, hidden.relu() @ last.weight.T + last.bias)
        torch.testing.assert_close(logits, network.linear(features))
    assert embedding.shape == (5, dim) and network.embedding_dim == dim
    assert hidden.shape == features.shape


@pytest.mark.parametrize("name", IMAGENET_NETWORKS)
def test_the_trunk_for_photographs_is_torchvisions(name):
    network = build_model(name, 5, family="imagenet").eval()
    reference = get_model(name.lower(), num_classes=5).eval()
    weights = {key.replace("linear.", "fc."): value for key, value in network.state_dict().items()}
    reference.load_state_dict(weights)
    images = torch.rand(2, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(network(images).logits, reference(images))


def test_convolutions_keep_pytorchs_initialisation():
    torch.manual_seed(0)
    network = build_model("ResNet18", 10)
    torch.manual_seed(0)
    first = torch.nn.Conv2d(3, 64, 3, padding=1, bias=False)
    assert torch.equal(network.conv1.weight, first.weight)


@pytest.mark.parametrize("family,name", EVERY)
@pytest.mark.parametrize("wanted", ["ResNet20", "ResNet18"])
def test_another_networks_checkpoint_is_refused_by_name(wanted, family, name):
    """A deeper network of the same widths has every key that a shallower one looks for."""
    model, weights = build_model(wanted, 4), build_model(name, 4, family).state_dict()
    if (family, name) == ("cifar", wanted):
        assert load_weights(model, weights) == []
        return
    with pytest.raises(InputError, match=f"--model {name}"):
        load_weights(model, weights)
