"""Options shared by several commands, and their values."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

import typer

from hesspec.cli.completion import DATA, NETWORKS, completing, matrix_aliases
from hesspec.matrices import DEFAULT_MATRICES, matrix_names
from hesspec.spectra.study_names import SPLITS

Network = Annotated[
    str,
    typer.Argument(
        metavar="NETWORK",
        autocompletion=completing(NETWORKS),
        help="Network: small_cnn, tanh_mlp, vgg11_bn, vgg13_bn, vgg16_bn, vgg19_bn, resnet18, resnet34, resnet50, "
        "densenet40, torchvision:NAME, timm:NAME; for text gpt_tiny, gpt_small, or transformers:FOLDER (a local folder "
        "with weights, or a configuration file, whose model has random ones); or your own as MODULE:CALLABLE, which is "
        "called with those of the keyword arguments channels, classes and size that it accepts.",
    ),
]
Data = Annotated[
    str,
    typer.Option(
        metavar="NAME",
        autocompletion=completing(DATA),
        help="Data set: digits, mnist, fashion-mnist, cifar10, cifar100; text: python-stdlib, text:PATH (a file or a "
        "folder); or your own as MODULE:CALLABLE, which is called with the split and returns a map-style data set of "
        "(input, class) pairs.",
    ),
]
Weights = Annotated[
    Path | None,
    typer.Option(
        metavar="PATH",
        help="Weights as a .safetensors file, or a folder of them with an index; a state dict as a .pt or .pth file; "
        "or a .ckpt file of Lightning. Without them, the network is measured at initialisation.",
    ),
]
Split = Annotated[
    str,
    typer.Option(metavar="NAME", autocompletion=completing(SPLITS), help="Part of the data set: train or test."),
]
SamplesPerClass = Annotated[
    int | None,
    typer.Option(
        "--samples-per-class",
        "--sequences",
        min=1,
        metavar="N",
        help="Number of samples to use from each class; of text, number of sequences.",
        show_default="all",
    ),
]
DataFolder = Annotated[
    Path | None, typer.Option(metavar="FOLDER", help="Folder with the files of the data set; not needed for digits.")
]
Size = Annotated[
    int | None,
    typer.Option(
        min=1,
        metavar="N",
        help="Pad images to this height and width, in pixels; of text, number of tokens in a sequence.",
        show_default="8 for digits, 128 for text, 32 for the other built-in data sets",
    ),
]
Tokenizer = Annotated[
    Path | None,
    typer.Option(
        metavar="FOLDER",
        help="Local folder of a tokenizer of transformers, for text.",
        show_default="none: tokens are bytes",
    ),
]
Pretrained = Annotated[
    bool,
    typer.Option(
        "--pretrained",
        help="Use the pretrained weights of a network of torchvision or timm that are on this machine already; nothing "
        "is downloaded.",
    ),
]
Loss = Annotated[
    str,
    typer.Option(
        metavar="NAME",
        help="Loss: cross-entropy, mse (of one-hot labels), or your own as MODULE:CALLABLE, a function of outputs and "
        "targets, or a class such as torch.nn:MultiMarginLoss.",
    ),
]
Matrix = Annotated[
    list[str] | None,
    typer.Option(
        metavar="NAME",
        autocompletion=completing(matrix_aliases),
        help="Matrix: hessian, gauss-newton or residual (short: hess, g, h); a part of G by class structure: g-class, "
        "g-cross, g-within or g-same; of gradients: second-moment or likelihood-residual (m, h-p). Can be repeated.",
        show_default="hess, g and h",
    ),
]
Params = Annotated[
    list[str] | None,
    typer.Option(
        metavar="GLOB",
        help="Differentiate only by parameters whose names match, such as `features.*.weight`. Can be repeated.",
        show_default="all",
    ),
]
Seed = Annotated[
    int,
    typer.Option(min=0, metavar="N", help="Random seed of the probes, the choice of samples and the initial weights."),
]
BatchSize = Annotated[
    int, typer.Option(min=1, metavar="N", help="Samples per forward pass; changes results only by rounding.")
]
Device = Annotated[
    str,
    typer.Option(metavar="NAME", autocompletion=completing(("cpu", "cuda")), help="Device: cpu, cuda or cuda:N."),
]
Dtype = Annotated[
    str,
    typer.Option(
        metavar="NAME",
        autocompletion=completing(("float32", "float64")),
        help="Floating-point type: float32 or float64.",
    ),
]
Basis = Annotated[
    str,
    typer.Option(
        metavar="NAME",
        autocompletion=completing(("auto", "full", "half", "restarted")),
        help="How to store the Krylov basis: full, half (half the bits, equally accurate), restarted (keeps as many "
        "vectors as fit), or auto: the first that fits, on the device, in host memory or on disk.",
    ),
]
Offload = Annotated[
    str | None,
    typer.Option(metavar="PLACE", help="Where to store the basis instead of on the device: host or disk."),
]
Kind = Annotated[
    str,
    typer.Option(
        metavar="NAME",
        autocompletion=completing(("overview", "linear", "log", "scree", "cdf")),
        help="What the figure shows: overview (the densities of linear and log next to each other), linear, log, scree "
        "(eigenvalues by rank) or cdf.",
    ),
]

DEFAULT_EVERY = "10min"
Snapshot = Annotated[
    Path | None,
    typer.Option(
        metavar="FOLDER",
        help="Folder for periodic snapshots: after an interruption, the same command resumes from them. Deleted when "
        "the command completes.",
    ),
]
Every = Annotated[
    str | None,
    typer.Option(
        metavar="TIME", help="Time between two snapshots, such as 30s, 10min or 2h.", show_default=DEFAULT_EVERY
    ),
]
Out = Annotated[Path, typer.Option(metavar="FOLDER", help="Output folder; existing files are never overwritten.")]
Memory = Annotated[
    str | None,
    typer.Option(
        metavar="SIZE",
        help="Device memory to use in addition to the network's own, such as 8GB.",
        show_default="a safe share of the free memory",
    ),
]


def share_of(text: str, option: str) -> float:
    """Value of an option that is a share, such as "2%" or "0.02".

    Examples
    --------
    >>> share_of("2%", "--trace"), share_of("0.5", "--trace")
    (0.02, 0.5)
    """
    try:
        value = float(text.removesuffix("%")) / (100 if text.endswith("%") else 1)
    except ValueError:
        value = math.nan
    if not 0 < value < 1:
        raise ValueError(f"{option} is {text!r}; it must be a share between 0 and 100%, such as 2% or 0.02.")
    return value


def matrices_of(names: Sequence[str] | None) -> list[str]:
    """Value of --matrix: names of classes, without repetitions."""
    return matrix_names(names or DEFAULT_MATRICES)


def steps_of(text: str) -> int | Literal["auto"]:
    """Value of --steps."""
    if text == "auto":
        return "auto"
    if not text.isdecimal() or int(text) < 1:
        raise ValueError(f"--steps is {text!r}; it must be a positive integer or 'auto'.")
    return int(text)
