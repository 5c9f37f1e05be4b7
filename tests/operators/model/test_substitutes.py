"""What takes the place of PyTorch's functions: the same values and first derivatives, and right second ones."""

import functools
import warnings

import pytest
import torch
import torch.nn.functional as F
from cases import seeded
from torch import fx, nn
from torch.func import functionalize, grad, jvp
from torch.nn.utils import parametrizations

import hesspec
from hesspec.operators.engine.graph.detached import Detached
from hesspec.operators.engine.graph.quiet import quiet_tracer
from hesspec.operators.engine.graph.recording import record
from hesspec.operators.model.squares import SQUARES
from hesspec.operators.model.substitutes import SUBSTITUTES, Substitutes

CE = nn.CrossEntropyLoss()
LABELS = torch.tensor([2, 0, 3, 1, 2])
INDICES = torch.tensor([[0, 2, 2], [5, 1, 0], [3, 3, 3], [4, 0, 1]])
BAGS = torch.tensor([0, 3, 3, 4])


def random(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


TARGETS, SIGNS = random(5, 4, seed=1), random(5, 4, seed=1).sign()
TABLE = random(6, 3)
CLASS_WEIGHTS = random(4, seed=2).abs()
# Every difference of an input and its target at a kink, at zero, or beside them.
EDGES = TARGETS + torch.tensor([-1.0, 1.0, 0.0, 0.5], dtype=torch.float64)
MULTILABELS = torch.tensor([[3, 0, -1, 1], [-1, 0, 1, 2], [0, 1, 2, 3], [2, -1, -1, -1], [1, 1, -1, 0]])


def with_offsets(x, **options):
    return F.embedding_bag(INDICES.flatten(), x, BAGS, **options)


def per_sample(x):
    return F.embedding_bag(INDICES, TABLE, per_sample_weights=x, mode="sum")


def normalised(x, dim):
    return torch._weight_norm(x[:-1].view(4, 3, 2), x[-1].new_ones(SIZES[dim]) * x[-1].exp() + x[0], dim)


SIZES = {0: (4, 1, 1), 1: (1, 3, 1), 2: (1, 1, 2), -1: ()}


def case(function, point, **options):
    return functools.partial(function, **options), point


def against(function, target, point=None, **options):
    return (lambda x: function(x, target, **options)), random(*target.shape) if point is None else point


# A function and a point at which it has two derivatives.
SMOOTH = {
    "cross-entropy": case(F.cross_entropy, 3 * random(5, 4), target=LABELS),
    "cross-entropy, weights": case(F.cross_entropy, random(5, 4), target=LABELS, weight=CLASS_WEIGHTS, ignore_index=3),
    "cross-entropy, sum": case(F.cross_entropy, random(5, 4), target=LABELS.byte(), reduction="sum"),
    "cross-entropy, none": case(
        F.cross_entropy, random(5, 4, 2), target=LABELS[:, None].expand(5, 2), reduction="none"
    ),
    "cross-entropy, old": case(F.cross_entropy, random(5, 4), target=LABELS, size_average=False),
    "cross-entropy, one sample": case(F.cross_entropy, random(4), target=LABELS[0]),
    "cross-entropy, smoothing": case(F.cross_entropy, random(5, 4), target=LABELS, label_smoothing=0.1),
    "cross-entropy, probabilities": case(F.cross_entropy, random(5, 4), target=TARGETS.softmax(1)),
    "embedding": (lambda x: F.embedding(INDICES, x).sin(), random(6, 3)),
    "embedding, padding": (lambda x: F.embedding(INDICES, x, padding_idx=0).sin(), random(6, 3)),
    "embedding, padding from the end": (lambda x: F.embedding(INDICES, x, padding_idx=-3).sin(), random(6, 3)),
    "embedding, sparse": (lambda x: F.embedding(INDICES, x, sparse=True).sin(), random(6, 3)),
    "embedding, norms": (lambda x: F.embedding(INDICES, x, max_norm=9.0, padding_idx=2).sin(), random(6, 3)),
    "torch.embedding": (lambda x: torch.embedding(x, INDICES, 3).sin(), random(6, 3)),
    "torch.embedding, no padding": (lambda x: torch.embedding(x, INDICES).sin(), random(6, 3)),
    "bag, mean": (lambda x: F.embedding_bag(INDICES, x).sin(), random(6, 3)),
    "bag, sum": (lambda x: F.embedding_bag(INDICES, x, mode="sum", padding_idx=2).sin(), random(6, 3)),
    "bag, max": (lambda x: F.embedding_bag(INDICES, x, mode="max").sin(), random(6, 3)),
    "bags, mean": (lambda x: with_offsets(x, padding_idx=-6).sin(), random(6, 3)),
    "bags, sum, sparse": (lambda x: with_offsets(x, mode="sum", sparse=True).sin(), random(6, 3)),
    "bags, max, padding": (lambda x: with_offsets(x, mode="max", padding_idx=3).sin(), random(6, 3)),
    "bags, last offset": (lambda x: with_offsets(x, include_last_offset=True).sin(), random(6, 3)),
    "bags, norms": (lambda x: with_offsets(x, max_norm=9.0).sin(), random(6, 3)),
    "bag, weights of samples": (lambda x: per_sample(x).sin(), random(4, 3, seed=1)),
    "gaussian NLL": (lambda x: F.gaussian_nll_loss(x[:2], TARGETS[:2], x[2:4].exp(), full=True), random(5, 4)),
    "gaussian NLL, means": (lambda x: F.gaussian_nll_loss(x, TARGETS, 0.7, reduction="sum"), random(5, 4)),
    "gaussian NLL, one variance": (lambda x: F.gaussian_nll_loss(x, TARGETS, x.exp().sum(1)), random(5, 4)),
    "hard sigmoid": case(F.hardsigmoid, 2 * random(5, 4)),
    "huber": against(F.huber_loss, TARGETS, delta=0.7),
    "huber, weights": against(F.huber_loss, TARGETS, weight=TARGETS.abs()),
    "huber, sum": against(F.huber_loss, TARGETS, reduction="sum"),
    "huber, at zero": against(F.huber_loss, TARGETS, TARGETS),
    "smooth L1": against(F.smooth_l1_loss, TARGETS, beta=0.7),
    "smooth L1, none": against(F.smooth_l1_loss, TARGETS, reduction="none"),
    "smooth L1, L1": against(F.smooth_l1_loss, TARGETS, beta=0.0),
    "smooth L1, at zero": against(F.smooth_l1_loss, TARGETS, TARGETS),
    "absolute values of functions": (
        lambda x: torch.abs(x.sin()) * x.abs() + abs(x.exp() - 1) + torch.absolute(x - 1) * x.absolute(),
        random(5, 4),
    ),
    "L1": (lambda x: F.l1_loss(x.sin(), TARGETS, reduction="none") ** 2, random(5, 4)),
    "L1, mean": (lambda x: F.l1_loss(x**2, TARGETS), random(5, 4)),
    "L1, complex": (lambda x: F.l1_loss(torch.complex(x, x**2), TARGETS + 0j), random(5, 4)),
    "sinc": (torch.sinc, 3 * random(5, 4)),
    "sinc, as a special function": (lambda x: torch.special.sinc(x).exp(), torch.linspace(-0.4, 0.4, 6).double()),
    "sinc, as a method": (lambda x: x.sinc(), torch.tensor([0.3, 1 / torch.pi - 1e-9, 1 / torch.pi + 1e-9]).double()),
    "soft margin": against(F.soft_margin_loss, SIGNS),
    "soft margin, tails": against(F.soft_margin_loss, SIGNS, 20 * random(5, 4), reduction="none"),
    "multi-margin": against(F.multi_margin_loss, LABELS, random(5, 4)),
    "multi-margin, squares": against(F.multi_margin_loss, LABELS, random(5, 4), p=2, margin=0.4, weight=CLASS_WEIGHTS),
    "multi-margin, one sample": against(F.multi_margin_loss, LABELS[0], random(4), reduction="sum"),
    "multilabel margin": (lambda x: F.multilabel_margin_loss(x, MULTILABELS, reduction="none").sin(), random(5, 4)),
    "multilabel margin, one sample": against(F.multilabel_margin_loss, MULTILABELS[0], random(4)),
    "one-hot labels": (lambda x: (F.one_hot(LABELS, 4) * x.sin()).sum(1), random(5, 4)),
    "one-hot labels, of a sample": (lambda x: (F.one_hot(LABELS[0], num_classes=4) * x).sin(), random(4)),
    "rrelu": case(F.rrelu, random(5, 4)),
    "rrelu, slopes": case(F.rrelu, random(5, 4), lower=0.1, upper=0.9),
    "cdist": (lambda x: torch.cdist(x[:2], x[2:]), random(5, 4)),
    "cdist, batches": (lambda x: torch.cdist(x[:, :2], x[:1, 2:]).sin(), random(3, 5, 4)),
    "cdist, of all with all": (lambda x: torch.cdist(x, TARGETS[:1].expand(30, 4)), random(4, 4)),
    "cdist, sums": (lambda x: torch.cdist(x[:2], x[2:], p=1).sin(), random(5, 4)),
    "layer norm": (lambda x: F.layer_norm(x[:4], (4,), x[4], x[4].exp()).sin(), random(5, 4)),
    "layer norm, constants": (lambda x: F.layer_norm(x, (4,), CLASS_WEIGHTS, CLASS_WEIGHTS.sin()).sin(), random(5, 4)),
    "layer norm, a constant": (lambda x: F.layer_norm(x[:4], (4,), CLASS_WEIGHTS, x[4]).sin(), random(5, 4)),
    "group norm, constants": (lambda x: F.group_norm(x, 2, CLASS_WEIGHTS, CLASS_WEIGHTS.sin()).sin(), random(2, 4, 6)),
    "group norm, no shift": (lambda x: F.group_norm(x, 2, CLASS_WEIGHTS).sin(), random(2, 4, 6)),
    "batch norm, constants": (
        lambda x: F.batch_norm(x, TARGETS.mean(0), TARGETS.var(0), CLASS_WEIGHTS, CLASS_WEIGHTS.sin()).sin(),
        random(5, 4),
    ),
    "instance norm, constants": (
        lambda x: F.instance_norm(x, None, None, CLASS_WEIGHTS, CLASS_WEIGHTS.sin()).sin(),
        random(2, 4, 6),
    ),
    **{f"weight norm, dim {dim}": (functools.partial(normalised, dim=dim), random(25)) for dim in SIZES},
}
# Kinks, of which the derivative is a choice, and points where a form might overflow or divide by zero.
KINKS = {
    "cross-entropy, sure": case(F.cross_entropy, 300 * F.one_hot(LABELS, 4).double(), target=LABELS),
    "cross-entropy, wrong": case(F.cross_entropy, -300 * F.one_hot(LABELS, 4).double(), target=LABELS),
    "cross-entropy, classes ruled out": case(
        F.cross_entropy, random(5, 4).masked_fill(torch.arange(4) == 1, -torch.inf)[:3], target=LABELS[:3]
    ),
    "embedding, norms that are scaled": (lambda x: F.embedding(INDICES, x, max_norm=0.5, norm_type=1), random(6, 3)),
    "bag, norms that are scaled": (lambda x: F.embedding_bag(INDICES, x, max_norm=0.5), random(6, 3)),
    "bag, max of equal ones": (lambda x: F.embedding_bag(INDICES, x, mode="max"), torch.ones(6, 3).double()),
    "bag, all padding": (lambda x: F.embedding_bag(INDICES[2:], x, padding_idx=3), random(6, 3)),
    "gaussian NLL, clamped": (
        lambda x: F.gaussian_nll_loss(TARGETS, TARGETS + 2e-3, x.abs()),
        1e-7 * random(5, 4),
    ),
    "absolute values": (torch.abs, torch.tensor([0.0, -0.0, 1.0, -2.0]).double()),
    "L1, at zero": against(F.l1_loss, TARGETS, TARGETS),
    "hard sigmoid": case(F.hardsigmoid, torch.tensor([-3.0, 3.0, 0.0, -4.0, 4.0]).double()),
    "huber": against(F.huber_loss, TARGETS, EDGES),
    "smooth L1": against(F.smooth_l1_loss, TARGETS, EDGES, beta=0.5),
    "soft margin": against(F.soft_margin_loss, SIGNS, 30 * SIGNS),
    "multi-margin": against(F.multi_margin_loss, LABELS, torch.ones(5, 4).double(), margin=0.0),
    "multi-margin, margin": against(F.multi_margin_loss, LABELS, F.one_hot(LABELS, 4).double(), p=2),
    "multilabel margin": against(F.multilabel_margin_loss, MULTILABELS, (MULTILABELS >= 2).double()),
    "rrelu": case(F.rrelu, torch.tensor([0.0, -1.0, 1.0]).double()),
    "cdist, distance zero": (lambda x: torch.cdist(x, x), random(5, 4)),
    "cdist, all zero": (lambda x: torch.cdist(x, 0 * x.detach()), torch.zeros(3, 2).double()),
    # Those that need nothing in their place.
    "hard swish": case(F.hardswish, torch.tensor([-3.0, 3.0, 0.0, 1.0, -4.0, 4.0]).double()),
    "hard tanh": case(F.hardtanh, torch.tensor([-1.0, 1.0, 0.0, -4.0, 4.0]).double()),
    "relu6": case(F.relu6, torch.tensor([0.0, 6.0, 1.0, -4.0, 8.0]).double()),
}


def weighted(function):
    """A scalar in which every result counts by itself."""

    def scalar(x):
        result = function(x)
        return (result * torch.linspace(1, 2, result.numel(), dtype=result.dtype).view_as(result)).sum()

    return scalar


def own(scalar, x):
    """PyTorch's own value and gradient."""
    leaf = x.clone().requires_grad_()
    with warnings.catch_warnings():
        # Of arguments that are old.
        warnings.simplefilter("ignore")
        value = scalar(leaf)
    (gradient,) = torch.autograd.grad(value, leaf)
    return value.detach(), gradient.to_dense()


def by_differences(scalar, x, h=1e-5):
    units = torch.eye(x.numel(), dtype=x.dtype).view(-1, *x.shape)
    return torch.stack([(own(scalar, x + h * u)[1] - own(scalar, x - h * u)[1]).flatten() / (2 * h) for u in units])


def double_backward(scalar, x):
    """Value, gradient and Hessian by reverse mode twice."""
    leaf = x.clone().requires_grad_()
    with Substitutes():
        value = scalar(leaf)
    (gradient,) = torch.autograd.grad(value, leaf, create_graph=True)
    assert not gradient.is_sparse
    rows = [
        torch.autograd.grad(part, leaf, retain_graph=True, materialize_grads=True)[0].flatten()
        if part.requires_grad
        else torch.zeros(x.numel(), dtype=x.dtype)
        for part in gradient.flatten()
    ]
    return value.detach(), gradient.detach(), torch.stack(rows)


def forward_over_reverse(scalar, x):
    """Value, gradient and Hessian by a trace: gradient by forward mode, Hessian by forward over reverse mode."""

    def run(x, v):
        with torch.enable_grad(), Detached(), Substitutes():
            value, gradient = jvp(scalar, (x,), (v,))
            return value, gradient, jvp(grad(scalar), (x,), (v,))[1]

    with quiet_tracer():
        recorded = record(functionalize(run, remove="mutations"), [x, x + 1])
    graph = fx.GraphModule(recorded.owning_module, recorded)
    columns = [graph(x, unit) for unit in torch.eye(x.numel(), dtype=x.dtype).view(-1, *x.shape)]
    values, gradients, hessian = zip(*columns, strict=True)
    return values[0], torch.stack(gradients).view_as(x), torch.stack([column.flatten() for column in hessian])


MODES = {"double backward": double_backward, "traced": forward_over_reverse}
# PyTorch's own derivative has 1/6 in float32.
ROUNDING = {"hard sigmoid": 3e-8}


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", SMOOTH)
@pytest.mark.few(36)
def test_value_and_both_derivatives(name, mode):
    function, x = SMOOTH[name]
    scalar, before = weighted(function), x.clone()
    expected_value, expected_gradient = own(scalar, x)
    value, gradient, hessian = MODES[mode](scalar, x)
    assert torch.equal(x, before)
    torch.testing.assert_close(value, expected_value, rtol=1e-12, atol=1e-13)
    torch.testing.assert_close(gradient, expected_gradient, rtol=ROUNDING.get(name, 1e-11), atol=1e-13)
    # Rounding of the gradient over 2h, 1e-16 / 1e-5 of its size, and h^2 times third derivatives.
    scale = max(1.0, float(expected_gradient.abs().max()))
    assert (hessian - by_differences(scalar, x)).abs().max() < 2e-9 * scale


@pytest.mark.parametrize("name", KINKS)
@pytest.mark.few(8)
def test_value_and_first_derivative_at_kinks(name):
    function, x = KINKS[name]
    scalar, before = weighted(function), x.clone()
    # Norms are scaled in place by PyTorch.
    expected_value, expected_gradient = own(scalar, x.clone())
    hessians = []
    for mode in MODES.values():
        value, gradient, hessian = mode(scalar, x)
        torch.testing.assert_close(value, expected_value, rtol=1e-12, atol=1e-13)
        torch.testing.assert_close(gradient, expected_gradient, rtol=ROUNDING.get(name, 1e-11), atol=1e-13)
        hessians.append(hessian)
    assert torch.equal(x, before)
    assert hessians[0].isfinite().all()
    torch.testing.assert_close(*hessians, rtol=1e-11, atol=1e-13)


def test_every_substitute_is_in_a_case():
    called = set()

    class Listening(Substitutes):
        def __torch_function__(self, func, types, args=(), kwargs=None):
            called.add(func)
            return super().__torch_function__(func, types, args, kwargs)

    for function, x in {**SMOOTH, **KINKS}.values():
        with Listening():
            function(x)
    recurrent = {torch.lstm, torch.gru, torch.rnn_tanh, torch.rnn_relu}
    # Cases of squares are in test_squares.py.
    assert set(SUBSTITUTES) - called - set(SQUARES) == recurrent


def test_functions_are_themselves_outside_of_the_context():
    x = 40 * torch.ones(2, 2)
    with Substitutes():
        inside = F.soft_margin_loss(-x, x / 40, reduction="sum"), F.cross_entropy(x * torch.eye(2), torch.arange(2))
    assert [float(value) for value in inside] == pytest.approx([160, float(torch.tensor(-40.0).exp())], rel=1e-6)
    assert float(F.cross_entropy(x * torch.eye(2), torch.arange(2))) == 0


# What PyTorch refuses


BAD = {
    "one label for six": lambda: F.cross_entropy(torch.zeros(6, 3), torch.zeros(1, dtype=torch.long)),
    "labels in a column": lambda: F.cross_entropy(torch.zeros(6, 3), torch.zeros(6, 1, dtype=torch.long)),
    "one-hot integers": lambda: F.cross_entropy(torch.zeros(6, 3), torch.eye(6, 3, dtype=torch.long)),
    "tokens as rows": lambda: F.cross_entropy(torch.zeros(2, 5, 7), torch.zeros(2, 5, dtype=torch.long)),
    "a class too many": lambda: F.cross_entropy(torch.zeros(6, 3), torch.full((6,), 3)),
    "a class below": lambda: F.cross_entropy(torch.zeros(6, 3), torch.full((6,), -1)),
    "int32": lambda: F.cross_entropy(torch.zeros(6, 3), torch.zeros(6, dtype=torch.int32)),
    "bool": lambda: F.cross_entropy(torch.zeros(6, 3), torch.zeros(6, dtype=torch.bool)),
    "floats": lambda: F.cross_entropy(torch.zeros(6, 3), torch.zeros(6)),
    "weights of other classes": lambda: F.cross_entropy(torch.zeros(2, 3), torch.tensor([0, 1]), torch.ones(4)),
    "reduction": lambda: F.cross_entropy(torch.zeros(2, 3), torch.tensor([0, 1]), reduction="average"),
    "an index too many": lambda: F.embedding(torch.tensor([6]), TABLE),
    "indices that are floats": lambda: F.embedding(torch.tensor([1.0]), TABLE),
    "padding beyond": lambda: F.embedding(torch.tensor([1]), TABLE, padding_idx=6),
    "a bag's index too many": lambda: F.embedding_bag(torch.tensor([[6]]), TABLE),
    "no offsets": lambda: F.embedding_bag(torch.tensor([1]), TABLE),
    "offsets from one": lambda: F.embedding_bag(torch.tensor([1, 2]), TABLE, torch.tensor([1])),
    "one-hot, a class too many": lambda: F.one_hot(torch.tensor([3]), 3),
    "one-hot floats": lambda: F.one_hot(torch.tensor([1.0]), 3),
    "a mode": lambda: F.embedding_bag(torch.tensor([[1]]), TABLE, mode="median"),
    "weights of means": lambda: F.embedding_bag(torch.tensor([[1]]), TABLE, per_sample_weights=torch.ones(1, 1)),
    "negative variances": lambda: F.gaussian_nll_loss(torch.ones(2), torch.ones(2), -torch.ones(2)),
    "a negative variance": lambda: F.gaussian_nll_loss(torch.ones(2), torch.ones(2), -1.0),
    "variances of another shape": lambda: F.gaussian_nll_loss(torch.ones(2, 3), torch.ones(2, 3), torch.ones(2, 2)),
    "a margin's class too many": lambda: F.multi_margin_loss(torch.zeros(2, 3), torch.tensor([0, 3])),
    "a third power": lambda: F.multi_margin_loss(torch.zeros(2, 3), torch.tensor([0, 1]), p=3),
    "a label too many": lambda: F.multilabel_margin_loss(torch.zeros(3), torch.tensor([3, -1, 0])),
    "delta": lambda: F.huber_loss(torch.zeros(3), torch.zeros(3), delta=0.0),
    "beta": lambda: F.smooth_l1_loss(torch.zeros(3), torch.zeros(3), beta=-1.0),
    "no classes": lambda: F.cross_entropy(torch.zeros(()), torch.zeros((), dtype=torch.long)),
    "a reduction of variances": lambda: F.gaussian_nll_loss(torch.ones(2), torch.ones(2), 1.0, reduction="average"),
    "points of other dimensions": lambda: torch.cdist(torch.ones(2, 1), torch.ones(2, 3)),
    "points of integers": lambda: torch.cdist(torch.ones(2, 3).long(), torch.ones(2, 3).long()),
    "one point": lambda: torch.cdist(torch.ones(3), torch.ones(2, 3)),
    "a reduction of margins": lambda: F.soft_margin_loss(torch.zeros(3), torch.ones(3), reduction="average"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_gets_pytorchs_own_words(name):
    with pytest.raises(Exception) as expected:  # noqa: PT011 - of whatever type
        BAD[name]()
    with Substitutes(), pytest.raises(expected.type) as found:
        BAD[name]()
    assert str(found.value) == str(expected.value)


@pytest.mark.parametrize("function", [F.huber_loss, F.smooth_l1_loss])
def test_shapes_that_are_broadcast_are_warned_of_as_by_pytorch(function):
    with Substitutes(), pytest.warns(UserWarning, match="Using a target size"):
        function(torch.zeros(3, 1), torch.zeros(3))


@pytest.mark.parametrize("function", [F.embedding, F.embedding_bag])
def test_gradients_that_are_not_of_the_loss_are_refused(function):
    with Substitutes(), pytest.raises(ValueError, match="scale_grad_by_freq=True: its gradients are not those"):
        function(INDICES, TABLE, scale_grad_by_freq=True)


# Models


def text(**options):
    embed = nn.Embedding(6, 3, **options)
    return nn.Sequential(embed, nn.Flatten(), nn.Tanh(), nn.Linear(9, 4))


def bags(**options):
    return nn.Sequential(nn.EmbeddingBag(6, 3, **options), nn.Tanh(), nn.Linear(3, 4))


def old_weight_norm():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return nn.Sequential(nn.Embedding(6, 3), nn.Flatten(), nn.utils.weight_norm(nn.Linear(9, 4)), nn.Tanh())


MODELS = {
    "padding": functools.partial(text, padding_idx=0),
    "sparse": functools.partial(text, sparse=True),
    "bags": functools.partial(bags, mode="max", padding_idx=0),
    "weight norm, old hook": old_weight_norm,
    "weight norm": lambda: nn.Sequential(
        nn.Embedding(6, 3), nn.Flatten(), parametrizations.weight_norm(nn.Linear(9, 4)), nn.Tanh()
    ),
}


def gradient_of(model, x, y):
    loss = CE(model(x), y)
    return torch.cat([part.to_dense().flatten() for part in torch.autograd.grad(loss, tuple(model.parameters()))])


@pytest.mark.parametrize("name", MODELS)
def test_hessians_are_derivatives_of_the_users_own_gradients(name, mode):
    model, h = seeded(MODELS[name]).double(), 1e-5
    x, y = INDICES, torch.tensor([0, 3, 1, 1])
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_()
    operator = hesspec.Hessian(model, CE, [(x, y)])
    point = nn.utils.parameters_to_vector(model.parameters()).detach()
    units = torch.eye(len(point), dtype=torch.float64)
    found = operator @ units
    assert operator.attributes["mode"] == mode
    # The row of padding is a constant, to which nothing has a derivative: its gradient is zero, and so is its column.
    free = torch.arange(len(point)) >= (3 if name == "padding" else 0)
    columns = []
    for unit in units * free:
        sides = []
        for sign in (1, -1):
            nn.utils.vector_to_parameters(point + sign * h * unit, model.parameters())
            sides.append(gradient_of(model, x, y))
        columns.append((sides[0] - sides[1]) / (2 * h))
    assert (found - torch.stack(columns)).abs().max() < 2e-9


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, nn.RNN])
def test_fused_recurrent_networks_have_forward_mode_derivatives(kind):
    # oneDNN fuses LSTMs of float32.
    model = seeded(lambda: kind(3, 2, batch_first=True))
    names, values = zip(*model.named_parameters(), strict=True)
    x = random(2, 3, 3).float()

    def value(*weights):
        with Substitutes():
            return torch.func.functional_call(model, dict(zip(names, weights, strict=True)), (x,))[0].sum()

    point = tuple(weight.detach() for weight in values)
    tangents = tuple(torch.ones_like(weight) for weight in point)
    with quiet_tracer():
        found = jvp(value, point, tangents)[1]
    gradient = torch.autograd.grad(model(x)[0].sum(), values)
    assert float(found) == pytest.approx(float(sum(part.sum() for part in gradient)), rel=1e-5)
    assert torch.backends.mkldnn.enabled
    assert torch.backends.cudnn.enabled


class Gaussian(nn.Module):
    """Means and standard deviations."""

    def __init__(self):
        super().__init__()
        self.mean, self.scale = nn.Linear(3, 2), nn.Linear(3, 2)

    def forward(self, x):
        return self.mean(x), self.scale(x).exp()


def likelihood(outputs, targets):
    return -torch.distributions.Normal(*outputs).log_prob(targets).mean()


def test_distributions_do_not_look_at_values_while_they_are_traced(traced, monkeypatch):
    # torch.compile switches the checks off for the whole process, and another test may have used it.
    monkeypatch.setattr(torch.distributions.Distribution, "_validate_args", True)
    model = seeded(Gaussian).double()
    x, y = random(4, 3), random(4, 2, seed=1)
    operator = hesspec.Hessian(model, likelihood, [(x, y)])
    found = operator @ torch.eye(operator.shape[0], dtype=torch.float64)
    assert operator.attributes["mode"] == "traced"
    assert torch.distributions.Distribution._validate_args

    weights = tuple(weight.detach() for weight in model.parameters())

    def value(*weights):
        (a, b, c, d), z = weights, x
        return likelihood((z @ a.T + b, (z @ c.T + d).exp()), y)

    blocks = torch.autograd.functional.hessian(value, weights)
    rows = [torch.cat([part.reshape(w.numel(), -1) for part in row], 1) for row, w in zip(blocks, weights, strict=True)]
    torch.testing.assert_close(found, torch.cat(rows), rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_curvature_of_sinc_near_zero(dtype):
    x = torch.tensor([0.0, 1e-30, -1e-8, 1e-4, -1e-2, 0.1], dtype=dtype)
    with Substitutes():
        found = jvp(grad(lambda x: torch.sinc(x).sum()), (x,), (torch.ones_like(x),))[1]
        leaf = x.clone().requires_grad_()
        (slope,) = torch.autograd.grad(torch.sinc(leaf).sum(), leaf, create_graph=True)
        (other,) = torch.autograd.grad(slope.sum(), leaf)
    # sinc(x) = 1 - (pi x)^2 / 3! + (pi x)^4 / 5! - ..., differentiated twice term by term.
    u = (torch.pi * x.double()) ** 2
    terms = (1, -3 / 10, 1 / 56, -1 / 2160, 1 / 147840, -1 / 15724800, 1 / 2395008000)
    expected = -(torch.pi**2) / 3 * sum(factor * u**k for k, factor in enumerate(terms))
    for curvature in (found, other):
        torch.testing.assert_close(curvature.double(), expected, rtol=8 * torch.finfo(dtype).eps, atol=0)
