import pytest
import torch
from torchvision.models import get_model

from models import build_model
from models.resnet_imagenet import IMAGENET_NETWORKS, TORCHVISION_NAMES


@pytest.mark.parametrize(("name", "width"), [("ResNet18", 512), ("ResNet34", 512), ("ResNet50", 2048)])
def test_shapes(name, width):
    network = build_model(name, 7, family="imagenet", head=True).eval()
    with torch.no_grad():
        out = network(torch.rand(2, 3, 64, 64))
    assert out.logits.shape == (2, 7)
    assert out.features.shape == (2, width)
    assert out.embedding.shape == (2, 1024) and network.embedding_dim == 1024


@pytest.mark.parametrize("name", IMAGENET_NETWORKS)
def test_trunk_is_torchvisions(name):
    network = build_model(name, 5, family="imagenet").eval()
    reference = get_model(TORCHVISION_NAMES[name], num_classes=5).eval()
    reference.load_state_dict(
        {
            key.replace("linear.", "fc."): value
            for key, value in network.state_dict().items()
            if "head." not in key
        }
    )
    images = torch.rand(2, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(network(images).logits, reference(images))


def test_classifier_reads_the_raw_features_and_the_head_is_as_published():
    network = build_model("ResNet18", 5, family="imagenet", head=True).eval()
    with torch.no_grad():
        logits, features, embedding = network(torch.rand(3, 3, 64, 64))
        torch.testing.assert_close(logits, features @ network.linear.weight.T + network.linear.bias)
        first, norm, _, last = network.head
        hidden = features @ first.weight.T + first.bias
        hidden = (hidden - norm.running_mean) / (norm.running_var + norm.eps).sqrt() * norm.weight + norm.bias
        torch.testing.assert_close(embedding, hidden.relu() @ last.weight.T + last.bias)
    assert [first.in_features, first.out_features, last.in_features, last.out_features] == [
        512,
        512,
        512,
        1024,
    ]


def test_every_parameter_is_trained_through_the_two_outputs():
    network = build_model("ResNet18", 5, family="imagenet")
    out = network(torch.rand(4, 3, 64, 64))
    (out.logits.square().mean() + out.embedding.square().mean()).backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in network.parameters())
