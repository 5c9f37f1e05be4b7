"""Networks of the founding papers, a small one for quick runs, those of libraries, and the user's own."""

from hesspec.study.networks.build import NETWORKS, build_network
from hesspec.study.networks.densenet import densenet40
from hesspec.study.networks.libraries import timm_network, torchvision_network
from hesspec.study.networks.resnet import resnet18, resnet34, resnet50
from hesspec.study.networks.small_cnn import small_cnn
from hesspec.study.networks.tanh_mlp import tanh_mlp
from hesspec.study.networks.vgg import vgg11_bn, vgg13_bn, vgg16_bn, vgg19_bn

__all__ = [
    "NETWORKS",
    "build_network",
    "densenet40",
    "resnet18",
    "resnet34",
    "resnet50",
    "small_cnn",
    "tanh_mlp",
    "timm_network",
    "torchvision_network",
    "vgg11_bn",
    "vgg13_bn",
    "vgg16_bn",
    "vgg19_bn",
]
