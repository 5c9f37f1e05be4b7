"""Batches of any structure: products are those with the dense matrix, in either mode, whatever the tensors are in."""

import dataclasses
import warnings
from collections import OrderedDict, UserDict, namedtuple
from contextlib import nullcontext

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from reference import gauss_newton_of, hessian_of, whole
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence
from torch.utils.data import DataLoader, TensorDataset

import hesspec
from hesspec.operators.data.division import Division

CE = nn.CrossEntropyLoss()
Named = namedtuple("Named", ["x", "scale"])


@dataclasses.dataclass
class Record:
    x: torch.Tensor
    scale: float


class Graph:
    """Shows shapes only, as graph libraries' objects do."""

    def __init__(self, x, scale):
        self.x, self.scale = x, scale

    def __repr__(self):
        return f"Graph(x={list(self.x.shape)})"


class Sharing(Graph):
    """Copies share its tensors, as those of graph libraries' batches share some."""

    def __deepcopy__(self, memo):
        other = Sharing.__new__(Sharing)
        other.__dict__.update(self.__dict__)
        return other


class Encoding(UserDict):
    def __getattr__(self, name):
        try:
            return self.__dict__["data"][name]
        except KeyError:
            raise AttributeError(name) from None


class Reads(nn.Module):
    """A network whose inputs are found by a function of its arguments."""

    def __init__(self, read):
        super().__init__()
        self.body, self._read = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 3)), read

    def forward(self, *args, **kwargs):
        x, scale = self._read(*args, **kwargs)
        return self.body(x * scale)


def attributes(item):
    return item.x, item.scale


# From x and a number to the inputs of a batch, and what the model does to get them back.
KINDS = {
    "dict": (lambda x, s: {"x": x, "scale": s}, lambda x, scale: (x, scale)),
    "user dict": (lambda x, s: UserDict(x=x, scale=s), lambda x, scale: (x, scale)),
    "encoding": (lambda x, s: Encoding(x=x, scale=s), lambda x, scale: (x, scale)),
    "ordered dict": (lambda x, s: OrderedDict(x=x, scale=s), lambda x, scale: (x, scale)),
    "positional": (lambda x, s: (x, s), lambda x, scale: (x, scale)),
    "positional list": (lambda x, s: [x, s], lambda x, scale: (x, scale)),
    "one list": (lambda x, s: ([x, s],), lambda items: (items[0], items[1])),
    "one dict": (lambda x, s: ({"x": x, "scale": s},), lambda items: (items["x"], items["scale"])),
    "one encoding": (lambda x, s: (Encoding(x=x, scale=s),), attributes),
    "named tuple": (Named, attributes),
    "dataclass": (Record, attributes),
    "object": (Graph, attributes),
    "object whose copies share its tensors": (Sharing, attributes),
    "object in a tuple": (lambda x, s: (Graph(x, s),), attributes),
    "object in a dict": (lambda x, s: {"graph": Graph(x, s)}, lambda graph: (graph.x, graph.scale)),
    "array": (lambda x, s: (x.numpy(), s), lambda x, scale: (x, scale)),
    "reversed array": (lambda x, s: (x.flip(0).numpy()[::-1], s), lambda x, scale: (x, scale)),
    "array in an object": (
        lambda x, s: Graph(x.numpy(), s),
        lambda graph: (torch.as_tensor(graph.x, dtype=torch.float64), graph.scale),
    ),
    "array of one number": (lambda x, s: (x, np.float64(s)), lambda x, scale: (x, float(scale))),
    "sparse": (lambda x, s: (x.to_sparse(), s), lambda x, scale: (x.to_dense(), scale)),
    "nested": (
        lambda x, s: (torch.nested.nested_tensor(list(x.unbind()), layout=torch.jagged), s),
        lambda x, scale: (torch.stack(list(x.unbind())), scale),
    ),
    "list of samples": (lambda x, s: (list(x.unbind()), s), lambda x, scale: (torch.stack(x), scale)),
    "other precision": (lambda x, s: (x.float(), s), lambda x, scale: (x, scale)),
}


def two_batches(kind):
    """Batches of the same shapes, which differ in the middle of their tensors and in a number."""
    torch.manual_seed(0)
    one, other = torch.randn(2, 6, 3, dtype=torch.float64).float().double()
    other[[0, -1]] = one[[0, -1]]
    labels = torch.randint(3, (2, 6))
    make, _ = KINDS[kind]
    plain = [(one, 1.0, labels[0]), (other, 0.5, labels[1])]
    return [(make(x, scale), y) for x, scale, y in plain], plain


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.few(8)
def test_products_are_of_every_batchs_own_data(kind, mode):
    data, plain = two_batches(kind)
    torch.manual_seed(1)
    model = Reads(KINDS[kind][1]).double()

    def outputs():
        return torch.cat([model.body(x * scale) for x, scale, _ in plain])

    def loss(out):
        return CE(out, torch.cat([y for _, _, y in plain]))

    hessian = hesspec.Hessian(model, CE, data)
    expected = hessian_of(model, lambda: loss(outputs()))
    torch.testing.assert_close(whole(hessian), expected, rtol=1e-10, atol=1e-12)
    assert hessian.samples == 12
    g = whole(hesspec.GaussNewton(model, CE, data))
    torch.testing.assert_close(g, gauss_newton_of(model, outputs, loss), rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(g + whole(hesspec.Residual(model, CE, data)), expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("kind", KINDS)
def test_content_tells_data_apart(kind):
    (first, second), _ = two_batches(kind)
    (again, _), _ = two_batches(kind)
    model = Reads(KINDS[kind][1]).double()

    def identity(batch):
        return hesspec.Hessian(model, CE, [batch]).identity()["data"]

    assert identity(first) == identity(again)
    # With the targets of the first, so that only the inputs differ.
    assert identity(first) != identity((second[0], first[1]))


@pytest.mark.parametrize("kind", KINDS)
def test_data_that_changes_between_passes_is_found(kind):
    (first, second), _ = two_batches(kind)

    class Changing:
        passes = 0

        def __iter__(self):
            self.passes += 1
            return iter([first if self.passes == 1 else (second[0], first[1])])

    operator = hesspec.Hessian(Reads(KINDS[kind][1]).double(), CE, Changing())
    with pytest.raises(ValueError, match="changed between passes: batch 0 has other values than in the first pass"):
        _ = whole(operator)


def test_a_constant_that_changes_is_named():
    (first, _), _ = two_batches("dataclass")

    class Changing:
        passes = 0

        def __iter__(self):
            self.passes += 1
            return iter([(Record(first[0].x, float(self.passes)), first[1])])

    operator = hesspec.Hessian(Reads(attributes).double(), CE, Changing())
    with pytest.raises(ValueError, match=r"\(its content other than tensors has changed\)"):
        _ = whole(operator)


class Tagger(nn.Module):
    def __init__(self):
        super().__init__()
        self.rnn, self.head = nn.RNN(3, 3), nn.Linear(3, 2)

    def forward(self, packed):
        return self.head(self.rnn(packed)[1][-1])


def test_packed_sequences_are_one_argument(mode):
    torch.manual_seed(0)
    model = Tagger().double()
    plain = [(torch.randn(5, 4, 3, dtype=torch.float64), lengths) for lengths in ([5, 4, 2, 1], [3, 3, 2, 2])]
    labels = torch.randint(2, (2, 4))
    packed = [pack_padded_sequence(x, lengths) for x, lengths in plain]
    data = list(zip(packed, labels, strict=True))
    expected = hessian_of(model, lambda: CE(torch.cat([model(item) for item in packed]), labels.flatten()))
    for given in (data, [((item,), y) for item, y in data]):
        operator = hesspec.Hessian(model, CE, given)
        torch.testing.assert_close(whole(operator), expected, rtol=1e-9, atol=1e-11)
        assert operator.samples == 8


class Language(nn.Module):
    """As models of transformers are called: the loss is theirs where they are given labels."""

    def __init__(self):
        super().__init__()
        self.embedding, self.head = nn.Embedding(7, 3), nn.Linear(3, 7)

    def forward(self, input_ids, attention_mask=None, labels=None):
        logits = self.head(torch.tanh(self.embedding(input_ids)))
        loss = None if labels is None else F.cross_entropy(logits.flatten(0, 1), labels.flatten())
        return {"loss": loss, "logits": logits}


def language_batches(kind=dict):
    torch.manual_seed(0)
    found = []
    for ignored in (1, 7):
        labels = torch.randint(7, (3, 4))
        labels.view(-1)[:ignored] = -100
        found.append(kind(input_ids=torch.randint(7, (3, 4)), attention_mask=torch.ones(3, 4), labels=labels))
    return found


@pytest.mark.parametrize("kind", [dict, UserDict, Encoding, OrderedDict])
def test_mappings_with_labels_are_batches_of_models_that_take_them(kind):
    model = Language().double()
    data = language_batches(kind)
    joint = {name: torch.cat([batch[name] for batch in data]) for name in data[0]}
    expected = hessian_of(model, lambda: model(**joint)["loss"])
    for given in (data, [(batch, None) for batch in data]):
        operator = hesspec.Hessian(model, lambda out, _: out["loss"], given)
        torch.testing.assert_close(whole(operator), expected, rtol=1e-10, atol=1e-12)
        # 11 and 5 labels count.
        assert operator.attributes["terms"] == 16


@pytest.mark.parametrize("name", ["labels", "label", "targets", "target", "y"])
def test_targets_of_mappings_are_taken_out_for_models_that_do_not_take_them(name):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 2)).double()
    x, y = torch.randn(2, 5, 3, dtype=torch.float64), torch.randint(2, (2, 5))
    data = [{"input": x[i], name: y[i]} for i in range(2)]
    expected = hessian_of(model, lambda: CE(model(x.flatten(0, 1)), y.flatten()))
    torch.testing.assert_close(whole(hesspec.Hessian(model, CE, data)), expected, rtol=1e-10, atol=1e-12)


class Labelled(Graph):
    def __init__(self, x, y):
        super().__init__(x, 1.0)
        self.y = y


def test_objects_with_targets_are_batches():
    torch.manual_seed(0)
    model = Reads(attributes).double()
    x, y = torch.randn(2, 5, 3, dtype=torch.float64), torch.randint(3, (2, 5))
    data = [Labelled(x[i], y[i]) for i in range(2)]
    expected = hessian_of(model, lambda: CE(model.body(x.flatten(0, 1)), y.flatten()))
    torch.testing.assert_close(whole(hesspec.Hessian(model, CE, data)), expected, rtol=1e-10, atol=1e-12)


def detection(counts):
    """One image for each number of boxes."""
    torch.manual_seed(sum(counts))
    images = torch.randn(len(counts), 4, dtype=torch.float64)
    return images, [{"boxes": torch.randn(count, 4, dtype=torch.float64)} for count in counts]


def over_images(out, targets):
    return torch.stack([((o - t["boxes"]) ** 4).mean() for o, t in zip(out, targets, strict=True)]).mean()


@pytest.mark.parametrize("counts", [[(1, 2), (9, 3)], [(2, 2), (3, 3)], [(4, 1, 2, 5), (2,)], [(3,), (1,), (2, 6)]])
def test_samples_of_detection_are_images_and_not_boxes(counts):
    model = nn.Linear(4, 4).double()
    data = [detection(each) for each in counts]
    images, targets = torch.cat([x for x, _ in data]), [target for _, each in data for target in each]
    operator = hesspec.Hessian(model, over_images, data)
    assert operator.samples == len(images)
    expected = hessian_of(model, lambda: over_images(model(images), targets))
    torch.testing.assert_close(whole(operator), expected, rtol=1e-10, atol=1e-12)


class OfImages(nn.Module):
    """Boxes of each image in a list, as detectors of torchvision take them."""

    def __init__(self, channels):
        super().__init__()
        self.channels = nn.Linear(channels, 4)

    def forward(self, images):
        return [self.channels(image.mean((1, 2))) for image in images]


@pytest.mark.parametrize("form", [list, tuple])
@pytest.mark.parametrize("wrapped", [lambda images: (images,), lambda images: {"images": images}])
@pytest.mark.parametrize("channels", [1, 3])
def test_channels_of_images_are_not_samples(channels, wrapped, form):
    """The first image of some batches has as many boxes as all images have channels."""
    torch.manual_seed(channels)
    model = OfImages(channels).double()
    images = [torch.randn(channels, 2 + i % 2, 3, dtype=torch.float64) for i in range(6)]
    targets = [{"boxes": torch.randn(count, 4, dtype=torch.float64)} for count in (1, 3, 3, 4, channels, 2)]
    parts = [slice(0, 1), slice(1, 4), slice(4, 6)]
    data = [(wrapped(form(images[part])), form(targets[part])) for part in parts]
    expected = hessian_of(model, lambda: over_images(model(images), targets))
    # As loaders of detection give them, with collate_fn=lambda samples: tuple(zip(*samples)).
    zipped = [(form(images[part]), form(targets[part])) for part in parts]
    closure = hesspec.closure(lambda detector, batch: over_images(detector(batch[0]), batch[1]))
    for operator in (hesspec.Hessian(model, over_images, data), hesspec.Hessian(model, closure, zipped)):
        assert operator.samples == 6
        torch.testing.assert_close(whole(operator), expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("channels", [1, 3])
def test_a_list_of_images_alone_is_asked_about(channels):
    """It looks like a list of tensors of as many samples as there are channels."""
    torch.manual_seed(channels)
    model = OfImages(channels).double()
    images = [torch.randn(channels, 2 + i % 2, 3, dtype=torch.float64) for i in range(6)]

    def loss(model, batch):
        return torch.stack(model(batch)).pow(4).mean()

    data = [images[:2], images[2:]]
    with (
        pytest.warns(UserWarning, match="It is unknown how the losses"),
        pytest.raises(ValueError, match=r"Batch 0: it is not clear how many samples.*terms=.*of the batch"),
    ):
        hesspec.Hessian(model, hesspec.closure(loss), data)
    expected = hessian_of(model, lambda: loss(model, images))
    operator = hesspec.Hessian(model, hesspec.closure(loss), data, terms=len)
    torch.testing.assert_close(whole(operator), expected, rtol=1e-10, atol=1e-12)


def test_a_list_of_inputs_and_targets_is_a_batch_of_a_closure():
    """As data loaders give them; those of one kind are told apart by the loss."""
    torch.manual_seed(0)
    model = nn.Linear(3, 3).double()
    x, y = torch.randn(2, 5, 3, dtype=torch.float64)
    expected = hessian_of(model, lambda: F.mse_loss(model(x) ** 2, y))
    closure = hesspec.closure(lambda model, batch: F.mse_loss(model(batch[0]) ** 2, batch[1]))
    operator = hesspec.Hessian(model, closure, [[x[:3], y[:3]], [x[3:], y[3:]]])
    assert operator.samples == 5
    torch.testing.assert_close(whole(operator), expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("count", [2, 3])
def test_lists_of_both_sides_are_divided_by_their_members(count):
    """A pair of two lists of two samples is not a list of two samples itself."""
    torch.manual_seed(count)
    layer = nn.Linear(4, 3).double()

    class Each(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = layer

        def forward(self, samples):
            return [self.layer(sample["x"]).mean(0) for sample in samples]

    def loss(outputs, targets):
        return torch.stack([CE(f, y["label"]) for f, y in zip(outputs, targets, strict=True)]).mean()

    samples = [{"x": torch.randn(2 + i, 4, dtype=torch.float64)} for i in range(count)]
    targets = [{"label": torch.tensor(i)} for i in range(count)]
    model = Each()
    expected = hessian_of(model, lambda: loss(model(samples), targets))
    operator = hesspec.Hessian(model, loss, [((samples,), targets)])
    assert operator.samples == count
    torch.testing.assert_close(whole(operator), expected, rtol=1e-10, atol=1e-12)
    first, labels = Division.of_pair(((samples,), targets), count).taken(((samples,), targets), torch.tensor([0]))
    assert [len(member) for member in first] == [1]
    assert labels == targets[:1]


def test_lists_of_samples_are_cut_like_tensors():
    model = nn.Linear(4, 4).double()
    images, targets = detection((3, 1, 2, 4, 5, 1))
    expected = hessian_of(model, lambda: over_images(model(images), targets))
    operator = hesspec.Hessian(model, over_images, [(images, targets)])
    (batch,) = operator._risk.batches
    parts = operator._risk.batches.split(batch, 3)
    assert [len(part.targets) for part in parts] == [2, 2, 2]
    torch.testing.assert_close(whole(operator), expected, rtol=1e-10, atol=1e-12)


# What is not a batch ------------------------------------------------------------------------------------------------


def dataset():
    return TensorDataset(torch.randn(6, 3), torch.randint(2, (6,)))


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (dataset(), r"data is a TensorDataset, which yields samples.*DataLoader\(data, batch_size="),
        (
            DataLoader(TensorDataset(torch.randn(4, 3), torch.rand(4), torch.randint(2, (4,))), batch_size=2),
            r"Batch 0 of data is a list of 3 items, \[Tensor \(2, 3\).*\(\(x1, x2\), y\)",
        ),
        ([torch.randn(4, 3)], r"Batch 0 of data is a Tensor \(4, 3\).*\(inputs, None\)"),
        ((torch.randn(4, 3), torch.zeros(4)), r"Batch 0 of data is a Tensor.*single batch.*\[\(inputs, targets\)\]"),
        ((np.ones((4, 3)), np.zeros(4)), r"Batch 0 of data is an ndarray.*single batch.*\[\(inputs, targets\)\]"),
        ([Graph(1, 2)], "Batch 0 of data is a Graph.*an object with its targets in an attribute.*hesspec.closure"),
        (["abc"], "Batch 0 of data is a 'abc'"),
    ],
)
def test_what_is_not_a_batch_is_named(data, message):
    with pytest.raises(ValueError, match=message):
        hesspec.Hessian(nn.Linear(3, 2), CE, data)


# Closures -----------------------------------------------------------------------------------------------------------


def penalised(model, batch):
    x, y = (batch.x, batch.y) if isinstance(batch, Labelled) else (batch["x"], batch["y"])
    return F.cross_entropy(model(x), y) + 0.3 * sum(value.square().sum() for value in model.parameters())


@pytest.mark.parametrize("make", [Labelled, lambda x, y: {"x": x, "y": y}, lambda x, y: UserDict(x=x, y=y)])
def test_closures_see_the_parameters_and_any_batch(make, mode):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 3), nn.Tanh(), nn.Linear(3, 2)).double()
    x, y = torch.randn(8, 3, dtype=torch.float64), torch.randint(2, (8,))
    data = [make(x[:5], y[:5]), make(x[5:], y[5:])]
    # Objects that are not known to be made of samples cannot be cut to see how losses add up.
    untold = pytest.warns(UserWarning, match="It is unknown how the losses of batches add up")
    with nullcontext() if isinstance(data[0], dict) else untold:
        operator = hesspec.Hessian(model, hesspec.closure(penalised), data)
    expected = hessian_of(model, lambda: penalised(model, {"x": x, "y": y}))
    torch.testing.assert_close(whole(operator), expected, rtol=1e-10, atol=1e-12)
    assert operator.samples == 8
    assert operator.attributes["loss"] == "penalised"


def test_the_terms_of_closures_are_of_the_batch():
    model = nn.Linear(3, 2).double()
    x, weight = torch.randn(8, 3, dtype=torch.float64), torch.rand(8, dtype=torch.float64) + 0.1

    def loss(model, batch):
        return (batch["w"] * model(batch["x"]).square().sum(1)).sum() / batch["w"].sum()

    data = [{"x": x[:5], "w": weight[:5]}, {"x": x[5:], "w": weight[5:]}]
    expected = hessian_of(model, lambda: loss(model, {"x": x, "w": weight}))
    for terms in (None, lambda batch: batch["w"].sum()):
        operator = hesspec.Hessian(model, hesspec.closure(loss), data, terms=terms)
        torch.testing.assert_close(whole(operator), expected, rtol=1e-10, atol=1e-12)


IN_CLOSURES = {
    "a pair": lambda x, t, y: (x + t, y),
    "a mapping and a tensor": lambda x, t, y: ({"x": x, "t": t}, y),
    "several inputs and a tensor": lambda x, t, y: [(x, t), y],
    "a tensor and several targets": lambda x, t, y: (x + t, [y, y]),
    "a tensor and a mapping": lambda x, t, y: (x + t, {"y": y}),
    "two mappings": lambda x, t, y: ({"x": x, "t": t}, {"y": y}),
    "several inputs and several targets": lambda x, t, y: ((x, t), (y, y.clone())),
    "something shared by all samples": lambda x, t, y: ((x, t, torch.ones(1, 3).double()), y),
}


def read(batch):
    x, y = batch
    x = sum(x.values()) if isinstance(x, dict) else x[0] + x[1] if isinstance(x, tuple) else x
    y = y["y"] if isinstance(y, dict) else y[0] if isinstance(y, list | tuple) else y
    return x, y


@pytest.mark.parametrize("sizes", [(2, 6), (4, 5), (1, 7), (1, 1)])
@pytest.mark.parametrize("name", IN_CLOSURES)
def test_members_of_a_batch_of_a_closure_are_not_its_samples(name, sizes):
    def loss(model, batch):
        x, y = read(batch)
        # As no loss function of PyTorch would say what it is a mean over.
        return (model(x)[:, 0] - y).abs().pow(3).mean()

    torch.manual_seed(0)
    model = nn.Linear(3, 1).double()
    parts = [torch.randn(sum(sizes), *shape, dtype=torch.float64) for shape in ((3,), (3,), ())]
    data = [IN_CLOSURES[name](*each) for each in zip(*(part.split(sizes) for part in parts), strict=True)]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        operator = hesspec.Hessian(model, hesspec.closure(loss), data)
    expected = hessian_of(model, lambda: loss(model, IN_CLOSURES[name](*parts)))
    torch.testing.assert_close(whole(operator), expected, rtol=1e-10, atol=1e-12)
    assert operator.samples == sum(sizes)


@pytest.mark.parametrize("wrapped", [False, True])
@pytest.mark.parametrize("name", ["inputs", "closure"])
def test_two_inputs_of_two_samples_one_of_which_is_shared_are_not_two_samples(name, wrapped):
    torch.manual_seed(0)
    model, shared = Reads(lambda x, scale: (x, scale)), torch.rand(3, dtype=torch.float64) + 0.5
    data = [((x, shared), y) for x, y in ((torch.randn(n, 3).double(), torch.rand(n).double()) for n in (2, 4))]
    if wrapped:
        data = [(list(x), y) for x, y in data]

    def loss(out, y):
        return (out.square().sum(1) * y).mean() + out.exp().mean()

    given = loss if name == "inputs" else hesspec.closure(lambda model, batch: loss(model(*batch[0]), batch[1]))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        operator = hesspec.Hessian(model.double(), given, data)
    expected = sum(len(y) / 6 * hessian_of(model, lambda x=x, y=y: loss(model(*x), y)) for x, y in data)
    torch.testing.assert_close(whole(operator), expected, rtol=1e-10, atol=1e-12)
    assert not any(batch.indivisible for batch in operator._risk.batches)


def test_a_batch_of_a_closure_that_may_be_a_pair_or_two_samples_is_not_guessed():
    model = nn.Linear(3, 1).double()

    def loss(model, batch):
        (x, t), (y, weight) = batch
        return ((model(x + t) - y).square() * weight).mean()

    # Of two samples, tensors are alike, too.
    data = [tuple((torch.rand(n, 3).double(), torch.rand(n, 3).double()) for _ in range(2)) for n in (2, 6)]
    with (
        pytest.warns(UserWarning, match="may be over samples"),
        pytest.raises(ValueError, match="it is not clear how many samples it has"),
    ):
        hesspec.Hessian(model, hesspec.closure(loss), data)
    operator = hesspec.Hessian(model, hesspec.closure(loss), data, terms=lambda batch: len(batch[0][0]))
    assert operator.attributes["terms"] == 8


def test_a_closure_is_a_function():
    with pytest.raises(ValueError, match="closure requires a function of the model and a batch, not an int"):
        hesspec.closure(3)


class Adapted(nn.Module):
    """A frozen layer in bfloat16 below one that is measured."""

    def __init__(self):
        super().__init__()
        self.base, self.head = nn.Linear(3, 4).to(torch.bfloat16).requires_grad_(False), nn.Linear(4, 3)

    def forward(self, x):
        return self.head(torch.tanh(self.base(x)).float())


def test_data_in_the_precision_of_a_frozen_part_stays_in_it():
    torch.manual_seed(0)
    model = Adapted()
    x, y = torch.randn(5, 3).to(torch.bfloat16), torch.randint(3, (5,))
    features = torch.tanh(model.base(x)).double()
    head = nn.Linear(4, 3).double()
    head.load_state_dict(model.head.state_dict())
    expected = hessian_of(head, lambda: CE(head(features), y))
    found = whole(hesspec.Hessian(model, CE, [(x[:3], y[:3]), (x[3:], y[3:])]))
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-7)
