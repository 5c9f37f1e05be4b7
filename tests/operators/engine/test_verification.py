"""Products are compared with a truth that shares no code with them: a wrong rule, put in anywhere, is caught."""

import contextlib
import math
import warnings
import weakref

import pytest
import torch
import torch.nn.functional as F
from cases import MATRICES, mlp, seeded
from reference import gauss_newton_of, hessian_of
from torch import nn
from torch.autograd.graph import get_gradient_edge
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import hesspec
from hesspec.operators import hessian
from hesspec.operators.engine import passes
from hesspec.operators.engine.differences import Differences
from hesspec.operators.engine.graph import tracing
from hesspec.operators.engine.verification import VERIFICATION_BYTES
from hesspec.operators.model import substitutes


def problem(dtype=torch.float32):
    model = seeded(lambda: nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, 3)))
    torch.manual_seed(1)
    data = [(torch.randn(n, 5).to(dtype), torch.randint(3, (n,))) for n in (12, 9)]
    return model.to(dtype), nn.CrossEntropyLoss(), data


def dense(operator):
    return operator @ torch.eye(operator.shape[0], dtype=operator.dtype)


def truth(model, loss_fn, data):
    """Hessian of the loss of all data as one batch, by double backward of plain PyTorch in float64."""
    model = model.double()
    x, y = (torch.cat(part) for part in zip(*data, strict=True))
    parameters = list(model.parameters())
    gradient = torch.autograd.grad(loss_fn(model(x.double()), y), parameters, create_graph=True)
    rows = []
    for part in gradient:
        for entry in part.flatten():
            found = torch.autograd.grad(entry, parameters, retain_graph=True, materialize_grads=True)
            rows.append(torch.cat([block.flatten() for block in found]))
    return torch.stack(rows)


def close(found, exact, tolerance):
    return float((found.double() - exact).norm() / exact.norm()) < tolerance


@pytest.mark.parametrize("matrix", MATRICES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("way", passes.WAYS)
@pytest.mark.few(8)
def test_every_way_is_verified_and_says_by_how_much(matrix, dtype, way):
    operator = getattr(hesspec, matrix)(*problem(dtype), mode=way)
    exact = getattr(hesspec, matrix)(*problem(torch.float64), mode="double backward")
    assert close(dense(operator), dense(exact), 2e-6 if dtype == torch.float32 or way == "differences" else 1e-12)
    assert operator.attributes["mode"] == way
    assert "verified" in operator.attributes["mode_reason"]


def test_without_verification_the_result_says_nothing_of_one():
    operator = hesspec.Hessian(*problem(), verify=False)
    dense(operator)
    assert "verified" not in operator.attributes["mode_reason"]


class Doubled(torch.autograd.Function):
    """tanh whose backward pass is right, and whose derivative in turn is wrong by a factor."""

    factor = 1.01

    @staticmethod
    def forward(ctx, x):
        y = torch.tanh(x)
        ctx.save_for_backward(y)
        return y

    @staticmethod
    def backward(ctx, g):
        (y,) = ctx.saved_tensors
        return _Slope.apply(y, g)


class _Slope(torch.autograd.Function):
    @staticmethod
    def forward(ctx, y, g):
        ctx.save_for_backward(y, g)
        return g * (1 - y * y)

    @staticmethod
    def backward(ctx, h):
        y, g = ctx.saved_tensors
        return -2 * y * g * h * Doubled.factor, h * (1 - y * y)


class Custom(nn.Module):
    def __init__(self, function) -> None:
        super().__init__()
        self.a, self.b, self.function = nn.Linear(5, 7), nn.Linear(7, 3), function

    def forward(self, x):
        return self.b(self.function(self.a(x)))


class Once(torch.autograd.Function):
    """A square whose backward pass must not be differentiated: the second derivative is lost without a word."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x * x

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, g):
        (x,) = ctx.saved_tensors
        return 2 * x * g


@pytest.mark.parametrize(
    ("function", "plain"),
    [(Doubled.apply, torch.tanh), (Once.apply, torch.square)],
    ids=["wrong second derivative", "once differentiable"],
)
@pytest.mark.parametrize("params", [None, ["a.*"]])
@pytest.mark.few(2)
def test_a_wrong_second_derivative_is_replaced_by_differences(function, plain, params):
    _, loss, data = problem()
    model = seeded(lambda: Custom(function))
    with pytest.warns(UserWarning, match="central differences of gradients"):
        operator = hesspec.Hessian(model, loss, data, params)
        found = dense(operator)
    exact = dense(hesspec.Hessian(seeded(lambda: Custom(plain)).double(), loss, _doubled(data), params))
    assert operator.attributes["mode"] == "differences"
    assert close(found, exact, 2e-6)


def _doubled(data):
    return [(x.double(), y) for x, y in data]


def test_a_spectrum_by_differences_has_bounds_that_hold():
    _, loss, data = problem()
    with pytest.warns(UserWarning, match="central differences of gradients"):
        found = hesspec.spectrum(hesspec.Hessian(seeded(lambda: Custom(Once.apply)), loss, data), steps=40)
    exact = hesspec.Hessian(seeded(lambda: Custom(torch.square)).double(), loss, _doubled(data))
    eigenvalues = torch.linalg.eigvalsh(dense(exact)).numpy()
    assert len(found.eigenvalues) > 3
    for value, bound in zip(found.eigenvalues, found.error_bounds, strict=True):
        assert abs(eigenvalues - value).min() <= bound


def test_a_rule_that_is_wrong_in_the_trace_falls_back_to_double_backward(monkeypatch):
    def scaled(graph):
        # The first tanh is counted a little more than once where it is used.
        for node in graph.nodes:
            if (node.op == "call_function" and "tanh_backward" in str(node.target)) or "mm" in str(node.target):
                with graph.inserting_after(node):
                    more = graph.call_function(torch.ops.aten.mul.Tensor, (node, 1.001))
                    more.meta = node.meta
                node.replace_all_uses_with(more, delete_user_cb=lambda user, more=more: user is not more)
                return

    monkeypatch.setattr(tracing, "simplify", scaled)
    monkeypatch.setattr(passes, "trace_pays", lambda *_, **__: (True, "forced"))
    operator = hesspec.Hessian(*problem())
    found = dense(operator)
    assert operator.attributes["mode"] == "double backward"
    assert "not traced: error" in operator.attributes["mode_reason"]
    assert close(found, truth(*problem()), 2e-6)


def test_a_rule_that_is_wrong_in_double_backward_is_not_taken(monkeypatch):
    right = hessian.differentiate_gradient

    def wrong(value, leaves):
        apply = right(value, leaves)
        return lambda tangents: [1.001 * part for part in apply(tangents)]

    monkeypatch.setattr(hessian, "differentiate_gradient", wrong)
    monkeypatch.setattr(passes, "trace_pays", lambda *_, **__: (False, "forced"))
    with pytest.warns(UserWarning, match="central differences of gradients"):
        operator = hesspec.Hessian(*problem())
        found = dense(operator)
    assert operator.attributes["mode"] == "differences"
    assert close(found, truth(*problem()), 2e-6)


@pytest.mark.parametrize("block", [0, 1, 2, 3])
@pytest.mark.few(2)
def test_a_block_that_is_left_out_is_noticed(monkeypatch, block):
    right = hessian.differentiate_gradient

    def wrong(value, leaves):
        apply = right(value, leaves)
        return lambda tangents: [
            torch.zeros_like(part) if i == block else part for i, part in enumerate(apply(tangents))
        ]

    monkeypatch.setattr(hessian, "differentiate_gradient", wrong)
    monkeypatch.setattr(passes, "trace_pays", lambda *_, **__: (False, "forced"))
    with pytest.warns(UserWarning, match="central differences of gradients"):
        operator = hesspec.Hessian(*problem())
        dense(operator)
    assert operator.attributes["mode"] == "differences"


def test_a_substituted_function_that_is_wrong_is_not_taken(monkeypatch):
    def smoothed(*args, **kwargs):
        return F.cross_entropy(*args, **{**kwargs, "label_smoothing": 0.01})

    table = {**substitutes.SUBSTITUTES, F.cross_entropy: smoothed}
    monkeypatch.setattr(substitutes.Substitutes.__init__, "__defaults__", (table,))
    with pytest.warns(UserWarning, match="central differences of gradients"):
        operator = hesspec.Hessian(*problem())
        found = dense(operator)
    assert operator.attributes["mode"] == "differences"
    assert close(found, truth(*problem()), 2e-6)


def test_a_penalty_on_the_weights_within_the_loss_counts():
    model, _, data = problem(torch.float64)

    def loss(outputs, targets):
        penalty = sum(parameter.pow(2).sum() for parameter in model.parameters())
        return F.cross_entropy(outputs, targets) + 0.5 * penalty

    plain = dense(hesspec.Hessian(model, nn.CrossEntropyLoss(), data))
    identity = torch.eye(len(plain), dtype=torch.float64)
    for mode in ("traced", "double backward in place", "differences"):
        tolerance = 1e-6 if mode == "differences" else 1e-12
        assert close(dense(hesspec.Hessian(model, loss, data, mode=mode)), plain + identity, tolerance)
    whole, part, rest = (dense(getattr(hesspec, name)(model, loss, data)) for name in MATRICES)
    assert close(part + rest, whole, 1e-12)
    assert close(part, dense(hesspec.GaussNewton(model, nn.CrossEntropyLoss(), data)), 1e-12)


def test_a_model_that_is_called_around_its_argument_is_run_in_place():
    """A loss that calls the model by itself: what is differentiated is the user's own module."""
    model, _, data = problem(torch.float64)
    clean = [x for x, _ in data]

    def consistency(outputs, targets):
        return F.cross_entropy(outputs, targets) + (model(clean[0]) ** 2).mean()

    operator = hesspec.Hessian(model, consistency, data)
    found = dense(operator)
    extra = dense(hesspec.Hessian(model, lambda o, _: (o**2).mean(), [(clean[0], clean[0])]))
    plain = dense(hesspec.Hessian(model, nn.CrossEntropyLoss(), data))
    assert close(found, plain + extra, 1e-9)


def test_no_two_ways_that_agree_are_an_error_that_names_parameters():
    class Noisy(torch.autograd.Function):
        """A gradient with noise in it, and no second derivative."""

        @staticmethod
        def forward(ctx, x):
            ctx.save_for_backward(x)
            return torch.sin(x)

        @staticmethod
        @torch.autograd.function.once_differentiable
        def backward(ctx, g):
            (x,) = ctx.saved_tensors
            return g * torch.cos(x) * (1 + 0.1 * torch.sin(1e13 * x.double()).to(x.dtype))

    _, loss, data = problem()
    with (
        pytest.raises(ValueError, match=r"can be trusted.*Parameters that differ most: a\."),
        pytest.warns(UserWarning, match="central differences"),
    ):
        dense(hesspec.Hessian(seeded(lambda: Custom(Noisy.apply)), loss, data))


def test_kinks_do_not_mislead_verification():
    """Many units, some of which are exactly at their kink, as those without a bias are on black pixels."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1, bias=False), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(8 * 36, 4)
    )
    images = torch.randn(16, 1, 12, 12)
    images[:, :, :4], images[:, :, -4:] = 0, 0
    operator = hesspec.Hessian(model, nn.CrossEntropyLoss(), [(images, torch.randint(4, (16,)))])
    operator @ torch.ones(operator.shape[0])
    assert operator.attributes["mode"] in ("traced", "double backward")
    assert "against central differences" in operator.attributes["mode_reason"]


def test_what_a_model_loses_in_low_precision_is_stated_and_in_the_bounds():
    class Rounded(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(5, 7), nn.Linear(7, 3)

        def forward(self, x):
            return self.b(torch.tanh(self.a(x)).to(torch.bfloat16).to(x.dtype))

    _, loss, data = problem()
    operator = hesspec.Hessian(seeded(Rounded), loss, data)
    exact = dense(hesspec.Hessian(seeded(lambda: Custom(torch.tanh)).double(), loss, _doubled(data)))
    v = torch.randn(operator.shape[0], generator=torch.Generator().manual_seed(3))
    error = float((operator @ v - exact.float() @ v).norm() / (exact.float() @ v).norm())
    assert 1e-5 < operator.product_error < 0.1
    assert error < operator.product_error
    found = hesspec.spectrum(operator, steps=20)
    eigenvalues = torch.linalg.eigvalsh(exact).numpy()
    assert math.isclose(found.eigenvalues[0], eigenvalues[abs(eigenvalues).argmax()], rel_tol=0.05)
    assert found.error_bounds[0] > 0.1 * operator.product_error * found.eigenvalues[0]


def test_verification_leaves_the_number_of_products_alone():
    operator = hesspec.Hessian(mlp(), nn.CrossEntropyLoss(), [(torch.randn(4, 5), torch.randint(4, (4,)))])
    operator @ torch.ones(operator.shape[0])
    assert operator.matvecs == 1


class Padded(nn.Module):
    """Its padding counts, as where a mean over tokens has no mask."""

    def __init__(self) -> None:
        super().__init__()
        self.e, self.h = nn.Embedding(12, 4, padding_idx=0), nn.Linear(4, 3)

    def forward(self, tokens):
        return self.h(torch.tanh(self.e(tokens)).mean(1))


@pytest.mark.parametrize("matrix", MATRICES)
@pytest.mark.parametrize("way", passes.WAYS)
@pytest.mark.few(4)
def test_the_row_of_a_padding_index_is_constant(matrix, way):
    model = seeded(Padded).double()
    with torch.no_grad():
        model.e.weight[0].normal_()
    tokens, classes = torch.randint(0, 12, (8, 6)), torch.randint(3, (8,))
    operators = [
        getattr(hesspec, matrix)(model, nn.CrossEntropyLoss(), [(tokens, classes)], mode=mode)
        for mode in (way, "double backward")
    ]
    found, exact = map(dense, operators)
    tolerance = 1e-6 if way == "differences" else 1e-12
    assert close(found, exact, tolerance)
    assert not found[:4].any()
    torch.testing.assert_close(found, found.T, rtol=0, atol=tolerance)


class Tied(nn.Module):
    """A language model whose head has the weights of an embedding with a padding row."""

    def __init__(self) -> None:
        super().__init__()
        self.e, self.f = nn.Embedding(7, 4, padding_idx=2), nn.Linear(4, 4)

    def forward(self, tokens):
        return F.linear(torch.tanh(self.f(self.e(tokens))), self.e.weight)


@pytest.mark.parametrize("matrix", MATRICES)
@pytest.mark.parametrize("padded", [False, True])
def test_the_padding_row_of_a_tied_embedding_counts_where_the_head_has_it(matrix, padded):
    model = seeded(Tied).double()
    with torch.no_grad():
        model.e.weight[2].normal_()
    tokens, classes = 3 + torch.randint(0, 4, (8,)), torch.randint(7, (8,))
    if padded:
        # Then the gradient is not that of the loss, which moves with what the embedding gives for padding.
        tokens[:3] = 2
    exact = {"Hessian": hessian_of(model, lambda: F.cross_entropy(model(tokens), classes))}
    exact["GaussNewton"] = gauss_newton_of(model, lambda: model(tokens), lambda f: F.cross_entropy(f, classes))
    exact["Residual"] = exact["Hessian"] - exact["GaussNewton"]
    with pytest.warns(UserWarning, match="not the derivative of the loss") if padded else contextlib.nullcontext():
        operator = getattr(hesspec, matrix)(model, nn.CrossEntropyLoss(), [(tokens, classes)])
        found = dense(operator)
    assert operator.attributes["mode"] == "double backward"
    assert close(found, exact[matrix], 1e-12)
    assert found[8:12].any()


class SquareWrongForOne(torch.autograd.Function):
    """The square, whose second derivative is lost where the batch has one sample."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x * x

    @staticmethod
    def backward(ctx, grad):
        (x,) = ctx.saved_tensors
        return 2 * grad * (x.detach() if len(x) == 1 else x)


class Squared(nn.Module):
    def __init__(self, square):
        super().__init__()
        self.first, self.second, self.square = nn.Linear(3, 4), nn.Linear(4, 2), square

    def forward(self, x):
        return self.second(self.square(self.first(x)))


@pytest.mark.parametrize("samples", [(4, 1), (1, 4), (1,), (4, 1, 4)], ids=str)
def test_one_sample_is_verified_as_well_as_several(samples):
    torch.manual_seed(0)
    data = [(torch.randn(n, 3, dtype=torch.float64), torch.arange(n) % 2) for n in samples]
    model = seeded(lambda: Squared(SquareWrongForOne.apply)).double()
    with pytest.warns(UserWarning, match="central differences of gradients"):
        operator = hesspec.Hessian(model, nn.CrossEntropyLoss(), data)
        found = dense(operator)
    right = Squared(torch.square).double()
    right.load_state_dict(model.state_dict())
    assert close(found, truth(right, nn.CrossEntropyLoss(), data), 1e-6)
    assert operator.attributes["mode"] == "differences"


@pytest.mark.parametrize("scale", [0.0, 1e-12, 1e-8])
@pytest.mark.parametrize("activation", [nn.Tanh, nn.ReLU])
@pytest.mark.parametrize("matrix", MATRICES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.few(10)
def test_parameters_that_are_zero_or_nearly_so_are_verified(matrix, activation, scale, dtype):
    """They have no size that a displacement could be relative to; neither have the outputs."""
    _, loss, data = problem(dtype)
    model = seeded(lambda: nn.Sequential(nn.Linear(5, 7), activation(), nn.Linear(7, 3))).to(dtype)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(scale)
    operator = getattr(hesspec, matrix)(model, loss, data)
    found = dense(operator)
    assert operator.attributes["mode"] == "double backward"
    assert "verified, error" in operator.attributes["mode_reason"]
    wide, (x, y) = model.double(), (torch.cat(part) for part in zip(*_doubled(data), strict=True))
    hessian = hessian_of(wide, lambda: loss(wide(x), y))
    newton = gauss_newton_of(wide, lambda: wide(x), lambda f: loss(f, y))
    exact = {"Hessian": hessian, "GaussNewton": newton, "Residual": hessian - newton}[matrix]
    assert float((found.double() - exact).norm()) < (1e-6 if dtype == torch.float32 else 1e-12) * float(hessian.norm())


@pytest.mark.parametrize("matrix", MATRICES)
@pytest.mark.few(1)
def test_differences_at_parameters_that_are_zero_are_not(matrix):
    _, loss, data = problem(torch.float64)
    model = problem(torch.float64)[0]
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    found = dense(getattr(hesspec, matrix)(model, loss, data, mode="differences"))
    exact = dense(getattr(hesspec, matrix)(model, loss, data, mode="double backward"))
    assert float(exact.norm()) > 0.1
    assert close(found, exact, 1e-6)


@pytest.mark.parametrize("matrix", MATRICES)
@pytest.mark.parametrize("scale", [1e-14, 1e-30])
def test_differences_that_rounding_prevails_in_are_refused(matrix, scale):
    model, loss, data = problem(torch.float64)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(scale)
    with pytest.raises(ValueError, match="No product with this matrix can be trusted"):
        dense(getattr(hesspec, matrix)(model, loss, data, mode="differences"))


class LiveBytes(TorchDispatchMode):
    """Count the bytes of tensors that PyTorch functions create within this context and that are still referenced."""

    def __init__(self):
        super().__init__()
        self.now = self.peak = 0
        self._sizes = {}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for tensor in (part for part in tree_leaves(result) if isinstance(part, torch.Tensor)):
            storage = tensor.untyped_storage()
            if storage._cdata not in self._sizes:
                self._sizes[storage._cdata] = storage.nbytes()
                self.now += storage.nbytes()
                self.peak = max(self.peak, self.now)
                weakref.finalize(storage, self._freed, storage._cdata)
        return result

    def _freed(self, key):
        self.now -= self._sizes.pop(key, 0)


@pytest.mark.parametrize("matrix", ["Hessian", "GaussNewton", "Residual"])
def test_verification_holds_no_more_vectors_than_are_planned(matrix):
    # Wide layers and few samples: nearly all memory is that of vectors of p numbers.
    torch.manual_seed(0)
    model = nn.Sequential(*[nn.Sequential(nn.Linear(200, 200), nn.Tanh()) for _ in range(6)], nn.Linear(200, 3))
    operator = getattr(hesspec, matrix)(model, nn.CrossEntropyLoss(), [(torch.randn(4, 200), torch.arange(4) % 3)])
    vector = torch.randn(operator.shape[0])
    with LiveBytes() as live:
        operator @ vector
    assert 4 * vector.numel() < live.peak <= VERIFICATION_BYTES * vector.numel()
    planned = operator.forecast()
    assert planned.verification_bytes == VERIFICATION_BYTES * vector.numel()
    assert hesspec.plan(operator, steps=2).peak_bytes >= planned.verification_bytes


@pytest.mark.parametrize("matrix", MATRICES)
def test_nodes_that_others_hold_to_exchange_gradients_stay_those_of_the_parameters(matrix):
    # As `DistributedDataParallel` does, whose hooks would no longer run.
    torch.manual_seed(0)
    model, data = nn.Sequential(nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 3)), [(torch.randn(6, 5), torch.arange(6) % 3)]
    nodes, called = [get_gradient_edge(parameter).node for parameter in model.parameters()], []
    for node in nodes:
        node.register_hook(lambda *_: called.append(1))
    held = getattr(hesspec, matrix)(model, nn.CrossEntropyLoss(), data)
    vector = torch.randn(held.shape[0])
    product = held @ vector
    nn.functional.cross_entropy(model(data[0][0]), data[0][1]).backward()
    assert len(called) == len(nodes) == 4
    assert "first derivatives in float32" in held.attributes["mode_reason"]

    del nodes, node
    # The graph of a loss holds the nodes, too, but is not affected.
    loss = nn.functional.cross_entropy(model(data[0][0]), data[0][1])
    gradients = torch.autograd.grad(loss, list(model.parameters()), retain_graph=True)
    free = getattr(hesspec, matrix)(model, nn.CrossEntropyLoss(), data)
    with torch.no_grad():
        free @ vector
    assert torch.allclose(free @ vector, product, rtol=0, atol=1e-6 * float(product.norm()))
    assert "first derivatives in float64" in free.attributes["mode_reason"]
    model.zero_grad()
    loss.backward()
    for parameter, gradient in zip(model.parameters(), gradients, strict=True):
        assert torch.equal(parameter.grad, gradient)


def squared_norm(weight):
    # Not the form that is written as a sum of squares; see `hesspec.operators.model.squares`.
    norm = weight.norm().reshape(1)
    return norm.dot(norm)


def squared_absolute_values(weight):
    return weight.abs().flatten().dot(weight.abs().flatten())


def squared_complex_numbers(weight):
    sizes = torch.complex(weight, weight).abs().flatten()
    return sizes.dot(sizes) / 2


LOST = [squared_norm, squared_absolute_values, squared_complex_numbers]


def penalised_problem(square, strength, dtype):
    model, loss_fn, data = problem(dtype)
    with torch.no_grad():
        model[0].bias.zero_()

    def penalised(outputs, targets):
        return loss_fn(outputs, targets) + strength * sum(square(weight) for weight in model.parameters())

    return model, penalised, data


@pytest.mark.parametrize("square", LOST)
@pytest.mark.parametrize("mode", ["auto", "traced"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("strength", [1.0, 1e-3])
@pytest.mark.few(8)
def test_curvature_that_is_lost_at_zero_is_noticed(square, mode, dtype, strength):
    operator = hesspec.Hessian(*penalised_problem(square, strength, dtype), mode=mode)
    if mode != "auto":
        with pytest.raises(ValueError, match=r"at the parameters themselves .* smooth there"):
            operator @ torch.ones(operator.shape[0], dtype=dtype)
        return
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = dense(operator)
    model, loss_fn, data = problem(torch.float64)
    with torch.no_grad():
        model[0].bias.zero_()
    # The penalty is the squared norm of all parameters, whose Hessian is twice the identity.
    expected = truth(model, loss_fn, data) + 2 * strength * torch.eye(len(found), dtype=torch.float64)
    assert operator.attributes["mode"] == "differences"
    assert close(found, expected, 1e-6)


@pytest.mark.parametrize("square", LOST)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.filterwarnings("ignore:Products are computed by central differences")
def test_curvature_that_is_lost_at_zero_is_noticed_where_units_are_at_their_kinks(square, dtype):
    # Zero biases and samples that are zero, such as the margins of images: no differences settle at the parameters.
    model, loss_fn, data = penalised_problem(square, 1.0, dtype)
    model[1] = nn.ReLU()
    for inputs, _ in data:
        inputs[:6] = 0
    operator = hesspec.Hessian(model, loss_fn, data)
    with pytest.raises(ValueError, match=r"No product .*(not finite|smooth there)"):
        operator @ torch.ones(operator.shape[0], dtype=dtype)


def test_units_at_their_kinks_do_not_count_as_curvature_that_is_lost():
    model, loss_fn, data = problem()
    model[1] = nn.ReLU()
    with torch.no_grad():
        model[0].bias.zero_()
        for inputs, _ in data:
            inputs[:6] = 0
    operator = hesspec.Hessian(model, loss_fn, data)
    found = dense(operator)
    assert operator.attributes["mode"] == "double backward"
    assert close(found, truth(model, loss_fn, [(x.double(), y) for x, y in data]), 1e-6)


@pytest.mark.parametrize(("kind", "most"), [(hesspec.Hessian, 2), (hesspec.GaussNewton, 4)])
def test_a_difference_that_confirms_the_product_is_not_repeated(monkeypatch, kind, most):
    # A difference of gradients near the parameters, and one at them; for G, of outputs and of gradients by outputs.
    steps = []
    plain = Differences._difference
    monkeypatch.setattr(Differences, "_difference", lambda *args: steps.append(args) or plain(*args))
    model = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3))
    data = [(torch.randn(9, 6, generator=torch.Generator().manual_seed(0)), torch.arange(9) % 3)]
    operator = kind(model, nn.CrossEntropyLoss(), data)
    assert torch.isfinite(operator @ torch.ones(operator.shape[0])).all()
    assert len(steps) <= most
    assert "verified, error" in operator.attributes["mode_reason"]
