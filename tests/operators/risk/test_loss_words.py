"""What does not belong together is told before anything runs: the batch, both shapes, and what to do."""

import re
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import hesspec

CE, MSE = nn.CrossEntropyLoss(), nn.MSELoss()
X, Y = torch.randn(6, 4), torch.tensor([0, 1, 2, 0, 1, 2])
IDS = torch.randint(7, (3, 8))


def cross_entropy(out, y):
    """As a user's own loss, of which nothing is known."""
    return F.cross_entropy(out, y)


def smooth(out, y):
    return F.smooth_l1_loss(out, y)


class Gives(nn.Module):
    """A network that returns what a function makes of its outputs."""

    def __init__(self, outputs, make=lambda out: out):
        super().__init__()
        self.linear, self._make = nn.Linear(4, outputs), make

    def forward(self, x):
        return self._make(self.linear(x))


class Language(nn.Module):
    def __init__(self, vocabulary=7):
        super().__init__()
        self.embedding, self.head = nn.Embedding(7, 4), nn.Linear(4, vocabulary)

    def forward(self, ids):
        return self.head(self.embedding(ids))


def one_hot():
    return F.one_hot(Y, 3)


def with_class(label, place=1):
    y = Y.clone()
    y[place] = label
    return y


WRONG = {
    "fewer labels": (
        Gives(3),
        CE,
        (X, Y[:5]),
        r"returned Tensor \(6, 3\).* targets are Tensor \(5,\).*6 samples.*for 5",
    ),
    "one label": (Gives(3), CE, (X, Y[:1]), "outputs for 6 samples, but targets for 1"),
    "fewer labels, own loss": (Gives(3), cross_entropy, (X, Y[:5]), "6 samples, but targets for 5"),
    "a column of labels": (Gives(3), CE, (X, Y[:, None]), r"targets\.squeeze\(1\)"),
    "labels as floats": (Gives(3), CE, (X, Y.float()), r"integers: targets\.long\(\)"),
    "labels as floats, own loss": (Gives(3), cross_entropy, (X, Y.float()), r"targets\.long\(\)"),
    "one value for three outputs": (Gives(3), MSE, (X, Y.float()), r"MSELoss takes targets of the outputs' shape\.$"),
    "fewer values": (Gives(3), MSE, (X, torch.randn(5, 3)), "6 samples, but targets for 5"),
    "one value for three outputs, own loss": (
        Gives(3),
        lambda f, y: (f - y).pow(2).mean(),
        (X, Y.float()),
        r"If the targets are classes, they must be integers",
    ),
    "labels as 32-bit integers": (Gives(3), CE, (X, Y.int()), r"torch\.int64: targets\.long\(\)"),
    "one-hot labels as integers": (Gives(3), CE, (X, one_hot()), r"targets\.float\(\), or targets\.argmax\(1\)"),
    "class 3 of 3": (Gives(3), CE, (X, with_class(3)), r"targets\[1\] is class 3, but the model has 3 logits.*0 to 2"),
    "class -1": (Gives(3), CE, (X, with_class(-1, 5)), r"targets\[5\] is class -1.*ignore_index \(-100\)"),
    "class 3 of 3, log-probabilities": (
        Gives(3, lambda f: f.log_softmax(1)),
        nn.NLLLoss(),
        (X, with_class(3)),
        r"targets\[1\] is class 3",
    ),
    "class 9, own loss": (
        Gives(3),
        cross_entropy,
        (X, with_class(9)),
        "Target 9 is out of bounds",
    ),
    "pixels": (
        Gives(4, lambda f: f.view(2, 3, 4)),
        CE,
        (X, torch.tensor([[0, 1, 2, 3], [0, 0, 0, 0]])),
        r"targets\[0, 3\] is class 3",
    ),
    "tokens not flattened": (
        Language(),
        CE,
        (IDS, IDS),
        r"out\.transpose\(1, 2\).*y\.flatten.*out\[:, :-1\] and y\[:, 1:\]",
    ),
    "tokens, own loss": (Language(), cross_entropy, (IDS, IDS), r"out\[:, :-1\] and y\[:, 1:\]"),
    "labels as a list": (Gives(3), CE, (X, Y.tolist()), r"targets are list \[0, 1, 2, 0, 1, 2\].*torch\.as_tensor"),
    "no targets": (Gives(3), CE, (X, None), "the targets are None, but CrossEntropyLoss takes a tensor"),
    "class weights of another length": (
        Gives(3),
        nn.CrossEntropyLoss(weight=torch.ones(2)),
        (X, Y),
        "weights of 2 classes, but there are 3",
    ),
    "class weights of another length, own loss": (
        Gives(3),
        lambda f, y: F.cross_entropy(f, y, weight=torch.ones(2)),
        (X, Y),
        "weight tensor should be defined either for all 3 classes",
    ),
    "class weights of another precision, own loss": (
        Gives(3),
        lambda f, y: F.cross_entropy(f, y, weight=torch.ones(3).double()),
        (X, Y),
        "the loss raised RuntimeError: expected scalar type Float but found Double",
    ),
    "column against row": (
        Gives(1),
        MSE,
        (X, torch.randn(6)),
        r"\(6, 1\).*\(6,\).*compare all outputs with all targets.*squeeze\(1\)",
    ),
    "row against column": (Gives(1, lambda f: f[:, 0]), nn.L1Loss(), (X, torch.randn(6, 1)), r"squeeze\(1\)"),
    "column against row, own loss": (
        Gives(1),
        smooth,
        (X, torch.randn(6)),
        r"smooth_l1_loss is called with Tensor \(6, 1\).*Tensor \(6,\).*compares all",
    ),
    "square against row": (Gives(6), nn.HuberLoss(), (X, torch.randn(6)), "compare all outputs"),
    "column against row by hand": (
        Gives(1),
        lambda f, y: ((f - y) ** 2).mean(),
        (X, torch.randn(6)),
        r"\(6, 1\).*\(6,\).*squeeze\(1\)",
    ),
    "a tuple": (
        Gives(3, lambda f: (f, f)),
        CE,
        (X, Y),
        r"returned a tuple \(Tensor \(6, 3\).*CrossEntropyLoss takes a tensor.*loss_fn=lambda outputs, targets",
    ),
    "a dict": (Gives(3, lambda f: {"out": f}), CE, (X, Y), r"returned a dict \{'out': Tensor.*loss_fn=lambda"),
    "a distribution": (
        Gives(1, lambda f: torch.distributions.Normal(f, 1.0)),
        MSE,
        (X, torch.randn(6, 1)),
        "returned a Normal.*build it in loss_fn",
    ),
    "inputs of another size": (
        Gives(3),
        CE,
        (torch.randn(6, 5), Y),
        r"the model raised RuntimeError: mat1 and mat2.*Its inputs were Tensor \(6, 5\)",
    ),
    "integer inputs": (
        Gives(3),
        CE,
        (torch.ones(6, 4, dtype=torch.long), Y),
        r"the model raised RuntimeError.*integers are not converted: x\.float\(\)",
    ),
    "class 3 of 3, own loss": (
        Gives(3),
        cross_entropy,
        (X, with_class(3)),
        "class 3, but there are 3 logits, for classes 0 to 2.*ignore_index",
    ),
    "class -1 of log-probabilities, own loss": (
        Gives(3),
        lambda f, y: F.nll_loss(f.log_softmax(1), y),
        (X, with_class(-1)),
        "class -1, but there are 3 logits",
    ),
    "32-bit classes, own loss": (
        Gives(3),
        cross_entropy,
        (X, Y.int()),
        r"torch\.int64: targets\.long\(\)",
    ),
    "a list of classes, own loss": (
        Gives(3),
        cross_entropy,
        (X, Y.tolist()),
        r"torch\.as_tensor\(targets\)",
    ),
    "a loss that calls the model": (
        Gives(3),
        lambda model, batch: CE(model(batch[0]), batch[1]),
        (X, Y),
        r"not callable.*hesspec\.closure\(function\)",
    ),
    "a list of tensors": (
        Gives(3),
        CE,
        ([X, X], Y),
        r"TypeError.*A list is passed as positional arguments, 2 here.*\(inputs,\)",
    ),
    "unknown keyword": (Gives(3), CE, ({"z": X}, Y), "unexpected keyword argument 'z'.*as keyword arguments"),
    "one argument": (Gives(3), lambda f: f.mean(), (X, Y), r"cannot be called as loss_fn\(outputs, targets\).*closure"),
    "three arguments": (Gives(3), lambda f, y, z: f.mean(), (X, Y), "missing a required argument: 'z'"),
    "a class": (Gives(3), nn.CrossEntropyLoss, (X, Y), r"the class CrossEntropyLoss; pass .* CrossEntropyLoss\(\)"),
    "complex": (Gives(3), lambda f, y: CE(f, y).to(torch.cfloat), (X, Y), r"torch\.complex64.*loss\.real"),
    "integer": (Gives(3), lambda f, y: (f.argmax(1) == y).sum(), (X, Y), r"torch\.int64.*floating-point dtype"),
    "a vector": (
        Gives(3),
        lambda f, y: F.cross_entropy(f, y)[None],
        (X, Y),
        r"tensor of shape \(1,\); it must return a sc",
    ),
    "a number": (Gives(3), lambda f, y: F.cross_entropy(f, y).item(), (X, Y), r"float, which has no derivative.*item"),
    "a tuple of losses": (Gives(3), lambda f, y: (F.cross_entropy(f, y), {}), (X, Y), r"returned a tuple \(Tensor"),
    "an error of its own": (Gives(3), lambda f, y: {}["key"], (X, Y), "Batch 0: the loss raised KeyError: 'key'"),
}


@pytest.mark.parametrize("matrix", ["Hessian", "GaussNewton"])
@pytest.mark.parametrize("name", WRONG)
def test_the_first_forward_pass_says_what_is_wrong(name, matrix, caplog):
    model, loss, batch, message = WRONG[name]
    with pytest.raises(ValueError, match=re.compile(message, re.DOTALL)) as caught:
        getattr(hesspec, matrix)(model, loss, [batch])
    if name not in ("one argument", "three arguments", "a class"):
        assert str(caught.value).startswith("Batch 0: ")
    assert not caplog.records


@pytest.mark.parametrize(
    ("loss", "later"),
    [
        (CE, with_class(7)),
        (cross_entropy, with_class(7)),
        (lambda f, y: F.cross_entropy(f, y.flatten()), with_class(7)),
        (nn.CrossEntropyLoss(ignore_index=0), with_class(-100)),
    ],
)
def test_classes_out_of_range_are_found_in_every_batch(loss, later):
    with pytest.raises(ValueError, match=r"Batch 2: targets\[1\] is class"):
        hesspec.Hessian(Gives(3), loss, [(X, Y), (X, Y), (X, later)])


def test_classes_out_of_range_are_found_beyond_the_samples_that_are_looked_at():
    x, y = torch.randn(100, 4), torch.zeros(100, dtype=torch.long)
    y[77] = 3
    with pytest.raises(ValueError, match=r"Batch 0: targets\[77\] is class 3"):
        hesspec.Hessian(Gives(3), CE, [(x, y)])


@pytest.mark.parametrize("make", [lambda f: f.detach(), lambda f: f.detach().requires_grad_()])
def test_a_loss_that_no_parameter_influences_is_refused(make):
    operator = hesspec.Hessian(Gives(3, make), CE, [(X, Y)])
    with pytest.raises(ValueError, match=r"None of the selected parameters influences the loss.*detach"):
        _ = operator @ torch.ones(operator.shape[0])


def test_memory_that_runs_out_in_the_first_pass_keeps_its_error():
    def fails(_):
        raise torch.OutOfMemoryError("CUDA out of memory")

    with pytest.raises(torch.OutOfMemoryError):
        hesspec.Hessian(Gives(3, fails), CE, [(X, Y)])


# What looks alike, and is right ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("model", "loss", "batch"),
    [
        (Gives(3), CE, (X, Y.to(torch.uint8))),
        (Gives(3), CE, (X.numpy(), np.asarray(Y))),
        (Gives(3), nn.CrossEntropyLoss(weight=torch.ones(3).double()), (X, Y)),
        (Gives(3), nn.CrossEntropyLoss(ignore_index=3), (X, with_class(3))),
        (Gives(4, lambda f: f.view(2, 3, 4)), CE, (X, torch.zeros(2, 4, dtype=torch.long))),
        (Gives(3), CE, (X, one_hot().float())),
        (Gives(3, lambda f: SimpleNamespace(logits=f)), CE, (X, Y)),
        (Gives(3), lambda f, y: CE(*f[None], y) if f.dim() == 1 else CE(f, y), (X, Y)),
        (Gives(3), MSE, (X, torch.randn(6, 3).double())),
        # Pairs of all samples are meant, and the column is none to squeeze.
        (Gives(1), lambda f, y: F.softplus(-(f - f.T) * (y[:, None] - y[None]).sign()).mean(), (X, torch.randn(6))),
    ],
)
def test_what_pytorch_takes_is_taken(model, loss, batch):
    operator = hesspec.Hessian(model, loss, [batch])
    assert (operator @ torch.ones(operator.shape[0])).isfinite().all()
