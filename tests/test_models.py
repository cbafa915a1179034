import pytest
import torch

from models import FAMILIES, Output, build_model
from utils.errors import InputError
from utils.weights import load_weights, network_of, network_weights

SMALL = list(FAMILIES["cifar"])


@pytest.mark.parametrize("family,name", [(f, n) for f, names in FAMILIES.items() for n in names])
def test_every_choice_constructs_and_runs(family, name):
    network = build_model(name, 7, family).eval()
    with torch.no_grad():
        output = network(torch.zeros(2, 3, 32, 32))
        features = network.forward_features(torch.zeros(2, 3, 32, 32))
    assert isinstance(output, Output) and output.logits.shape == (2, 7)
    assert output.features.shape == (2, network.linear.in_features)
    assert output.embedding.shape == (2, network.embedding_dim)
    assert torch.allclose(output.features, features)
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
    norm = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
    expected = {"conv1.weight", "linear.weight", "linear.bias", *(f"bn1.{part}" for part in norm)}
    for stage, count in enumerate(blocks, start=1):
        for i in range(count):
            block = f"layer{stage}.{i}"
            expected |= {f"{block}.conv{n}.weight" for n in (1, 2)} | {
                f"{block}.bn{n}.{p}" for n in (1, 2) for p in norm
            }
            if stage > 1 and i == 0:
                expected |= {f"{block}.shortcut.0.weight", *(f"{block}.shortcut.1.{part}" for part in norm)}
    assert set(network.state_dict()) == expected
    assert network.embedding_dim == network.linear.in_features == width
    assert network.conv1.weight.shape == (64 if width == 512 else 16, 3, 3, 3)


def test_the_sizes_are_the_published_ones():
    assert sum(p.numel() for p in build_model("ResNet18", 10).parameters()) == 11_173_962
    projections = 16 * 32 + 2 * 32 + 32 * 64 + 2 * 64  # where He et al. pad the shortcut with zeros
    assert sum(p.numel() for p in build_model("ResNet20", 10).parameters()) == 269_722 + projections


@pytest.mark.parametrize("family,name", [("cifar", "ResNet20"), ("imagenet", "ResNet18")])
def test_without_a_head_the_embedding_is_the_features(family, name):
    output = build_model(name, 3, family)(torch.randn(2, 3, 32, 32))
    assert torch.equal(output.embedding, output.features)


def test_the_head_of_a_cifar_network_is_as_described():
    network = build_model("ResNet20", 3, head=True).eval()
    assert network.embedding_dim == 128
    with torch.no_grad():
        logits, features, embedding = network(torch.randn(5, 3, 32, 32))
        first, norm, _, second = network.head
        norm.running_mean.fill_(0.25)
        hidden = (features @ first.weight.T + first.bias - 0.25) / (1 + norm.eps) ** 0.5
        by_hand = hidden.clamp(min=0) @ second.weight.T + second.bias
        torch.testing.assert_close(network.head(features), by_hand)
        torch.testing.assert_close(logits, network.linear(features))
    assert embedding.shape == (5, 128) and bool((embedding < 0).any())


def test_the_head_changes_no_other_weight():
    torch.manual_seed(0)
    plain = build_model("ResNet20", 3).state_dict()
    torch.manual_seed(0)
    headed = build_model("ResNet20", 3, head=True).state_dict()
    assert all(torch.equal(value, headed[key]) for key, value in plain.items())
    assert {key.partition(".")[0] for key in headed.keys() - plain.keys()} == {"head"}


def test_convolutions_keep_pytorchs_initialisation():
    torch.manual_seed(0)
    network = build_model("ResNet18", 10)
    torch.manual_seed(0)
    first = torch.nn.Conv2d(3, 64, 3, padding=1, bias=False)
    assert torch.equal(network.conv1.weight, first.weight)
    weight = network.layer3[1].conv2.weight.detach()  # uniform over +-1 / sqrt(fan in)
    bound = (256 * 9) ** -0.5
    assert float(weight.abs().max()) <= bound and float(weight.std()) == pytest.approx(
        bound / 3**0.5, rel=0.01
    )


def test_unknown_names_are_errors():
    with pytest.raises(ValueError, match="ResNet18"):
        build_model("ResNet19", 10)
    with pytest.raises(ValueError, match="imagenet"):
        build_model("ResNet18", 10, "mnist")


@pytest.fixture
def pair():
    torch.manual_seed(1)
    source = build_model("ResNet20", 4)
    torch.manual_seed(2)
    return source, build_model("ResNet20", 4)


def same(a, b):
    return all(torch.equal(v, b.state_dict()[k]) for k, v in a.state_dict().items())


@pytest.mark.parametrize(
    "wrap",
    [
        lambda w: w,
        lambda w: {"model": w, "epoch": 3},
        lambda w: {"state_dict": w},
        lambda w: {f"module.{k}": v for k, v in w.items()},
        lambda w: {"state_dict": {f"module.{k}": v for k, v in w.items()}, "args": "anything"},
    ],
)
def test_published_forms_load(pair, wrap):
    source, target = pair
    assert not same(source, target)
    assert load_weights(target, network_weights(wrap(source.state_dict()))) == []
    assert same(source, target)


def test_extra_keys_are_listed_and_left_out(pair):
    source, target = pair
    weights = source.state_dict() | {"projection.0.weight": torch.ones(2), "finalScore": torch.ones(3)}
    assert load_weights(target, network_weights({"model": weights})) == ["finalScore", "projection.0.weight"]
    assert same(source, target)


EVERY = [(family, name) for family, networks in FAMILIES.items() for name in networks]


@pytest.mark.parametrize("family,name", EVERY)
def test_a_network_is_named_from_its_keys(family, name):
    weights = build_model(name, 7, family).state_dict()
    assert network_of(weights) == (family, name)
    bare = {k: v for k, v in weights.items() if not k.endswith("num_batches_tracked")}
    assert network_of(bare | {"projection.0.weight": torch.ones(1)}) == (family, name)
    assert network_of(weights | {"layer9.0.conv1.weight": torch.ones(1)}) is None
    assert network_of({k: v for k, v in weights.items() if k != "bn1.bias"}) is None


@pytest.mark.parametrize("family,name", EVERY)
@pytest.mark.parametrize("wanted", ["ResNet20", "ResNet18"])
def test_another_networks_checkpoint_is_refused_by_name(wanted, family, name):
    """A deeper network of the same widths has every key that a shallower one looks for."""
    model, weights = build_model(wanted, 4), build_model(name, 4, family).state_dict()
    if (family, name) == ("cifar", wanted):
        assert load_weights(model, weights) == []
        return
    script = {"cifar": "train.py", "imagenet": "train_imagenet.py"}[family]
    with pytest.raises(InputError, match=rf"by its keys it is a {name} of {script}"):
        load_weights(model, weights)


def test_a_backbone_of_no_network_here_is_refused(pair):
    source, target = pair
    for extra in ("layer1.9.conv1.weight", "bn9.weight", "layer3.1.downsample.0.weight"):
        with pytest.raises(InputError, match=f"also has '{extra}'"):
            load_weights(target, source.state_dict() | {extra: torch.ones(2)})


def test_missing_keys_are_an_error_and_nothing_is_loaded(pair):
    source, target = pair
    before = {k: v.clone() for k, v in target.state_dict().items()}
    weights = source.state_dict()
    del weights["layer2.0.shortcut.0.weight"], weights["bn1.running_mean"]
    with pytest.raises(InputError, match="has no .*bn1.running_mean"):
        load_weights(target, weights)
    assert all(torch.equal(v, target.state_dict()[k]) for k, v in before.items())


def test_batch_counters_may_be_missing(pair):
    source, target = pair
    weights = {k: v for k, v in source.state_dict().items() if not k.endswith("num_batches_tracked")}
    assert load_weights(target, weights) == []


def test_another_class_count_or_width_is_an_error(pair):
    _, target = pair
    with pytest.raises(InputError, match=r"linear.weight of shape \(6, 64\), the network of \(4, 64\)"):
        load_weights(target, build_model("ResNet20", 6).state_dict())


def test_weights_that_are_not_finite_are_an_error(pair):
    source, target = pair
    weights = source.state_dict()
    weights["layer1.0.bn1.weight"][0] = float("nan")
    with pytest.raises(InputError, match="layer1.0.bn1.weight .* not finite"):
        load_weights(target, weights)


@pytest.mark.parametrize("content", [{}, [], 3, {"model": {}}, {"state_dict": {"a": 1}}, {"epoch": 3}])
def test_a_checkpoint_without_weights_is_an_error(content):
    with pytest.raises(InputError, match="no network weights"):
        network_weights(content)
