"""Data sets: splits, normalisation, parts that nest, IDX files and bad input."""

import gzip
import hashlib
import itertools
import pickle
import struct
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from hesspec.study import DATASETS, Dataset, load_dataset

DEBIAN = Path("/usr/share/datasets/fashion-mnist")


def write_idx(path, array, *, compress):
    content = bytes([0, 0, 8, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape)
    content += array.astype(np.uint8).tobytes()
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress(content) if compress else content)


def write_mnist(folder, *, compress=True, count=40):
    """Write the four files of MNIST, smaller, and return the training images and labels."""
    random = np.random.default_rng(0)
    suffix = ".gz" if compress else ""
    for prefix in ("t10k", "train"):
        images = random.integers(0, 256, (count, 28, 28))
        labels = np.arange(count) % 10
        write_idx(folder / f"{prefix}-images-idx3-ubyte{suffix}", images, compress=compress)
        write_idx(folder / f"{prefix}-labels-idx1-ubyte{suffix}", labels, compress=compress)
    return images, labels


@pytest.fixture
def own_module(tmp_path, monkeypatch):
    """Give a function that writes `hs_data.py` into a fresh current directory."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield (tmp_path / "hs_data.py").write_text
    sys.modules.pop("hs_data", None)


# Digits


def test_digits_are_1437_and_360_normalised_images():
    train, test = load_dataset("digits", "train"), load_dataset("digits", "test")
    assert train.inputs.shape == (1437, 1, 8, 8)
    assert test.inputs.shape == (360, 1, 8, 8)
    assert (train.inputs.dtype, train.targets.dtype) == (torch.float32, torch.int64)
    assert (train.classes, train.channels, train.size, len(train)) == (10, 1, 8, 1437)
    assert train.class_names == tuple("0123456789")
    assert train.inputs.mean().item() == pytest.approx(0, abs=1e-5)
    assert train.inputs.std(correction=0).item() == pytest.approx(1, abs=1e-5)


def test_digits_splits_are_disjoint_and_stratified():
    sklearn_datasets = pytest.importorskip("sklearn.datasets")
    train, test = load_dataset("digits", "train"), load_dataset("digits", "test")
    share = torch.bincount(test.targets) / (torch.bincount(test.targets) + torch.bincount(train.targets))
    assert (share - 0.2).abs().max() < 0.005
    # No two of the 1,797 images are equal, so that together the splits must hold each one once.
    together = torch.cat([train.inputs, test.inputs]).flatten(1)
    assert len(torch.unique(together, dim=0)) == 1797
    assert len(np.unique(sklearn_datasets.load_digits().data, axis=0)) == 1797


def test_the_digits_split_stays_what_it_was():
    test = load_dataset("digits", "test")
    assert test.targets[:12].tolist() == [7, 6, 3, 7, 7, 3, 2, 8, 9, 3, 2, 6]


def test_padding_is_black_and_centred():
    small = load_dataset("digits", "test")
    large = load_dataset("digits", "test", size=11)
    assert large.inputs.shape == (360, 1, 11, 11)
    assert torch.equal(large.inputs[:, :, 1:9, 1:9], small.inputs)
    black = small.inputs.min()
    border = torch.ones(11, 11, dtype=torch.bool)
    border[1:9, 1:9] = False
    assert (large.inputs[:, 0, border] == black).all()


def test_images_are_never_cropped():
    with pytest.raises(ValueError, match="size=7 is smaller than the images of 'digits'"):
        load_dataset("digits", "train", size=7)


# Parts


def test_parts_are_balanced_and_each_is_the_beginning_of_the_next():
    parts = [load_dataset("digits", "train", samples_per_class=n) for n in (3, 10, 26)]
    for part, count in zip(parts, (3, 10, 26), strict=True):
        assert torch.bincount(part.targets).tolist() == [count] * 10
    for small, large in itertools.pairwise(parts):
        assert torch.equal(large.inputs[: len(small)], small.inputs)
        assert torch.equal(large.targets[: len(small)], small.targets)


def test_a_part_is_fixed_by_its_seed_and_holds_no_sample_twice():
    first = load_dataset("digits", "train", samples_per_class=20, seed=1)
    again = load_dataset("digits", "train", samples_per_class=20, seed=1)
    other = load_dataset("digits", "train", samples_per_class=20, seed=2)
    assert torch.equal(first.inputs, again.inputs)
    assert not torch.equal(first.inputs, other.inputs)
    assert len(torch.unique(first.inputs.flatten(1), dim=0)) == 200


def test_a_part_stays_what_it_was():
    full = load_dataset("digits", "train")
    part = load_dataset("digits", "train", samples_per_class=1)
    places = [(full.inputs == image).all(dim=(1, 2, 3)).nonzero().item() for image in part.inputs]
    assert places == [1185, 1351, 921, 1327, 269, 11, 855, 600, 403, 657]


def test_inputs_and_targets_of_a_part_belong_together():
    full = load_dataset("digits", "train")
    part = load_dataset("digits", "train", samples_per_class=5)
    for image, target in zip(part.inputs, part.targets, strict=True):
        place = (full.inputs == image).all(dim=(1, 2, 3)).nonzero()
        assert full.targets[place.item()] == target


def test_too_many_samples_per_class_name_the_class_and_what_it_has():
    with pytest.raises(ValueError, match="samples_per_class=140 is too large: class '8' has 139"):
        load_dataset("digits", "train", samples_per_class=140)
    with pytest.raises(ValueError, match="at least 1, but it is 0"):
        load_dataset("digits", "train", samples_per_class=0)


# Batches


def test_batches_cover_all_samples_in_order_every_time():
    dataset = load_dataset("digits", "test")
    batches = dataset.batches(100)
    assert [len(targets) for _, targets in batches] == [100, 100, 100, 60]
    for _ in range(2):
        assert torch.equal(torch.cat([inputs for inputs, _ in batches]), dataset.inputs)
        assert torch.equal(torch.cat([targets for _, targets in batches]), dataset.targets)


def test_a_batch_size_below_one_is_refused():
    with pytest.raises(ValueError, match="batch_size must be at least 1, but it is 0"):
        load_dataset("digits", "test").batches(0)


# IDX files


@pytest.mark.parametrize("compress", [True, False])
@pytest.mark.parametrize("inner", [".", "MNIST/raw"])
def test_mnist_is_read_from_a_folder_and_from_torchvision_s_root(tmp_path, compress, inner):
    images, labels = write_mnist(tmp_path / inner, compress=compress)
    dataset = load_dataset("mnist", "train", folder=tmp_path)
    assert dataset.inputs.shape == (40, 1, 32, 32)
    assert torch.equal(dataset.targets, torch.from_numpy(labels))
    expected = (torch.from_numpy(images) / 255 - 0.1307) / 0.3081
    torch.testing.assert_close(dataset.inputs[:, 0, 2:30, 2:30], expected.float())
    assert dataset.inputs[0, 0, 0, 0].item() == pytest.approx(-0.1307 / 0.3081)


def test_fashion_mnist_has_its_own_constants_and_names(tmp_path):
    images, _ = write_mnist(tmp_path / "FashionMNIST" / "raw")
    dataset = load_dataset("fashion-mnist", "train", folder=str(tmp_path), size=28)
    expected = torch.from_numpy(images) / 127.5 - 1
    torch.testing.assert_close(dataset.inputs[:, 0], expected.float())
    assert dataset.class_names[9] == "Ankle boot"


def test_splits_are_read_from_their_own_files(tmp_path):
    write_mnist(tmp_path)
    train = load_dataset("mnist", "train", folder=tmp_path)
    test = load_dataset("mnist", "test", folder=tmp_path)
    assert not torch.equal(train.inputs, test.inputs)


@pytest.mark.skipif(not DEBIAN.is_dir(), reason="Debian's dataset-fashion-mnist is not installed")
def test_debian_s_fashion_mnist():
    test = load_dataset("fashion-mnist", "test")
    assert test.inputs.shape == (10_000, 1, 32, 32)
    assert torch.bincount(test.targets).tolist() == [1000] * 10
    train = load_dataset("fashion-mnist", "train", samples_per_class=10)
    assert train.inputs.shape == (100, 1, 32, 32)
    # Mean pixel 0.2860 and its standard deviation 0.3530 are those that users of it quote.
    inner = (test.inputs[:, :, 2:30, 2:30] + 1) / 2
    assert inner.mean().item() == pytest.approx(0.286, abs=0.002)
    assert inner.std().item() == pytest.approx(0.353, abs=0.002)


def test_missing_files_say_where_they_were_looked_for_and_how_to_get_them(tmp_path):
    with pytest.raises(FileNotFoundError, match="apt-get install dataset-fashion-mnist") as caught:
        load_dataset("fashion-mnist", "train", folder=tmp_path)
    assert repr(str(tmp_path / "FashionMNIST" / "raw")) in str(caught.value)
    assert "torchvision.datasets import FashionMNIST" in str(caught.value)
    with pytest.raises(FileNotFoundError, match="as no folder was given"):
        load_dataset("mnist", "train")


def spoil_gzip(folder):
    path = folder / "train-images-idx3-ubyte.gz"
    path.write_bytes(path.read_bytes()[:-100])


def spoil_length(folder):
    path = folder / "train-images-idx3-ubyte.gz"
    path.write_bytes(gzip.compress(gzip.decompress(path.read_bytes())[:-1]))


def spoil_magic(folder):
    (folder / "train-images-idx3-ubyte.gz").write_bytes(gzip.compress(b"<html>not found</html>"))


def spoil_count(folder):
    write_idx(folder / "train-labels-idx1-ubyte.gz", np.zeros(39), compress=True)


def spoil_label(folder):
    write_idx(folder / "train-labels-idx1-ubyte.gz", np.full(40, 11), compress=True)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (spoil_gzip, "is not a whole gzip file"),
        (spoil_length, "announces 31360 bytes of data, and it has 31359"),
        (spoil_magic, "must begin with 00 00 08 03, but begins with 3c 68 74 6d"),
        (spoil_count, "40 images and .* has 39 labels"),
        (spoil_label, "it has a label 11, and 'mnist' has 10 classes"),
    ],
)
def test_damaged_files_are_named(tmp_path, spoil, message):
    write_mnist(tmp_path)
    spoil(tmp_path)
    with pytest.raises(ValueError, match=message) as caught:
        load_dataset("mnist", "train", folder=tmp_path)
    assert str(tmp_path) in str(caught.value)


def test_an_empty_file_is_refused(tmp_path):
    write_mnist(tmp_path, compress=False)
    (tmp_path / "train-images-idx3-ubyte").write_bytes(b"")
    with pytest.raises(ValueError, match="is not an IDX file"):
        load_dataset("mnist", "train", folder=tmp_path)


# CIFAR


@pytest.fixture
def cifar10(tmp_path, monkeypatch):
    """Write CIFAR10 with ten images a file, and let torchvision expect its checksums."""
    reader = pytest.importorskip("torchvision.datasets").CIFAR10
    folder = tmp_path / reader.base_folder
    folder.mkdir()
    random = np.random.default_rng(0)
    stored = {}

    def write(name, content):
        data = pickle.dumps(content)
        (folder / name).write_bytes(data)
        return hashlib.md5(data, usedforsecurity=False).hexdigest()

    def batch(name):
        stored[name] = random.integers(0, 256, (10, 3072), dtype=np.uint8)
        return [name, write(name, {"data": stored[name], "labels": list(range(10))})]

    monkeypatch.setattr(reader, "train_list", [batch("data_batch_1"), batch("data_batch_2")])
    monkeypatch.setattr(reader, "test_list", [batch("test_batch")])
    names = [f"kind {number}" for number in range(10)]
    checksum = write("batches.meta", {"label_names": names})
    monkeypatch.setattr(reader, "meta", {**reader.meta, "md5": checksum})
    return tmp_path, stored


def test_cifar10_is_read_through_torchvision(cifar10):
    folder, stored = cifar10
    test = load_dataset("cifar10", "test", folder=folder)
    assert len(load_dataset("cifar10", "train", folder=folder)) == 20
    assert test.class_names[3] == "kind 3"
    pixels = torch.from_numpy(stored["test_batch"]).reshape(10, 3, 32, 32).float()
    mean = torch.tensor([125.3, 123.0, 113.9]).view(3, 1, 1)
    std = torch.tensor([63.0, 62.1, 66.7]).view(3, 1, 1)
    torch.testing.assert_close(test.inputs, (pixels - mean) / std)


def test_damaged_cifar_files_are_refused(cifar10):
    folder, _ = cifar10
    (folder / "cifar-10-batches-py" / "test_batch").write_bytes(b"else")
    with pytest.raises(ValueError, match=r"'cifar10' in .* are incomplete or damaged"):
        load_dataset("cifar10", "test", folder=folder)


def test_missing_cifar_files_say_how_to_get_them(tmp_path):
    pytest.importorskip("torchvision")
    with pytest.raises(FileNotFoundError, match=r"cifar-100-python.*import CIFAR100"):
        load_dataset("cifar100", "test", folder=tmp_path)


def test_cifar_without_torchvision_says_how_to_install_it(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torchvision", None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'hesspec\[vision\]'"):
        load_dataset("cifar10", "test", folder=tmp_path)


# The user's own


def test_the_user_s_torch_data_set_is_read_sample_by_sample(own_module):
    own_module(
        "import torch\n"
        "from torch.utils.data import TensorDataset\n"
        "def points(split):\n"
        "    count = {'train': 12, 'test': 6}[split]\n"
        "    points = torch.arange(2.0 * count).reshape(count, 2)\n"
        "    return TensorDataset(points, torch.arange(count) % 3)\n"
    )
    dataset = load_dataset("hs_data:points", "test")
    assert torch.equal(dataset.inputs, torch.arange(12.0).reshape(6, 2))
    assert dataset.targets.tolist() == [0, 1, 2, 0, 1, 2]
    assert (dataset.name, dataset.split, dataset.classes) == ("hs_data:points", "test", 3)
    part = load_dataset("hs_data:points", "train", samples_per_class=2)
    assert torch.bincount(part.targets).tolist() == [2, 2, 2]


def test_the_user_s_class_names_are_kept(own_module):
    own_module(
        "import torch\n"
        "class Data(list):\n"
        "    classes = ['cat', 'dog', 'fox']\n"
        "def pets(split):\n"
        "    return Data([(torch.zeros(1, 4, 4), 0), (torch.ones(1, 4, 4), 1)])\n"
    )
    assert load_dataset("hs_data:pets", "train").class_names == ("cat", "dog", "fox")


@pytest.mark.parametrize(
    ("returned", "message"),
    [
        ("iter([])", "must return a map-style data set"),
        ("[]", "must all have one shape, but there are none"),
        ("[(torch.zeros(2), 0), (torch.zeros(3), 1)]", r"\(2,\) \(sample 0\) and \(3,\)"),
        ("[(torch.zeros(2), 0.5)]", "an integer class"),
        ("[(torch.zeros(2), 0), (torch.zeros(2), -1)]", "targets run from -1 to 0"),
        ("[(object(), 0)]", "a tensor or array"),
        ("[torch.zeros(3)]", r"samples \(input, target\)"),
    ],
)
def test_samples_of_another_kind_are_refused(own_module, returned, message):
    own_module(f"import torch\ndef data(split):\n    return {returned}\n")
    with pytest.raises(ValueError, match=message):
        load_dataset("hs_data:data", "train")


def test_a_callable_that_does_not_take_the_split_is_refused(own_module):
    own_module("def data():\n    return []\n")
    with pytest.raises(ValueError, match="with the split as its only argument: too many"):
        load_dataset("hs_data:data", "train")


def test_a_size_for_the_user_s_own_images_is_refused(own_module):
    with pytest.raises(ValueError, match="size=32 cannot be applied to 'hs_data:data'"):
        load_dataset("hs_data:data", "train", size=32)


# Names and consistency


def test_unknown_names_bring_the_nearest():
    with pytest.raises(ValueError, match="no data set 'digit'; did you mean 'digits'"):
        load_dataset("digit", "train")
    with pytest.raises(ValueError, match="no split 'tests'; did you mean 'test'"):
        load_dataset("digits", "tests")
    assert DATASETS == ("digits", "mnist", "fashion-mnist", "cifar10", "cifar100", "python-stdlib")


@pytest.mark.parametrize(
    ("inputs", "targets", "message"),
    [
        (torch.zeros(3, 2), torch.tensor([0, 1]), "one input of at least one dimension"),
        (torch.zeros(2), torch.tensor([0, 1]), "one input of at least one dimension"),
        (torch.zeros(2, 2), torch.tensor([0.0, 1.0]), "int64 targets"),
        (torch.zeros(2, 2), torch.tensor([0, 2]), "2 classes, .* run from 0 to 2"),
        (torch.zeros(0, 2), torch.zeros(0, dtype=torch.int64), "is empty"),
    ],
)
def test_a_data_set_that_does_not_fit_together_is_refused(inputs, targets, message):
    with pytest.raises(ValueError, match=message):
        Dataset(name="x", split="train", inputs=inputs, targets=targets, class_names=("a", "b"))
