"""Options that several commands share, each declared once, and what their values mean."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

import torch
import typer

from hesspec._suggest import unknown
from hesspec.study.measuring import MATRICES, matrix_name

Network = Annotated[
    str,
    typer.Argument(
        metavar="NETWORK",
        help="small_cnn, vgg11_bn, vgg13_bn, vgg16_bn, vgg19_bn, resnet18, resnet34, resnet50, densenet40, "
        "torchvision:NAME, timm:NAME, or your own as MODULE:CALLABLE, which is called with those of the keywords "
        "channels, classes and size that it has.",
    ),
]
Data = Annotated[
    str,
    typer.Option(
        metavar="NAME",
        help="digits, mnist, fashion-mnist, cifar10, cifar100, or your own as MODULE:CALLABLE, which is called "
        "with the split and returns a map-style data set of (input, class).",
    ),
]
Weights = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE",
        help="Weights in a .safetensors file, or a state dict in a .pt or .pth file. Without them the network is "
        "as it is initialised from the seed.",
    ),
]
Split = Annotated[str, typer.Option(metavar="NAME", help="train or test.")]
SamplesPerClass = Annotated[int | None, typer.Option(min=1, metavar="N", help="How many to use.", show_default="all")]
DataFolder = Annotated[
    Path | None, typer.Option(metavar="FOLDER", help="Where the files of the data set are; digits need none.")
]
Size = Annotated[
    int | None,
    typer.Option(
        min=1,
        metavar="N",
        help="Pad images to this height and width, in pixels.",
        show_default="8 for digits, 32 for the other named ones",
    ),
]
Matrix = Annotated[
    list[str] | None,
    typer.Option(
        metavar="NAME",
        help="hessian, gauss-newton or residual, or short hess, g or h; g-class, g-cross, g-within or g-same for a "
        "part of G by its class structure. May be given several times.",
        show_default="all three",
    ),
]
Params = Annotated[
    list[str] | None,
    typer.Option(
        metavar="GLOB",
        help="Take the curvature by the parameters of these names only, such as `features.*.weight`. May be given "
        "several times.",
        show_default="all",
    ),
]
Seed = Annotated[
    int, typer.Option(min=0, metavar="N", help="Of the probes, the choice of samples, and the initialisation.")
]
BatchSize = Annotated[
    int, typer.Option(min=1, metavar="N", help="Samples in a pass; no influence on the result but for rounding.")
]
Device = Annotated[str, typer.Option(metavar="NAME", help="cpu, cuda or cuda:N.")]
Dtype = Annotated[str, typer.Option(metavar="NAME", help="float32 or float64.")]
Basis = Annotated[
    str,
    typer.Option(
        metavar="NAME",
        help="How the Krylov basis is kept: full, half (half of the bits, as good), either of them followed by "
        "` on host` or ` on disk`, restarted (as many vectors as fit), or auto: the first of these that fits.",
    ),
]

DEFAULT_EVERY = "10min"
Snapshot = Annotated[
    Path | None,
    typer.Option(
        metavar="FOLDER",
        help="Where the run is written to every so often; the same command goes on from it. Removed in the end.",
    ),
]
Every = Annotated[
    str | None,
    typer.Option(
        metavar="TIME", help="Time between two snapshots, such as 10min, 30s or 2h.", show_default=DEFAULT_EVERY
    ),
]
Memory = Annotated[
    str | None,
    typer.Option(
        metavar="SIZE",
        help="What may be taken of the device's memory beside the network, such as 8GB.",
        show_default="a safe share of what is free",
    ),
]


def matrices_of(names: Sequence[str] | None) -> list[str]:
    """Value of --matrix: names of classes, without repetitions."""
    return list(dict.fromkeys(map(matrix_name, names or MATRICES)))


def steps_of(text: str) -> int | Literal["auto"]:
    """Value of --steps."""
    if text == "auto":
        return "auto"
    if not text.isdecimal() or int(text) < 1:
        raise ValueError(f"--steps is {text!r}; it has to be a positive whole number, or 'auto'.")
    return int(text)


def dtype_of(name: str) -> torch.dtype:
    """Value of --dtype."""
    known = {"float32": torch.float32, "float64": torch.float64}
    if name not in known:
        raise ValueError(unknown("dtype", name, known))
    return known[name]


def device_of(name: str) -> torch.device:
    """Value of --device; under `torchrun`, cuda is the GPU of this process."""
    kind, _, number = name.partition(":")
    if name == "cuda" and "LOCAL_RANK" in os.environ:
        number = os.environ["LOCAL_RANK"]
    if kind not in {"cpu", "cuda"} or (number and not number.isdecimal()):
        raise ValueError(unknown("device", name, ["cpu", "cuda", "cuda:0"]))
    if kind == "cuda" and int(number or 0) >= torch.cuda.device_count():
        raise ValueError(f"There is no device {name!r}: PyTorch finds {torch.cuda.device_count()} CUDA devices here.")
    return torch.device(f"{kind}:{number}" if number else kind)
