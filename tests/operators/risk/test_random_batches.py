"""Losses, structures of batches and their sizes, drawn at random: batches and their parts add up to all data."""

import dataclasses
import random
import warnings
from collections import namedtuple
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch
import torch.nn.functional as F
from sweeps import swept
from torch import Tensor, nn

import hesspec

CLASSES, LENGTH, IGNORED = 3, 5, -100
WEIGHT = torch.tensor([0.2, 1.0, 3.0], dtype=torch.float64)
Named = namedtuple("Named", ["y", "number"])


@dataclasses.dataclass
class Labels:
    y: Any
    source: str = "drawn"


def numbers(*shape: int) -> Callable[[int], Tensor]:
    return lambda n: torch.randn(n, *shape, dtype=torch.float64)


def classes(*shape: int, ignored: float = 0.0) -> Callable[[int], Tensor]:
    def draw(n: int) -> Tensor:
        found = torch.randint(CLASSES, (n, *shape))
        found[torch.rand(found.shape) < ignored] = IGNORED
        # A batch without terms has no loss, and next tokens have no first one.
        found.view(-1)[-1] = 1
        return found

    return draw


def probabilities(n: int) -> Tensor:
    return torch.randn(n, CLASSES).softmax(1).double()


def missing(n: int) -> Tensor:
    found = torch.randn(n, dtype=torch.float64)
    found[torch.rand(n) < 0.4] = torch.nan
    found[0] = 0.3
    return found


def counted(y: Tensor) -> float:
    return float((y != IGNORED).sum())


def rows(y: Any) -> float:
    return float(len(y[0] if isinstance(y, tuple) else y))


def each(f: Tensor, y: Tensor) -> Tensor:
    return F.cross_entropy(f, y, reduction="none")


def of_tokens(f: Tensor, y: Tensor, **options: Any) -> Tensor:
    return F.cross_entropy(f.flatten(0, 1), y.flatten(), **options)


class Loss(NamedTuple):
    """A loss (outputs, targets) of so many outputs, its targets, and the terms it is a mean over; None for a sum."""

    outputs: int
    of: Callable[[Tensor, Any], Tensor]
    targets: Callable[[int], Any]
    terms: Callable[[Any], float] | None = rows
    tokens: bool = False


LOSSES = {
    "cross-entropy": Loss(CLASSES, F.cross_entropy, classes(), counted),
    "cross-entropy with ignored targets": Loss(CLASSES, F.cross_entropy, classes(ignored=0.4), counted),
    "class weights": Loss(
        CLASSES,
        lambda f, y: F.cross_entropy(f, y, weight=WEIGHT, label_smoothing=0.1),
        classes(),
        lambda y: float(WEIGHT[y].sum()),
    ),
    "a sum over its number": Loss(CLASSES, lambda f, y: F.cross_entropy(f, y, reduction="sum") / len(y), classes()),
    "a mean times its number": Loss(CLASSES, lambda f, y: F.cross_entropy(f, y) * len(y), classes(), None),
    "sums of classes": Loss(
        CLASSES,
        lambda f, y: sum((each(f, y)[y == c].sum() for c in range(CLASSES)), torch.zeros(())) / len(y),
        classes(),
    ),
    "a sum of samples": Loss(
        CLASSES, lambda f, y: sum(F.cross_entropy(a[None], b[None]) for a, b in zip(f, y, strict=True)), classes(), None
    ),
    "a sum of classes": Loss(CLASSES, lambda f, y: F.nll_loss(f.log_softmax(1), y, reduction="sum"), classes(), None),
    "sample weights": Loss(
        CLASSES,
        lambda f, t: (each(f, t[0]) * t[1]).sum() / t[1].sum(),
        lambda n: (torch.randint(CLASSES, (n,)), torch.rand(n, dtype=torch.float64) + 0.1),
        lambda t: float(t[1].sum()),
    ),
    "two tasks": Loss(
        CLASSES,
        lambda f, t: F.cross_entropy(f, t[0]) + 0.3 * F.mse_loss(f[:, 0], t[1]),
        lambda n: (torch.randint(CLASSES, (n,)), torch.randn(n, dtype=torch.float64)),
    ),
    "probabilities": Loss(CLASSES, F.cross_entropy, probabilities),
    "divergence": Loss(CLASSES, lambda f, y: F.kl_div(f.log_softmax(1), y, reduction="batchmean"), probabilities),
    "numbers that are missing": Loss(
        1, lambda f, y: F.mse_loss(f[:, 0][~y.isnan()], y[~y.isnan()]), missing, lambda y: float((~y.isnan()).sum())
    ),
    "squares": Loss(2, lambda f, y: (f - y).square().sum(1).mean() / 2, numbers(2)),
    "Huber, of rows": Loss(2, lambda f, y: F.huber_loss(f, y, reduction="none").mean(1).mean(), numbers(2)),
    "Gaussian": Loss(2, lambda f, y: F.gaussian_nll_loss(f[:, 0], y, F.softplus(f[:, 1]) + 0.1), numbers()),
    "log cosh": Loss(1, lambda f, y: (f[:, 0] - y).cosh().log().mean(), numbers()),
    "a sum of squares": Loss(2, lambda f, y: (f - y).square().sum() / 10, numbers(2), None),
    "tokens": Loss(CLASSES, of_tokens, classes(LENGTH, ignored=0.4), counted, tokens=True),
    "next tokens": Loss(
        CLASSES,
        lambda f, y: of_tokens(f[:, :-1], y[:, 1:]),
        classes(LENGTH, ignored=0.4),
        lambda y: counted(y[:, 1:]),
        tokens=True,
    ),
    "tokens over samples": Loss(
        CLASSES, lambda f, y: of_tokens(f, y, reduction="sum") / len(y), classes(LENGTH, ignored=0.4), rows, tokens=True
    ),
}
# Inputs of a batch from two tensors of its samples and one that all batches share, and what the model reads of them.
INPUTS = {
    "one": (lambda x, t, _: x + t, lambda x: x),
    "two": (lambda x, t, _: (x, t), lambda x, t: x + t),
    "named": (lambda x, t, _: {"x": x, "t": t}, lambda x, t: x + t),
    "shared": (lambda x, t, shared: (x + t, shared), lambda x, shared: x @ shared),
}
# Targets, and what the loss reads of them.
TARGETS = {
    "plain": (lambda y: y, lambda y: y),
    "mapping": (lambda y: {"y": y, "image": "7.png"}, lambda given: given["y"]),
    "list": (lambda y: [y], lambda given: given[0]),
    "dataclass": (Labels, lambda given: given.y),
    "named tuple": (lambda y: Named(y, 3), lambda given: given.y),
    "samples": (
        lambda y: [{"y": one, "image": i} for i, one in enumerate(y)],
        lambda given: torch.stack([one["y"] for one in given]),
    ),
}


class Network(nn.Module):
    """Two layers, of inputs that are found by a function of the model's arguments."""

    def __init__(self, read: Callable[..., Tensor], outputs: int) -> None:
        super().__init__()
        self.body, self._read = nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, outputs)), read

    def forward(self, *args: Tensor, **kwargs: Tensor) -> Tensor:
        return self.body(self._read(*args, **kwargs))


def call(model: nn.Module, inputs: Any) -> Tensor:
    if isinstance(inputs, dict):
        return model(**inputs)
    return model(*inputs) if isinstance(inputs, tuple) else model(inputs)


@pytest.mark.parametrize("seed", swept(range(160), *range(6)))
def test_batches_and_their_parts_add_up_to_all_data(seed):
    draw = random.Random(seed)  # noqa: S311 - not for secrets
    torch.manual_seed(seed)
    name, sizes = draw.choice(sorted(LOSSES)), draw.choices([1, 1, 2, 3, 4, 6, 9, 20], k=draw.choice([1, 2, 3, 4]))
    loss, (put, read), kind = LOSSES[name], draw.choice([*INPUTS.values()]), draw.choice(sorted(TARGETS))
    # Tuples of targets are not taken apart into samples.
    wrap, unwrap = TARGETS["plain" if kind == "samples" and name in ("sample weights", "two tasks") else kind]
    closure, shape = draw.random() < 0.4, (LENGTH, 4) if loss.tokens else (4,)
    model, shared = Network(read, loss.outputs).double(), torch.rand(4, 4, dtype=torch.float64)
    data = []
    for n in sizes:
        x, t = torch.randn(2, n, *shape, dtype=torch.float64)
        data.append((put(x, t, shared), loss.targets(n)))
    values = [float(loss.of(call(model, x), y).detach()) for x, y in data]
    terms = [1.0 if loss.terms is None else loss.terms(y) for _, y in data]
    total = sum(value * count for value, count in zip(values, terms, strict=True))
    total /= 1.0 if loss.terms is None else sum(terms)

    def criterion(outputs: Tensor, targets: Any) -> Tensor:
        return loss.of(outputs, unwrap(targets))

    given = hesspec.closure(lambda model, batch: criterion(call(model, batch[0]), batch[1])) if closure else criterion
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        risk = hesspec.Hessian(model, given, [(x, wrap(y)) for x, y in data], verify=False)._risk
    batches = list(risk.batches)
    parts = [part for batch in batches for part in risk.batches.split(batch, 2)]
    assert not any(batch.indivisible for batch in batches if batch.samples > 1)
    for found in (batches, parts):
        value = sum(batch.share * float(risk.gradient(batch)[0]) for batch in found)
        assert value == pytest.approx(total, rel=1e-6 if name == "divergence" else 1e-9)
