"""A network that starts from a trained backbone (--init)."""

import pytest
import torch
from torchvision.models import get_model

from models import build_model
from utils.errors import InputError
from utils.weights import initialize


@pytest.fixture
def trained(tmp_path):
    """A ResNet18 as torchvision and timm write it, for 1,000 classes."""
    torch.manual_seed(1)
    reference = get_model("resnet18")
    torch.save(reference.state_dict(), tmp_path / "resnet18.pth")
    return reference, str(tmp_path / "resnet18.pth")


def test_the_backbone_is_loaded_and_the_rest_starts_anew(trained):
    reference, file = trained
    model = build_model("ResNet18", 5, "imagenet", head=True)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    said = initialize(model, file, "ResNet18")
    for key, value in model.state_dict().items():
        expected = before[key] if key.startswith(("linear.", "head.")) else reference.state_dict()[key]
        assert torch.equal(value, expected), key
    assert "fc.weight" in said and "head, linear" in said


def test_a_network_of_this_project_can_be_fine_tuned(tmp_path):
    source = build_model("ResNet20", 10)
    torch.save({"model": source.state_dict(), "epoch": 3}, tmp_path / "latest.pth")
    model = build_model("ResNet20", 4)
    initialize(model, str(tmp_path / "latest.pth"), "ResNet20")
    images = torch.rand(2, 3, 16, 16)
    assert torch.equal(model.eval()(images).features, source.eval()(images).features)


def test_what_does_not_fit_is_refused(trained, tmp_path):
    with pytest.raises(InputError, match="--init .*ResNet18"):
        initialize(build_model("ResNet34", 5, "imagenet"), trained[1], "ResNet34")
    with pytest.raises(InputError, match="conv1.weight"):
        state = build_model("ResNet18", 5, "imagenet").state_dict() | {
            "conv1.weight": torch.zeros(64, 3, 3, 3)
        }
        torch.save(state, tmp_path / "other.pth")
        initialize(build_model("ResNet18", 5, "imagenet"), str(tmp_path / "other.pth"), "ResNet18")
    with pytest.raises(InputError, match="train_imagenet.py"):
        initialize(build_model("ResNet18", 5), "imagenet", "ResNet18")


def test_without_a_network_the_message_says_what_to_fetch(monkeypatch, tmp_path):
    def offline(*_, **__):
        raise OSError("offline")

    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr("torch.hub.download_url_to_file", offline)
    with pytest.raises(InputError, match=str(tmp_path)):
        initialize(build_model("ResNet18", 5, "imagenet"), "imagenet", "ResNet18")
