"""Convolutions as products between Fourier transforms are the same convolutions, wherever they take their place."""

import functools
import itertools
import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.fx.experimental.proxy_tensor import make_fx

import hesspec
from hesspec.operators.engine.graph import fourier, tracing
from hesspec.operators.engine.graph.fourier import Geometry, bilinear, prefer_fourier
from hesspec.operators.engine.graph.kernels import aten
from hesspec.operators.engine.graph.reuse import reuse_memory

MAPS = [(2, 2), (4, 4), (8, 8), (7, 5), (1, 6), (1, 1)]
KERNELS = [(3, 3), (1, 3), (2, 2), (5, 5), (5, 4)]
PADDINGS = [(0, 0), (1, 1), (2, 2), (0, 2), (2, 1), (3, 3), (5, 4)]
GEOMETRIES = [
    Geometry(maps, kernel, padding)
    for maps, kernel, padding in itertools.product(MAPS, KERNELS, PADDINGS)
    if all(size + 2 * pad >= taps for size, taps, pad in zip(maps, kernel, padding, strict=True))
]
# Circles with odd, even and mixed lengths, padding beyond the kernel, kernels longer than the circle, single pixels.
GRAPHS = [
    Geometry((4, 4), (3, 3), (1, 1)),
    Geometry((2, 2), (3, 3), (1, 1)),
    Geometry((1, 1), (3, 3), (1, 1)),
    Geometry((7, 5), (2, 2), (0, 1)),
    Geometry((1, 6), (1, 3), (0, 2)),
    Geometry((2, 2), (5, 5), (2, 2)),
    Geometry((5, 4), (5, 4), (0, 0)),
    Geometry((4, 3), (2, 1), (3, 2)),
]
MASKS = [
    [True, False, False],
    [False, True, False],
    [False, False, True],
    [True, True, False],
    [True, True, True],
    [False, True, True],
    [True, False, True],
]
PLAIN = ([1, 1], [1, 1], [1, 1], False, [0, 0], 1)
convolve = functools.partial(F.conv2d, padding=1)


@pytest.fixture
def always(monkeypatch):
    """Transforms pay wherever they can be had: direct convolutions are taken for a thousand million times as slow."""
    monkeypatch.setattr(fourier, "direct_speed", lambda: 1e-9)


def rewritten(function, *inputs, nodes=set):
    """The function's graph with transforms, as a function; and its operations. `nodes` chooses those to be changed."""
    traced = make_fx(function, tracing_mode="fake")(*inputs)
    traced.graph.eliminate_dead_code()
    prefer_fourier(traced.graph, nodes(traced.graph.nodes))
    traced.graph.lint()
    traced.recompile()
    return traced, [node.target for node in traced.graph.nodes]


def check(function, *inputs, nodes=set):
    """The rewritten function gives the same numbers in the same layout; its operations."""
    before = [tensor.clone() for tensor in inputs]
    traced, targets = rewritten(function, *inputs, nodes=nodes)
    expected, found = function(*inputs), traced(*inputs)
    pairs = zip(expected, found, strict=True) if isinstance(expected, list | tuple) else [(expected, found)]
    for one, other in pairs:
        torch.testing.assert_close(other, one)
        assert other.stride() == one.stride()
    assert all(torch.equal(a, b) for a, b in zip(before, inputs, strict=True))
    return targets


def random(*shapes, dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype) for shape in shapes]


def problem(geometry=GRAPHS[0], samples=6, inputs=3, outputs=5, dtype=torch.float64):
    """Inputs, a weight, a bias, and a gradient of the outputs."""
    pixels = [
        size + 2 * pad - taps + 1
        for size, taps, pad in zip(geometry.maps, geometry.kernel, geometry.padding, strict=True)
    ]
    return random(
        (samples, inputs, *geometry.maps),
        (outputs, inputs, *geometry.kernel),
        (outputs,),
        (samples, outputs, *pixels),
        dtype=dtype,
    )


def gradients(mask, options=PLAIN):
    """Gradients by those of input, weight and bias that are wanted."""

    def function(x, w, g):
        all_three = aten.convolution_backward.default(g, x, w, [g.shape[1]], *options, mask)
        return [part for part, wanted in zip(all_three, mask, strict=True) if wanted]

    return function


# The bilinear form


@pytest.mark.parametrize("geometry", GEOMETRIES, ids=str)
def test_the_form_is_the_padded_correlation_and_its_gradients(geometry):
    x, w, _, g = problem(geometry, samples=2, inputs=3, outputs=4)
    b, c, a = (torch.from_numpy(matrix) for matrix in bilinear(geometry))
    x.requires_grad_()
    w.requires_grad_()
    y = F.conv2d(x, w, padding=geometry.padding)
    by_x, by_w = torch.autograd.grad(y, (x, w), g)
    x, w, g = (torch.einsum("tp,abp->tab", matrix, part.flatten(2)) for matrix, part in ((b, x), (c, w), (a, g)))

    for found, truth in [
        (torch.einsum("tni,toi,tq->noq", x, w, a), y),
        (torch.einsum("tno,toi,tp->nip", g, w, b), by_x),
        (torch.einsum("tno,tni,tu->oiu", g, x, c), by_w),
    ]:
        assert torch.linalg.norm(found - truth.flatten(2)) <= 1e-12 * torch.linalg.norm(truth)


def test_two_opposite_frequencies_take_three_products_and_their_own_opposites_one():
    for geometry in GEOMETRIES:
        lengths = [size + pad for size, pad in zip(geometry.maps, geometry.padding, strict=True)]
        own = math.prod(2 - length % 2 for length in lengths)
        assert {len(matrix) for matrix in bilinear(geometry)} == {(3 * math.prod(lengths) - own) // 2}


@pytest.mark.parametrize(("size", "products"), [(2, 13), (4, 37), (8, 121)])
def test_number_of_products_of_3x3(size, products):
    assert len(bilinear(Geometry((size, size), (3, 3), (1, 1))).inputs) == products


# Rounding


@pytest.mark.usefixtures("always")
@pytest.mark.parametrize("size", [2, 4, 8])
def test_float32_has_the_error_that_roundings_add_up_to(size):
    """Within twice what independent roundings give.

    A rounding is an error of u / m, uniform on both sides, for a mantissa m between 1 and 2: of mean square
    u^2 E[1 / 3 m^2] = 0.18 u^2, m being distributed as 1 / m. A sum of n random terms, one after the other, rounds
    partial sums whose mean squares are 1, ..., n times a term's, the last being the result's: 0.09 n u^2 of it. Terms
    and entries of a matrix are rounded as well, 0.36 u^2. So are both transforms and the product between them, and what
    these three sum to is doubled: of three products in the place of four, k1 - k3 and k1 + k2 have the errors of two,
    each as large as the result. The transform back has t terms.
    """
    x, w, _, g = problem(Geometry((size, size), (3, 3), (1, 1)), samples=32, inputs=64, outputs=64, dtype=torch.float32)

    def function(x, w, g):
        return [convolve(x, w), *gradients([True, True, False])(x, w, g)]

    found = rewritten(function, x, w, g)[0](x, w, g)
    truth = function(x.double(), w.double(), g.double())
    pixels, taps, products = size**2, 9, (3 * (size + 1) ** 2 - 1) // 2
    for one, other, terms in [
        (found[0], truth[0], pixels + taps + 64),
        (found[1], truth[1], pixels + taps + 64),
        (found[2], truth[2], pixels + pixels + 32),
    ]:
        expected = 2**-24 * math.sqrt(2 * (0.09 * terms + 3 * 0.36) + 0.09 * products + 0.36)
        assert torch.linalg.norm(one.double() - other) <= 2 * expected * torch.linalg.norm(other)


# The graph


@pytest.mark.usefixtures("always")
@pytest.mark.parametrize("geometry", GRAPHS, ids=str)
@pytest.mark.parametrize("mask", MASKS)
def test_convolutions_and_gradients(geometry, mask):
    x, w, b, g = problem(geometry)
    options = [1, 1], list(geometry.padding), [1, 1], False, [0, 0], 1

    def function(x, w, b, g):
        with_bias = aten.convolution.default(x, w, b, *options)
        return [with_bias, aten.convolution.default(x, w, None, *options), *gradients(mask, options)(x, w, g)]

    targets = check(function, x, w, b, g)
    assert aten.convolution.default not in targets
    # The sum over all pixels that is the gradient of a bias has no use for a transform.
    assert (aten.convolution_backward.default in targets) == (mask == [False, False, True])


@pytest.mark.usefixtures("always")
@pytest.mark.parametrize("sizes", [(1, 3, 5), (6, 1, 5), (6, 3, 1), (1, 1, 1)])
def test_single_samples_and_channels(sizes):
    x, w, b, g = problem(GRAPHS[0], *sizes)
    targets = check(lambda x, w, b, g: [convolve(x, w, b), *gradients([True, True, True])(x, w, g)], x, w, b, g)
    assert not {aten.convolution.default, aten.convolution_backward.default} & set(targets)


@pytest.mark.usefixtures("always")
def test_dtypes_have_matrices_of_their_own():
    x, w, _, _ = problem()
    targets = check(lambda x, w, x32, w32: (convolve(x, w), convolve(x32, w32)), x, w, x.float(), w.float())
    assert aten.convolution.default not in targets


@pytest.mark.usefixtures("always")
def test_a_tensor_is_transformed_once():
    x, w, _, g = problem()
    (other,) = random(w.shape)
    targets = check(lambda x, w, other: (convolve(x, w), convolve(x, other)), x, w, other)
    # Three transforms and two back.
    assert targets.count(aten.mm.default) == 3 + 2
    # Gradients take the same three.
    targets = check(lambda x, w, g: [convolve(x, w), *gradients([True, True, False])(x, w, g)], x, w, g)
    assert targets.count(aten.mm.default) == 3 + 3
    # On another circle, it is another transform.
    targets = check(lambda x, w: (convolve(x, w), F.conv2d(x, w)), x, w)
    assert targets.count(aten.mm.default) == 4 + 2


@pytest.mark.usefixtures("always")
def test_only_nodes_that_may_be_changed_are():
    x, w, _, _ = problem()
    (dw,) = random(w.shape)

    def second(nodes):
        return set([node for node in nodes if node.target is aten.convolution.default][1:])

    targets = check(lambda x, w, dw: (convolve(x, w), convolve(x, dw)), x, w, dw, nodes=second)
    assert targets.count(aten.convolution.default) == 1
    assert targets.count(aten.bmm.default) == 1
    targets = check(lambda x, w, dw: (convolve(x, w), convolve(x, dw)), x, w, dw, nodes=lambda _: set())
    assert targets.count(aten.convolution.default) == 2
    assert aten.mm.default not in targets


@pytest.mark.usefixtures("always")
def test_a_sum_that_may_not_be_changed_stays():
    x, w, _, _ = problem()
    (dw,) = random(w.shape)

    def convolutions(nodes):
        return {node for node in nodes if node.target is aten.convolution.default}

    targets = check(lambda x, w, dw: convolve(x, w) + convolve(x, dw), x, w, dw, nodes=convolutions)
    assert targets.count(aten.bmm.default) == 2
    assert aten.add.Tensor in targets


# Sums


def pair():
    """Inputs, a weight, a bias, a gradient of the outputs, and tangents of the four."""
    shapes = [tensor.shape for tensor in problem()]
    return random(*shapes, *shapes)


@pytest.mark.usefixtures("always")
@pytest.mark.parametrize(
    ("function", "transforms"),
    [
        (lambda x, w, b, g, dx, dw, db, dg: convolve(x, dw) + convolve(dx, w), 4),
        (lambda x, w, b, g, dx, dw, db, dg: convolve(x, dw, db) + convolve(dx, w), 4),
        (lambda x, w, b, g, dx, dw, db, dg: convolve(x, dw) + convolve(dx, w, db), 4),
        (lambda x, w, b, g, dx, dw, db, dg: convolve(x, dw) + convolve(x, w), 3),
        (lambda x, w, b, g, dx, dw, db, dg: (convolve(x, dw) + convolve(dx, w, b)) + convolve(x, w), 4),
        (lambda x, w, b, g, dx, dw, db, dg: convolve(x, dw) + (convolve(dx, w, b) + convolve(x, w)), 4),
        (lambda x, w, b, g, dx, dw, db, dg: by_input(dg, x, w) + by_input(g, x, dw), 4),
        (lambda x, w, b, g, dx, dw, db, dg: by_weight(dg, x, w) + by_weight(g, dx, w), 4),
    ],
)
def test_sums_are_taken_before_the_transform_back(function, transforms):
    targets = check(function, *pair())
    assert aten.baddbmm.default in targets
    assert targets.count(aten.bmm.default) == 1
    assert targets.count(aten.mm.default) == transforms + 1


def by_input(g, x, w):
    return gradients([True, False, False])(x, w, g)[0]


def by_weight(g, x, w):
    return gradients([False, True, False])(x, w, g)[0]


def twice(x, w, b, g, dx, dw, db, dg):
    y = convolve(x, w)
    return y + y


def used_again(x, w, b, g, dx, dw, db, dg):
    y = convolve(x, dw)
    return y + convolve(dx, w), y * 2.0


def returned(x, w, b, g, dx, dw, db, dg):
    y = convolve(x, dw)
    return convolve(dx, w) + y, y


def of_two_sums(x, w, b, g, dx, dw, db, dg):
    return (convolve(x, w) + convolve(x, dw)) + (convolve(dx, w) + convolve(dx, dw))


def of_two_sides(x, w, b, g, dx, dw, db, dg):
    """With three channels to three, outputs and gradients of inputs are alike in shape."""
    return convolve(x, w[:3]) + by_input(dx, x, w[:3])


@pytest.mark.usefixtures("always")
@pytest.mark.parametrize(
    ("function", "products"),
    [
        (twice, 1),
        (used_again, 2),
        (returned, 2),
        (lambda x, w, b, g, dx, dw, db, dg: torch.add(convolve(x, dw), convolve(dx, w), alpha=2), 2),
        (lambda x, w, b, g, dx, dw, db, dg: convolve(x, dw, db) + convolve(dx, w, b), 2),
        # Kernels of other sizes, other paddings, and another side of the same geometry.
        (lambda x, w, b, g, dx, dw, db, dg: convolve(x, w) + F.conv2d(dx, dw[..., :1, :], padding=(0, 1)), 2),
        (lambda x, w, b, g, dx, dw, db, dg: convolve(x, w) + F.conv2d(F.pad(dx, (1, 1, 1, 1)), dw), 2),
        (of_two_sides, 2),
        # What is no convolution.
        (lambda x, w, b, g, dx, dw, db, dg: convolve(x, w) + g, 1),
        (lambda x, w, b, g, dx, dw, db, dg: g + convolve(x, w), 1),
        (lambda x, w, b, g, dx, dw, db, dg: convolve(x, w) + 1.0, 1),
        (lambda x, w, b, g, dx, dw, db, dg: convolve(x, w) - convolve(x, dw), 2),
    ],
)
def test_sums_that_stay(function, products):
    targets = check(function, *pair())
    assert aten.baddbmm.default not in targets
    assert targets.count(aten.bmm.default) == products
    assert {aten.add.Tensor, aten.sub.Tensor} & set(targets)


@pytest.mark.usefixtures("always")
def test_sums_of_two_sums_are_right():
    check(of_two_sums, *pair())


# What stays as it is


@pytest.mark.usefixtures("always")
@pytest.mark.parametrize(
    ("input_shape", "weight_shape", "options"),
    [
        ((6, 3, 8, 8), (5, 3, 3, 3), ([2, 2], [1, 1], [1, 1], False, [0, 0], 1)),
        ((6, 3, 8, 8), (5, 3, 3, 3), ([1, 2], [1, 1], [1, 1], False, [0, 0], 1)),
        ((6, 3, 8, 8), (5, 3, 3, 3), ([1, 1], [2, 2], [2, 2], False, [0, 0], 1)),
        ((6, 4, 4, 4), (6, 2, 3, 3), ([1, 1], [1, 1], [1, 1], False, [0, 0], 2)),
        ((6, 3, 4, 4), (3, 1, 3, 3), ([1, 1], [1, 1], [1, 1], False, [0, 0], 3)),
        ((6, 3, 4, 4), (5, 3, 1, 1), ([1, 1], [0, 0], [1, 1], False, [0, 0], 1)),
        ((6, 3, 4, 4), (3, 5, 3, 3), ([1, 1], [1, 1], [1, 1], True, [0, 0], 1)),
        ((6, 3, 8), (5, 3, 3), ([1], [1], [1], False, [0], 1)),
        ((6, 3, 2, 2, 2), (5, 3, 3, 3, 3), ([1, 1, 1], [1, 1, 1], [1, 1, 1], False, [0, 0, 0], 1)),
    ],
)
def test_other_convolutions(input_shape, weight_shape, options):
    x, w = random(input_shape, weight_shape)
    (g,) = random(aten.convolution.default(x, w, None, *options).shape)

    def function(x, w, g):
        return [aten.convolution.default(x, w, None, *options), *gradients([True, True, False], options)(x, w, g)]

    targets = check(function, x, w, g)
    assert aten.convolution.default in targets
    assert aten.convolution_backward.default in targets
    assert aten.mm.default not in targets


@pytest.mark.usefixtures("always")
@pytest.mark.parametrize("formats", [(True, False), (False, True), (True, True)])
def test_channels_last(formats):
    x, w, b, g = problem()
    x, w = (
        tensor.to(memory_format=torch.channels_last) if last else tensor
        for tensor, last in zip((x, w), formats, strict=True)
    )
    check(convolve, x, w, b)
    g = g.to(memory_format=torch.channels_last)
    for mask in MASKS:
        check(gradients(mask), x, w, g)


@pytest.mark.usefixtures("always")
def test_inputs_that_are_views():
    x, w, _, g = problem()
    x, w, g = (tensor.transpose(0, 1).contiguous() for tensor in (x, w, g))

    def function(x, w, g):
        x, w, g = (tensor.transpose(0, 1) for tensor in (x, w, g))
        return [convolve(x, w), *gradients([True, True, False])(x, w, g)]

    check(function, x, w, g)


# The choice


@pytest.mark.parametrize("speed", [1.6, 2.9])
@pytest.mark.parametrize(
    ("samples", "inputs", "outputs", "size", "pays"),
    [(256, 256, 256, 8, True), (64, 3, 64, 32, False), (64, 8, 8, 32, False), (1, 512, 512, 2, False)],
)
def test_transforms_are_chosen_where_they_pay(samples, inputs, outputs, size, pays, speed, monkeypatch):
    monkeypatch.setattr(fourier, "direct_speed", lambda: speed)
    x, g = torch.empty(samples, inputs, size, size), torch.empty(samples, outputs, size, size)
    w = torch.empty(outputs, inputs, 3, 3)
    _, targets = rewritten(lambda x, w, g: [convolve(x, w), *gradients([True, True, False])(x, w, g)], x, w, g)
    assert (aten.bmm.default in targets) == pays
    assert (aten.convolution.default in targets) != pays
    assert (aten.convolution_backward.default in targets) != pays


def test_a_faster_direct_convolution_needs_more_work_to_be_replaced(monkeypatch):
    x, w, _, _ = problem(Geometry((4, 4), (3, 3), (1, 1)), samples=64, inputs=64, outputs=64, dtype=torch.float32)
    chosen = []
    for speed in (1e-9, 1.0, 2.0, 4.0, 8.0, math.inf):
        monkeypatch.setattr(fourier, "direct_speed", lambda speed=speed: speed)
        chosen.append(aten.bmm.default in rewritten(convolve, x, w)[1])
    assert chosen[0]
    assert not chosen[-1]
    assert chosen == sorted(chosen, reverse=True)


# Memory


@pytest.mark.usefixtures("always")
def test_sums_are_added_into_memory_that_is_there():
    inputs = pair()

    def function(x, w, b, g, dx, dw, db, dg):
        return convolve(x, dw, db) + convolve(dx, w), by_weight(dg, x, w) + by_weight(g, dx, w)

    traced, _ = rewritten(function, *inputs)
    before, first = [tensor.clone() for tensor in inputs], traced(*inputs)
    reuse_memory(traced.graph)
    traced.recompile()
    targets = [node.target for node in traced.graph.nodes]
    assert targets.count(aten.baddbmm_.default) == 2
    assert aten.baddbmm.default not in targets
    for again in (traced(*inputs), traced(*inputs)):
        assert all(torch.equal(one, other) for one, other in zip(first, again, strict=True))
    assert all(torch.equal(a, b) for a, b in zip(before, inputs, strict=True))


# Operators


class Network(nn.Module):
    """Maps of 8x8, 4x4 and 2x2, convolutions with a bias and without, and a shortcut."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(2, 3, 3, padding=1, bias=False), nn.BatchNorm2d(3), nn.ReLU())
        self.block = nn.Sequential(nn.Conv2d(3, 3, 3, padding=1), nn.ReLU())
        self.last = nn.Conv2d(3, 4, 3, padding=1)
        self.head = nn.Linear(4, 3)

    def forward(self, x):
        x = F.avg_pool2d(self.stem(x), 2)
        x = F.avg_pool2d(x + self.block(x), 2)
        return self.head(torch.tanh(self.last(x)).mean((2, 3)))


def network(sizes):
    """A network in the state of evaluation, after training as it were, and batches of these sizes."""
    torch.manual_seed(0)
    model = Network().double().eval()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.uniform_(-0.3, 0.3)
            module.running_var.uniform_(0.5, 1.5)
    return model, [(torch.randn(size, 2, 8, 8, dtype=torch.float64), torch.randint(3, (size,))) for size in sizes]


@pytest.fixture
def transformed(monkeypatch):
    """Sizes of maps that were transformed."""
    found = set()
    monkeypatch.setattr(fourier, "bilinear", lambda geometry: found.add(geometry.maps) or bilinear(geometry))
    return found


def product(matrix, speed, monkeypatch, sizes=(5, 3)):
    """An operator whose convolutions are transformed at this speed, vectors, and its products with them."""
    monkeypatch.setattr(fourier, "direct_speed", lambda: speed)
    model, data = network(sizes)
    operator = getattr(hesspec, matrix)(model, nn.CrossEntropyLoss(), data)
    (v,) = random((operator.shape[0], 3))
    result = operator @ v
    assert operator.attributes["mode"] == "traced"
    return operator, v, result


@pytest.mark.usefixtures("traced")
@pytest.mark.parametrize("matrix", ["Hessian", "GaussNewton", "Residual", "GaussNewtonWithin"])
@pytest.mark.few(2)
def test_products_with_transforms(matrix, transformed, monkeypatch):
    _, _, direct = product(matrix, math.inf, monkeypatch)
    assert not transformed
    operator, v, found = product(matrix, 1e-9, monkeypatch)
    assert transformed == {(8, 8), (4, 4), (2, 2)}
    # What is kept of the primal pass is as it was.
    assert torch.equal(operator @ v, found)
    for one, other in zip(found.T, direct.T, strict=True):
        assert torch.linalg.norm(one - other) <= 1e-10 * torch.linalg.norm(other)


@pytest.mark.usefixtures("traced")
def test_memory_used_again_changes_no_bit(monkeypatch):
    _, _, first = product("GaussNewton", 1e-9, monkeypatch, sizes=(5,))
    monkeypatch.setattr(tracing, "reuse_memory", lambda graph: graph)
    assert torch.equal(product("GaussNewton", 1e-9, monkeypatch, sizes=(5,))[2], first)


@pytest.mark.usefixtures("traced")
def test_a_second_checkpoint_has_transforms_of_its_own_weights(monkeypatch):
    monkeypatch.setattr(fourier, "direct_speed", lambda: 1e-9)
    (model, data), loss, graphs = network((5,)), nn.CrossEntropyLoss(), hesspec.GraphCache(points=2)
    first = hesspec.GaussNewton(model, loss, data, graphs=graphs)
    (v,) = random((first.shape[0],))
    before = first @ v
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.1)
    second = hesspec.GaussNewton(model, loss, data, graphs=graphs) @ v
    assert torch.equal(second, hesspec.GaussNewton(model, loss, data) @ v)
    assert not torch.allclose(second, before)
    assert torch.equal(first @ v, before)


@pytest.mark.usefixtures("always")
@pytest.mark.parametrize("last", [(True, False), (False, True), (True, True)])
@pytest.mark.parametrize("mask", MASKS)
def test_channels_last_with_contiguous_gradients(last, mask):
    x, w, _, g = problem()
    x, w = (t.to(memory_format=torch.channels_last) if is_last else t for t, is_last in zip((x, w), last, strict=True))
    check(gradients(mask), x, w, g)


@pytest.mark.usefixtures("always")
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_sums_that_broadcast_or_promote(dtype):
    x, w, _, _ = problem()

    def function(x, w):
        return F.conv2d(x, w, padding=[1]) + F.conv2d(x.to(dtype), w[:1].to(dtype), padding=1)

    traced, _ = rewritten(function, x, w)
    # 27 products, of numbers of order 1, in a sum.
    torch.testing.assert_close(traced(x, w), function(x, w), rtol=0, atol=100 * torch.finfo(dtype).eps)


@pytest.mark.usefixtures("always", "traced")
def test_what_all_batches_share_is_held_once():
    """Transformed weights depend on no batch: held and predicted once, whatever the number of batches of a shape."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(2, 6, 3, padding=1), nn.Tanh(), nn.Conv2d(6, 5, 3, padding=1), nn.Flatten()
    ).double()
    x, y = torch.randn(12, 2, 4, 4).double(), torch.randint(80, (12,))
    batches = list(zip(x.split(4), y.split(4), strict=True))
    operator = hesspec.Hessian(model, nn.CrossEntropyLoss(), batches)
    v = torch.randn(operator.shape[0], dtype=torch.float64)
    torch.testing.assert_close(operator @ v, hesspec.Hessian(model, nn.CrossEntropyLoss(), [(x, y)]) @ v)
    built = operator._passes()
    sizes = [built.bytes(batch) for batch in operator._risk.batches]
    for batch in operator._risk.batches:
        built.build(batch)
    ((shared, held),) = built._shared.items()
    # Parameters, and the matrices of the transforms, which are the trace's.
    given = {tensor.untyped_storage().data_ptr() for tensor in (*built._fixed, *shared.__self__.buffers())}
    storages = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in held}
    assert sum(size for place, size in storages.items() if place not in given) == sizes[0].shared
    # 37 products for each pair of channels: of the second layer's weight, beside which there is nothing to share.
    assert 37 * 6 * 5 * 8 <= sizes[0].shared < 37 * 6 * 5 * 8 * 1.5
