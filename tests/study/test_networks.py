"""Networks of the papers, the small one and the user's own."""

import sys

import pytest
import torch
from torch import nn

from hesspec.study import NETWORKS, build_network, densenet40, resnet18, small_cnn, vgg11_bn


def parameters(network):
    return sum(parameter.numel() for parameter in network.parameters())


@pytest.fixture
def own_module(tmp_path, monkeypatch):
    """Give a function that writes `hs_nets.py` into a fresh current directory."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield (tmp_path / "hs_nets.py").write_text
    sys.modules.pop("hs_nets", None)


def test_small_cnn_is_small_for_the_digits():
    assert parameters(small_cnn(1, 10, 8)) == 39_670


def test_vgg11_bn_is_the_paper_s():
    with torch.device("meta"):
        network = vgg11_bn(1, 10)
    assert parameters(network) == 28_156_554
    assert not [module for module in network.modules() if isinstance(module, nn.Dropout)]


def test_resnet18_is_torchvision_s_with_a_3x3_stem():
    torchvision = pytest.importorskip("torchvision")
    with torch.device("meta"):
        ours = resnet18(3, 10)
        theirs = torchvision.models.resnet18(num_classes=10)
    theirs.conv1.weight = nn.Parameter(theirs.conv1.weight[:, :, :3, :3])
    assert parameters(ours) == 11_173_962
    assert [(name, value.shape) for name, value in ours.state_dict().items()] == [
        (name, value.shape) for name, value in theirs.state_dict().items()
    ]


def test_resnet18_computes_what_torchvision_s_blocks_compute():
    torchvision = pytest.importorskip("torchvision")
    torch.manual_seed(0)
    ours = resnet18(3, 10).eval()
    theirs = torchvision.models.resnet18(num_classes=10).eval()
    theirs.conv1 = nn.Conv2d(3, 64, 3, padding=1, bias=False)
    theirs.maxpool = nn.Identity()
    theirs.load_state_dict(ours.state_dict())
    inputs = torch.randn(2, 3, 16, 16)
    torch.testing.assert_close(ours(inputs), theirs(inputs))


def test_densenet40_has_39_convolutions_and_one_linear_layer():
    network = densenet40(1, 10)
    convolutions = [module for module in network.modules() if isinstance(module, nn.Conv2d)]
    assert len(convolutions) + 1 == 40
    assert parameters(network) == 1_058_866


@pytest.mark.parametrize("name", sorted(NETWORKS))
def test_outputs_are_one_number_for_each_class(name):
    torch.manual_seed(0)
    network = build_network(name, channels=3, classes=7, size=32).eval()
    outputs = network(torch.randn(2, 3, 32, 32))
    assert outputs.shape == (2, 7)
    assert torch.isfinite(outputs).all()


@pytest.mark.parametrize("name", ["small_cnn", "resnet18", "densenet40"])
def test_a_hessian_vector_product_goes_through(name):
    torch.manual_seed(0)
    network = build_network(name, channels=1, classes=3, size=8).eval()
    weights = list(network.parameters())
    outputs = network(torch.randn(2, 1, 8, 8))
    loss = nn.functional.cross_entropy(outputs, torch.tensor([0, 2]))
    gradients = torch.autograd.grad(loss, weights, create_graph=True)
    vectors = [torch.randn_like(weight) for weight in weights]
    product = torch.autograd.grad(gradients, weights, vectors, materialize_grads=True)
    assert all(torch.isfinite(value).all() for value in product)
    assert any(value.abs().max() > 0 for value in product)


def test_the_seed_of_torch_fixes_the_weights():
    def build(seed):
        torch.manual_seed(seed)
        return build_network("small_cnn", channels=1, classes=10, size=8)[0].weight

    assert torch.equal(build(1), build(1))
    assert not torch.equal(build(1), build(2))


@pytest.mark.parametrize(("name", "size"), [("vgg11_bn", 8), ("small_cnn", 3)])
def test_images_that_are_too_small_are_refused(name, size):
    with pytest.raises(ValueError, match=f"{name} halves .* not {size}x{size}"):
        build_network(name, channels=1, classes=10, size=size)


def test_an_unknown_name_brings_the_nearest():
    with pytest.raises(ValueError, match="no network 'resnet19'; did you mean 'resnet18'"):
        build_network("resnet19", channels=1, classes=10, size=8)


def test_the_user_s_callable_gets_the_keywords_that_it_names(own_module):
    own_module(
        "from torch import nn\n"
        "def linear(classes, size, bias=False):\n"
        "    return nn.Sequential(nn.Flatten(), nn.Linear(size * size, classes, bias))\n"
    )
    network = build_network("hs_nets:linear", channels=1, classes=3, size=4)
    assert [tuple(value.shape) for value in network.parameters()] == [(3, 16)]


def test_the_user_s_callable_gets_all_keywords_through_kwargs(own_module):
    own_module(
        "from torch import nn\n"
        "def linear(**given):\n"
        "    assert given == {'channels': 1, 'classes': 3, 'size': 4}\n"
        "    return nn.Linear(2, 3)\n"
    )
    assert isinstance(build_network("hs_nets:linear", channels=1, classes=3, size=4), nn.Linear)


def test_a_callable_that_needs_other_arguments_is_refused(own_module):
    own_module("def lenet(width):\n    pass\n")
    with pytest.raises(ValueError, match="missing a required argument: 'width'"):
        build_network("hs_nets:lenet", channels=1, classes=3, size=4)


def test_a_callable_that_returns_no_network_is_refused(own_module):
    own_module("def lenet():\n    return 3\n")
    with pytest.raises(ValueError, match=r"must return a torch\.nn\.Module, .* type 'int'"):
        build_network("hs_nets:lenet", channels=1, classes=3, size=4)
