"""Data sets in memory, of images and classes or of sequences of tokens, and nested subsets of them."""

import inspect
import operator
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d, pad

from hesspec.backend.suggest import unknown
from hesspec.spectra.study_names import SPLITS
from hesspec.study.image_files import CifarSource, IdxSource, Images
from hesspec.study.imports import here_first, load_object
from hesspec.study.sequences import read_sequences
from hesspec.study.text_files import STDLIB, is_text

__all__ = ["DATASETS", "Dataset", "load_dataset"]

# Largest number of classes that are numbered by the labels alone. The largest image data sets have about 20,000.
MOST_CLASSES: Final = 1_000_000

IGNORED: Final = -100
"""Target of a position of a sequence that has none, PyTorch's `ignore_index`."""


@dataclass(frozen=True, eq=False, kw_only=True)
class Dataset:
    """Samples of a classification problem, all in memory, in a fixed order: one class for each, or for each position.

    Parameters
    ----------
    name, split
        Names of the data set and the split, as given to `load_dataset`.
    inputs
        Tensor (N, channels, size, size), float32, normalised. A user's own data set may have samples of another shape
        and type, with channels (or features) in the second dimension. Text has tokens (N, L), int64.
    targets
        Tensor (N,), int64: the class of every sample, from 0. Of sequences (N, L): the class of every position, for
        text the token that follows; -100 where there is none.
    class_names
        Name of every class; of text, every token.

    Raises
    ------
    ValueError
        If there are no samples, inputs and targets do not correspond, or a target is not a class.
    """

    name: str
    split: str
    inputs: Tensor = field(repr=False)
    targets: Tensor = field(repr=False)
    class_names: tuple[str, ...]

    def __post_init__(self) -> None:
        """Check that inputs, targets and classes match."""
        what = f"The {self.split} split of {self.name!r}"
        if self.targets.ndim not in (1, 2) or self.targets.dtype != torch.int64:
            raise ValueError(
                f"{what} must have int64 targets of shape (N,), or (N, L) for sequences, not {self.targets.dtype} of "
                f"shape {tuple(self.targets.shape)}."
            )
        if self.inputs.ndim < 2 or len(self.inputs) != len(self.targets):
            raise ValueError(
                f"{what} has inputs of shape {tuple(self.inputs.shape)} for {len(self.targets)} "
                "targets; it must have one input of at least one dimension for every target."
            )
        if len(self.targets) == 0:
            raise ValueError(f"{what} is empty.")
        classes = self.targets[self.targets != IGNORED] if self.is_sequences else self.targets
        if classes.numel() == 0:
            raise ValueError(f"{what} has no targets: all of them are {IGNORED}, which are ignored.")
        lowest, highest = int(classes.min()), int(classes.max())
        if lowest < 0 or highest >= self.classes:
            raise ValueError(
                f"{what} has {self.classes} classes, numbered from 0, but its targets run from {lowest} to {highest}."
            )

    def __len__(self) -> int:
        """Count the samples, N."""
        return len(self.targets)

    @property
    def classes(self) -> int:
        """Number of classes, C; of text, of tokens in the vocabulary."""
        return len(self.class_names)

    @property
    def is_sequences(self) -> bool:
        """Whether a sample is a sequence, with a target for each position."""
        return self.targets.ndim == 2

    @property
    def groups(self) -> int:
        """Number of groups that `samples_per_class` counts in: the classes; 1 for sequences, which have no class."""
        return 1 if self.is_sequences else self.classes

    @property
    def terms(self) -> int:
        """Number of targets that count: N, or that of the positions of sequences that have one."""
        return int((self.targets != IGNORED).sum())

    @property
    def channels(self) -> int:
        """Number of image channels, the second dimension of the inputs; 1 for sequences of tokens."""
        return 1 if self.inputs.ndim == 2 and self.is_sequences else self.inputs.shape[1]

    @property
    def size(self) -> int:
        """Height and width of the images in pixels, or tokens in a sequence: the last dimension of the inputs."""
        return self.inputs.shape[-1]

    def first(self, count: int | None) -> "Dataset":
        """Return the first samples, `count` of them or all there are; all if it is None."""
        return replace(self, inputs=self.inputs[:count], targets=self.targets[:count])

    def has_outputs(self, shape: Sequence[int], samples: int) -> bool:
        """Whether outputs of a network for `samples` samples have a number for each class (and position).

        That of text may have more tokens than there are: tables of tokens are often padded.
        """
        if not self.is_sequences:
            return tuple(shape) == (samples, self.classes)
        return len(shape) == 3 and shape[1] >= self.classes and (shape[0], shape[2]) == (samples, self.size)

    def outputs_text(self, samples: int) -> str:
        """Say which shape of the outputs `has_outputs` accepts."""
        if not self.is_sequences:
            return f"{(samples, self.classes)}: one number for each class"
        return (
            f"({samples}, C, {self.targets.shape[1]}) with C at least {self.classes}: one number for each token of the "
            "vocabulary, at each position"
        )

    def batches(self, batch_size: int) -> list[tuple[Tensor, Tensor]]:
        """Split the samples into batches, in order.

        Parameters
        ----------
        batch_size
            Samples in a batch, at least 1; the last batch may have fewer.

        Returns
        -------
        list of (inputs, targets)
            Views of the data set's tensors; the list can be iterated any number of times.

        Raises
        ------
        ValueError
            If `batch_size` is below 1.
        """
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, but it is {batch_size}.")
        return list(
            zip(
                torch.split(self.inputs, batch_size),
                torch.split(self.targets, batch_size),
                strict=True,
            )
        )


def load_dataset(
    name: str,
    split: str,
    *,
    samples_per_class: int | None = None,
    folder: str | os.PathLike[str] | None = None,
    size: int | None = None,
    seed: int = 0,
    tokenizer: str | os.PathLike[str] | None = None,
    pool: int = 1,
) -> Dataset:
    """Load one split of a data set into memory.

    Images are padded with black on all sides to `size`, scaled to [0, 1] and then normalised with
    the constants of arXiv 1811.07062, in this order, so that the border has the normalised value of
    black. There is no augmentation.

    ===============  ==============  ===============  ==============================================
    name             train, test     images, default  read from
    ===============  ==============  ===============  ==============================================
    `digits`         1,437; 360      1x8x8; 8         scikit-learn, which contains them
    `mnist`          60,000; 10,000  1x28x28; 32      `folder` of IDX files, or torchvision's root
    `fashion-mnist`  60,000; 10,000  1x28x28; 32      the same, or /usr/share/datasets/fashion-mnist
    `cifar10`        50,000; 10,000  3x32x32; 32      `folder`, torchvision's root
    `cifar100`       50,000; 10,000  3x32x32; 32      `folder`, torchvision's root
    ===============  ==============  ===============  ==============================================

    The digits have no official split: 360 of the 1,797 are the test split, drawn once and for all
    by scikit-learn's stratified `train_test_split` with `random_state=0`. They are normalised with
    the mean and the standard deviation of all pixels of the training split.

    Text is read as sequences of `size` tokens, by default 128, packed from all documents of the split, with the token
    that follows each as its target (see `read_sequences`). Tokens are the 256 bytes, unless a `tokenizer` is named.

    ===============  ====================================================================================
    name             text
    ===============  ====================================================================================
    `python-stdlib`  source of the standard library of the running Python without its tests, about 12 MB
    `text:PATH`      a file, or all files in a folder and its subfolders but hidden ones
    ===============  ====================================================================================

    A tenth of it is the test split: some of the files, chosen by digests of their paths, or the end of a single file
    (see `read_documents`).

    A user's own data set is named `"module:callable"`. The callable is called with the split
    and returns a map-style data set (a `torch.utils.data.Dataset`, or anything with a length and
    indices) of samples `(input, target)`: a tensor or array, always of the same shape, and an
    integer class, or for sequences a tensor (L,) of classes. Every sample is read once, so random
    augmentation is frozen. Its attribute `classes`, a list of names as torchvision's data sets have
    it, gives the classes; without it they are numbered up to the highest target.

    Parameters
    ----------
    name
        A name of the tables, or `"module:callable"`.
    split
        `"train"` or `"test"`.
    samples_per_class
        Keep this many samples of every class: the first ones in a permutation fixed by `seed`. The
        result is ordered by place in the permutation and then by class, so that a smaller number
        gives the first samples of a larger one. None keeps all samples in their stored order. Sequences have no class:
        it is their number.
    folder
        Folder of the files. It is not used by `digits`, text and the user's own data sets.
    size
        Height and width of the images after padding, in pixels, or number of tokens in a sequence. None: the default
        of the table.
    seed
        Seed of the permutation; without effect if `samples_per_class` is None.
    tokenizer
        Folder of a tokenizer of transformers, for text; it is only read from local files.
    pool
        Images are averaged over blocks of this height and width before they are padded, by default to the size of
        the table divided by it; it must divide their height and width.

    Returns
    -------
    Dataset
        Data set with float32 inputs (int64 tokens for text, unchanged for a user's own data set) and int64 targets.

    Raises
    ------
    ValueError
        If there is no such data set or split, a class has fewer than `samples_per_class` samples,
        `size` is smaller than the images, a file is damaged, the user's samples are not as
        described, or a text is empty, too short, or not one that the tokenizer can read.
    FileNotFoundError
        If the files are missing; the message says where they were looked for and how to get them.
    ModuleNotFoundError
        If torchvision, which CIFAR needs, or transformers, which a tokenizer needs, is not installed.

    Examples
    --------
    >>> train = load_dataset("digits", "train", samples_per_class=20)
    >>> train.inputs.shape, train.classes
    (torch.Size([200, 1, 8, 8]), 10)
    >>> text = load_dataset("python-stdlib", "test", samples_per_class=20, size=64)
    >>> text.inputs.shape, text.classes
    (torch.Size([20, 64]), 256)
    """
    if split not in SPLITS:
        raise ValueError(unknown("split", split, SPLITS))
    where = f"{split} of {name!r}"
    if pool != 1 and name not in _READERS:
        raise ValueError(f"pool={pool} cannot be applied to {name!r}, only to the images of {', '.join(DATASETS)}.")
    if is_text(name):
        tokens, following, token_names = read_sequences(name, split, size, tokenizer)
        keep = _kept_sequences(len(tokens), samples_per_class, seed, where)
        return Dataset(
            name=name,
            split=split,
            inputs=tokens[keep].long(),
            targets=following[keep].long(),
            class_names=token_names,
        )
    if tokenizer is not None:
        raise ValueError(f"The data set {name!r} is not text, and takes no tokenizer ({os.fspath(tokenizer)!r}).")
    if ":" in name:
        if size is not None:
            raise ValueError(
                f"size={size} cannot be applied to {name!r}: give your own data set's images the "
                "size that they need yourself."
            )
        full = _read_own(name, split)
        if full.is_sequences:
            keep = _kept_sequences(len(full), samples_per_class, seed, where)
        else:
            keep = _kept(full.targets, full.class_names, samples_per_class, seed, where)
        return replace(full, inputs=full.inputs[keep], targets=full.targets[keep])
    if name not in _READERS:
        hint = "Text is named 'text:PATH', a data set of your own 'module:callable'."
        raise ValueError(f"{unknown('data set', name, DATASETS)} {hint}")
    read, default_size = _READERS[name]
    images = read(split, None if folder is None else Path(folder))
    keep = _kept(images.targets, images.class_names, samples_per_class, seed, where)
    padded = _pad(_pooled(images.pixels[keep], pool, name), default_size // pool if size is None else size, name)
    mean = torch.tensor(images.mean).view(-1, 1, 1)
    std = torch.tensor(images.std).view(-1, 1, 1)
    return Dataset(
        name=name,
        split=split,
        inputs=(padded.float() / images.white).sub_(mean).div_(std),
        targets=images.targets[keep],
        class_names=images.class_names,
    )


def _kept(targets: Tensor, class_names: Sequence[str], count: int | None, seed: int, where: str) -> Tensor | slice:
    """Return the indices of the first `count` samples of every class, ordered so that subsets nest."""
    if count is None:
        return slice(None)
    if count < 1:
        raise ValueError(f"samples_per_class must be at least 1, but it is {count}.")
    available = torch.bincount(targets, minlength=len(class_names))
    fewest = int(available.argmin())
    if count > available[fewest]:
        raise ValueError(
            f"samples_per_class={count} is too large: class {class_names[fewest]!r} has "
            f"{available[fewest]} samples in the split {where}."
        )
    order = _permutation(len(targets), seed)
    permuted = targets.numpy()[order]
    columns = [order[permuted == label][:count] for label in range(len(class_names))]
    return torch.from_numpy(np.stack(columns, axis=1).ravel())


def _kept_sequences(available: int, count: int | None, seed: int, where: str) -> Tensor | slice:
    """Return the indices of the first `count` sequences in a permutation, so that subsets nest."""
    if count is None:
        return slice(None)
    if not 1 <= count <= available:
        raise ValueError(
            f"The number of sequences (samples_per_class={count}) must be from 1 to {available:,}, which the split "
            f"{where} has."
        )
    return torch.from_numpy(_permutation(available, seed)[:count])


def _permutation(count: int, seed: int) -> npt.NDArray[np.int64]:
    # The raw stream of a bit generator is stable across NumPy versions, unlike its permutations (NEP 19).
    return np.argsort(np.random.PCG64(seed).random_raw(count), kind="stable")


def _pooled(pixels: Tensor, pool: int, name: str) -> Tensor:
    """Average (N, channels, h, w) over blocks of pixels."""
    height, width = pixels.shape[-2:]
    if pool < 1 or height % pool or width % pool:
        raise ValueError(f"pool={pool} does not divide the images of {name!r}, which are {height}x{width}.")
    return pixels if pool == 1 else avg_pool2d(pixels.float(), pool)


def _pad(pixels: Tensor, size: int, name: str) -> Tensor:
    """Pad (N, channels, h, w) with black, with the extra pixel of an odd difference below and right."""
    height, width = pixels.shape[-2:]
    if size < max(height, width):
        raise ValueError(
            f"size={size} is smaller than the images of {name!r}, which are {height}x{width}; "
            "they are padded, never cropped."
        )
    top, left = (size - height) // 2, (size - width) // 2
    return pad(pixels, (left, size - width - left, top, size - height - top))


def _read_digits(split: str, folder: Path | None) -> Images:  # noqa: ARG001 - one form of reader
    # Slow to import, and only needed for this data set.
    from sklearn.datasets import load_digits  # noqa: PLC0415
    from sklearn.model_selection import train_test_split  # noqa: PLC0415

    digits = load_digits()
    train, test = train_test_split(np.arange(len(digits.target)), test_size=360, stratify=digits.target, random_state=0)
    scaled = digits.images[train] / 16
    part = train if split == "train" else test
    return Images(
        pixels=torch.from_numpy(digits.images[part].astype(np.uint8)).unsqueeze(1),
        targets=torch.from_numpy(digits.target[part].astype(np.int64)),
        class_names=tuple(map(str, range(10))),
        white=16,
        mean=(float(scaled.mean()),),
        std=(float(scaled.std()),),
    )


def _read_own(name: str, split: str) -> Dataset:
    """Read every sample of the data set that the user's callable returns."""
    make = load_object(name, "data set")
    try:
        inspect.signature(make).bind(split)
    except TypeError as error:
        raise ValueError(
            f"The data set {name!r} cannot be called with the split as its only argument: {error}."
        ) from error
    samples: Any = make(split)
    try:
        with here_first():
            pairs = [samples[index] for index in range(len(samples))]
        inputs = [torch.as_tensor(sample) for sample, _ in pairs]
        given = [_target(target) for _, target in pairs]
    except (TypeError, ValueError, RuntimeError, OverflowError) as error:
        raise ValueError(
            f"The data set {name!r} must return a map-style data set of samples (input, target), a "
            f"tensor or array and an integer class (of a sequence, integer classes): {error}."
        ) from error
    far = max((target for target in given if isinstance(target, int)), default=0)
    if far >= 1 << 63:
        raise _too_high(name, far)
    targets = [torch.as_tensor(target) for target in given]
    for what, tensors in (("samples", inputs), ("targets", targets)):
        shapes = {tuple(each.shape): index for index, each in enumerate(tensors)}
        if len(shapes) != 1:
            raise ValueError(
                f"The {what} of {name!r} must all have one shape, but there are "
                + (" and ".join(f"{shape} (sample {i})" for shape, i in shapes.items()) or "none")
                + "."
            )
    classes = torch.stack(targets)
    highest = int(classes.max())
    if not hasattr(samples, "classes") and highest >= MOST_CLASSES:
        raise _too_high(name, highest)
    class_names = getattr(samples, "classes", range(highest + 1))
    return Dataset(
        name=name,
        split=split,
        inputs=torch.stack(inputs),
        targets=classes,
        class_names=tuple(map(str, class_names)),
    )


def _too_high(name: str, label: int) -> ValueError:
    return ValueError(
        f"The data set {name!r} has a sample of class {label}, and classes are numbered from 0. "
        "If there are so many classes, give the data set an attribute `classes` with their names."
    )


def _target(target: Any) -> Tensor | int:
    """Class of a sample, or classes of the positions of a sequence (L,)."""
    if isinstance(target, Tensor | np.ndarray) and target.ndim == 1 and len(target) > 1:
        classes = torch.as_tensor(target)
        if classes.is_floating_point() or classes.is_complex():
            raise TypeError(f"classes are integers, not {classes.dtype}")
        return classes.long()
    return operator.index(target)


_FASHION = (
    "T-shirt/top",
    "Trouser",
    "Pullover",
    "Dress",
    "Coat",
    "Sandal",
    "Shirt",
    "Sneaker",
    "Bag",
    "Ankle boot",
)

_READERS: Final[dict[str, tuple[Callable[[str, Path | None], Images], int]]] = {
    "digits": (_read_digits, 8),
    "mnist": (
        IdxSource("mnist", "MNIST", tuple(map(str, range(10))), mean=0.1307, std=0.3081),
        32,
    ),
    "fashion-mnist": (
        IdxSource(
            "fashion-mnist",
            "FashionMNIST",
            _FASHION,
            mean=0.5,
            std=0.5,
            package_folder=Path("/usr/share/datasets/fashion-mnist"),
            package_command="`apt-get install dataset-fashion-mnist` on Debian, or with ",
        ),
        32,
    ),
    "cifar10": (
        CifarSource("cifar10", "CIFAR10", (125.3, 123.0, 113.9), (63.0, 62.1, 66.7)),
        32,
    ),
    "cifar100": (
        CifarSource("cifar100", "CIFAR100", (129.3, 124.1, 112.4), (68.2, 65.4, 70.4)),
        32,
    ),
}

DATASETS: Final = (*_READERS, STDLIB)
"""Names of the data sets that hesspec reads."""
