"""Networks of the papers, the small one, those of libraries and the user's own."""

import sys

import pytest
import torch
from torch import nn

from hesspec.study import NETWORKS, build_network, densenet40, small_cnn

# Parameters of torchvision's networks for 3 channels and 1,000 classes, as its table of weights gives them:
# https://summer-heart-0930.chufeiyun1688.workers.dev:443/https/docs.pytorch.org/vision/stable/models.html
PUBLISHED = {
    "vgg11_bn": 132_868_840,
    "vgg13_bn": 133_053_736,
    "vgg16_bn": 138_365_992,
    "vgg19_bn": 143_678_248,
    "resnet18": 11_689_512,
    "resnet34": 21_797_672,
    "resnet50": 25_557_032,
}
RESNETS = [name for name in PUBLISHED if name.startswith("resnet")]
VGGS = [name for name in PUBLISHED if name.startswith("vgg")]


def parameters(network):
    return sum(parameter.numel() for parameter in network.parameters())


def shapes(network):
    return [(name, value.shape) for name, value in network.state_dict().items()]


@pytest.fixture
def own_module(tmp_path, monkeypatch):
    """Give a function that writes `hs_nets.py` into a fresh current directory."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield (tmp_path / "hs_nets.py").write_text
    sys.modules.pop("hs_nets", None)


def test_small_cnn_is_small_for_the_digits():
    assert parameters(small_cnn(1, 10, 8)) == 39_670


@pytest.mark.parametrize("channels", [1, 3])
def test_small_cnn_has_the_parameters_of_its_layers(channels):
    convolutions = 9 * (channels * 20 + 20 * 40 + 40 * 80)
    norms = 2 * (20 + 40 + 80)
    assert parameters(small_cnn(channels, 10, 32)) == convolutions + norms + (80 * 8 * 8 + 1) * 10


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("name", VGGS)
def test_vggs_are_the_published_ones_but_for_stem_and_classifier(name, channels):
    """Beside fewer channels: no 7x7 positions, batch norm in place of two biases, 10 classes."""
    with torch.device("meta"):
        network = build_network(name, channels=channels, classes=10, size=32)
    published_classifier = (512 * 7 * 7 + 1) * 4096 + (4096 + 1) * 4096 + (4096 + 1) * 1000
    classifier = (512 + 2) * 4096 + (4096 + 2) * 4096 + (4096 + 1) * 10
    assert parameters(network) == PUBLISHED[name] - 9 * 64 * (3 - channels) - published_classifier + classifier
    assert not [module for module in network.modules() if isinstance(module, nn.Dropout)]


def test_vgg11_bn_is_the_paper_s():
    with torch.device("meta"):
        assert parameters(build_network("vgg11_bn", channels=1, classes=10, size=32)) == 28_156_554


@pytest.mark.parametrize("name", VGGS)
def test_features_of_vggs_are_torchvision_s(name):
    models = pytest.importorskip("torchvision.models")
    with torch.device("meta"):
        ours = build_network(name, channels=3, classes=10, size=32)
        theirs = models.get_model(name)
    assert shapes(ours.features) == shapes(theirs.features)
    assert [type(layer) for layer in ours.features] == [type(layer) for layer in theirs.features]


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("name", RESNETS)
def test_resnets_are_the_published_ones_but_for_stem_and_classes(name, channels):
    width = 2048 if name == "resnet50" else 512
    with torch.device("meta"):
        network = build_network(name, channels=channels, classes=10, size=32)
    assert parameters(network) == PUBLISHED[name] + 64 * (9 * channels - 49 * 3) + (width + 1) * (10 - 1000)


@pytest.mark.parametrize(
    ("name", "count"), [("resnet18", 11_173_962), ("resnet34", 21_282_122), ("resnet50", 23_520_842)]
)
def test_resnets_have_the_counts_reported_for_cifar10(name, count):
    """Those of kuangliu/pytorch-cifar, as its users report them (issue 80 there for ResNet50)."""
    with torch.device("meta"):
        assert parameters(build_network(name, channels=3, classes=10, size=32)) == count


@pytest.mark.parametrize("name", RESNETS)
def test_resnets_are_torchvision_s_with_a_3x3_stem(name):
    models = pytest.importorskip("torchvision.models")
    with torch.device("meta"):
        ours = build_network(name, channels=3, classes=10, size=32)
        theirs = models.get_model(name, num_classes=10)
    theirs.conv1.weight = nn.Parameter(theirs.conv1.weight[:, :, :3, :3])
    assert shapes(ours) == shapes(theirs)


@pytest.mark.parametrize("name", ["resnet18", "resnet50"])
def test_resnets_compute_what_torchvision_s_blocks_compute(name):
    models = pytest.importorskip("torchvision.models")
    torch.manual_seed(0)
    ours = build_network(name, channels=3, classes=10, size=16).eval()
    theirs = models.get_model(name, num_classes=10).eval()
    theirs.conv1 = nn.Conv2d(3, 64, 3, padding=1, bias=False)
    theirs.maxpool = nn.Identity()
    theirs.load_state_dict(ours.state_dict())
    inputs = torch.randn(2, 3, 16, 16)
    torch.testing.assert_close(ours(inputs), theirs(inputs))


def parameters_of_densenet40(stem, channels, classes):
    """Three blocks of 12 layers of batch norm and 3x3 convolution (arXiv 1608.06993, section 3), two transitions."""
    width, total = stem, 9 * channels * stem
    for block in range(3):
        if block > 0:
            total += 2 * width + width**2
        for _ in range(12):
            total += 2 * width + 9 * width * 12
            width += 12
    return total + 2 * width + (width + 1) * classes


@pytest.mark.parametrize("channels", [1, 3])
def test_densenet40_has_the_published_parameters_but_for_its_stem(channels):
    """With a stem of 16 it is the 1.0M of arXiv 1608.06993, Table 2; implementations of that report 1,019,722."""
    assert parameters_of_densenet40(16, 3, 10) == 1_019_722
    with torch.device("meta"):
        network = densenet40(channels, 10)
    assert parameters(network) == parameters_of_densenet40(24, channels, 10)


def test_densenet40_has_39_convolutions_and_one_linear_layer():
    network = densenet40(1, 10)
    convolutions = [module for module in network.modules() if isinstance(module, nn.Conv2d)]
    assert len(convolutions) + 1 == 40
    assert parameters(network) == 1_058_866


@pytest.mark.parametrize("name", sorted(set(NETWORKS) - {"gpt_small", "gpt_tiny"}))
def test_outputs_are_one_number_for_each_class(name):
    torch.manual_seed(0)
    network = build_network(name, channels=3, classes=7, size=32).eval()
    outputs = network(torch.randn(2, 3, 32, 32))
    assert outputs.shape == (2, 7)
    assert torch.isfinite(outputs).all()


@pytest.mark.parametrize(
    ("name", "size"),
    [
        ("small_cnn", 4),
        ("vgg11_bn", 32),
        ("resnet18", 8),
        ("resnet50", 8),
        ("densenet40", 4),
        ("torchvision:shufflenet_v2_x0_5", 32),
        ("timm:resnet10t", 32),
    ],
)
def test_a_hessian_vector_product_goes_through(name, size):
    if ":" in name:
        pytest.importorskip(name.partition(":")[0])
    torch.manual_seed(0)
    network = build_network(name, channels=1, classes=3, size=size).eval()
    weights = list(network.parameters())
    outputs = network(torch.randn(2, 1, size, size))
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


@pytest.mark.parametrize(("name", "size"), [("vgg11_bn", 8), ("vgg16_bn", 31), ("small_cnn", 3)])
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


def test_with_3_channels_a_torchvision_network_is_what_torchvision_makes_of_the_seed():
    models = pytest.importorskip("torchvision.models")
    torch.manual_seed(0)
    ours, drawn_after = build_network("torchvision:shufflenet_v2_x0_5", channels=3, classes=7, size=32), torch.rand(3)
    torch.manual_seed(0)
    theirs, expected_after = models.shufflenet_v2_x0_5(num_classes=7), torch.rand(3)
    assert shapes(ours) == shapes(theirs)
    assert all(map(torch.equal, ours.state_dict().values(), theirs.state_dict().values()))
    assert torch.equal(drawn_after, expected_after)
    assert all(module.training for module in ours.modules())


def test_the_first_convolution_of_a_torchvision_network_gets_the_channels_and_its_initialisation():
    models = pytest.importorskip("torchvision.models")
    torch.manual_seed(0)
    ours = build_network("torchvision:resnet18", channels=1, classes=10, size=32)
    with torch.device("meta"):
        theirs = models.resnet18(num_classes=10)
    assert ours.conv1.in_channels == 1
    assert ours.conv1.weight.shape == (64, 1, 7, 7)
    assert shapes(ours)[1:] == shapes(theirs)[1:]
    # He's, fan-out, as that network has it; PyTorch's default would have three times this deviation.
    assert float(ours.conv1.weight.detach().std()) == pytest.approx((2 / (64 * 49)) ** 0.5, rel=0.1)
    assert ours.eval()(torch.randn(2, 1, 32, 32)).shape == (2, 10)


def test_convolutions_made_later_keep_their_channels():
    pytest.importorskip("torchvision")
    for size in (32, 8):  # the second is refused
        try:
            build_network("torchvision:squeezenet1_1", channels=1, classes=10, size=size)
        except ValueError:
            assert size == 8
        assert nn.Sequential(nn.Conv2d(3, 4, 1))[0].weight.shape == (4, 3, 1, 1)


def test_torchvision_s_vision_transformers_are_made_for_the_size():
    pytest.importorskip("torchvision")
    with torch.device("meta"):
        network = build_network("torchvision:vit_b_16", channels=1, classes=10, size=32)
    assert network.conv_proj.weight.shape == (768, 1, 16, 16)
    assert network.encoder.pos_embedding.shape == (1, 2 * 2 + 1, 768)


def test_auxiliary_classifiers_are_left_out():
    pytest.importorskip("torchvision")
    network = build_network("torchvision:googlenet", channels=1, classes=10, size=32)
    assert network(torch.randn(2, 1, 32, 32)).shape == (2, 10)  # in training mode
    assert not [name for name, _ in network.named_parameters() if name.startswith("aux")]


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(("name", "options"), [("resnet10t", {}), ("vit_tiny_patch16_224", {"img_size": 32})])
def test_a_timm_network_is_what_timm_makes_of_the_seed(name, options, channels):
    timm = pytest.importorskip("timm")
    torch.manual_seed(0)
    ours, drawn_after = build_network(f"timm:{name}", channels=channels, classes=7, size=32), torch.rand(3)
    torch.manual_seed(0)
    theirs = timm.create_model(name, pretrained=False, num_classes=7, in_chans=channels, **options)
    expected_after = torch.rand(3)
    assert shapes(ours) == shapes(theirs)
    assert all(map(torch.equal, ours.state_dict().values(), theirs.state_dict().values()))
    assert torch.equal(drawn_after, expected_after)
    assert ours.eval()(torch.randn(2, channels, 32, 32)).shape == (2, 7)


@pytest.mark.parametrize(
    ("name", "size", "reason"),
    [
        ("torchvision:squeezenet1_1", 8, "size is too small"),
        ("torchvision:vit_b_16", 30, "indivisible by patch size"),
        ("torchvision:maxvit_t", 32, "not divisible by partition size 7"),
        ("timm:inception_v3", 32, "Kernel size can't be greater than actual input size"),
    ],
)
def test_a_library_s_network_that_cannot_take_the_images_is_refused(name, size, reason):
    library, _, network = name.partition(":")
    pytest.importorskip(library)
    said = f"The {library} network '{network}' cannot be used with images of 1x{size}x{size} .*{reason}.*another size"
    with torch.device("meta"), pytest.raises(ValueError, match=said):
        build_network(name, channels=1, classes=10, size=size)


class Pair(nn.Module):
    def forward(self, inputs):
        return inputs, inputs


@pytest.mark.parametrize(("network", "found"), [(Pair(), "gave tuple"), (nn.Identity(), r"gave \(2, 3, 8, 8\)")])
def test_a_library_s_network_with_other_outputs_is_refused(monkeypatch, network, found):
    models = pytest.importorskip("torchvision.models")
    monkeypatch.setattr(models, "get_model", lambda *_, **__: network)
    with pytest.raises(ValueError, match=rf"one number for each class, .* \(2, 10\) for two images .*{found}"):
        build_network("torchvision:resnet18", channels=3, classes=10, size=8)


@pytest.mark.parametrize(("library", "extra"), [("torchvision", "vision"), ("timm", "timm")])
def test_a_missing_library_says_how_to_install_it(monkeypatch, library, extra):
    monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(ModuleNotFoundError, match=rf"'{library}:resnet18' .* pip install 'hesspec\[{extra}\]'"):
        build_network(f"{library}:resnet18", channels=3, classes=10, size=32)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("torchvision:resnet19", "no torchvision classifier 'resnet19'; did you mean 'resnet18'"),
        ("torchvision:raft_large", r"'raft_large'; torchvision\.models\.list_models\(\) has their names"),
        ("timm:resnet10", "no timm classifier 'resnet10'; did you mean 'resnet10t'"),
        ("timm:hf-hub:timm/resnet18.a1_in1k", r"'hf-hub:.*'; timm\.list_models\(\) has their names"),
        ("timm:resnet18.nonsense", r"Invalid pretrained tag"),
    ],
)
def test_an_unknown_name_of_a_library_is_refused(name, said):
    pytest.importorskip(name.partition(":")[0])
    with pytest.raises(ValueError, match=said):
        build_network(name, channels=3, classes=10, size=32)
