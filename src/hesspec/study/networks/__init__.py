"""Networks of the founding papers, small ones, language models, those of libraries, and the user's own."""

from hesspec.study.networks.build import NETWORKS, build_network, network_digest
from hesspec.study.networks.densenet import densenet40
from hesspec.study.networks.gpt import GPT, gpt_small, gpt_tiny
from hesspec.study.networks.libraries import timm_network, torchvision_network
from hesspec.study.networks.resnet import resnet18, resnet34, resnet50
from hesspec.study.networks.small_cnn import small_cnn
from hesspec.study.networks.tanh_mlp import tanh_mlp
from hesspec.study.networks.transformers_models import transformers_network
from hesspec.study.networks.vgg import vgg11_bn, vgg13_bn, vgg16_bn, vgg19_bn

__all__ = [
    "GPT",
    "NETWORKS",
    "build_network",
    "densenet40",
    "gpt_small",
    "gpt_tiny",
    "network_digest",
    "resnet18",
    "resnet34",
    "resnet50",
    "small_cnn",
    "tanh_mlp",
    "timm_network",
    "torchvision_network",
    "transformers_network",
    "vgg11_bn",
    "vgg13_bn",
    "vgg16_bn",
    "vgg19_bn",
]
