"""Preconditioned operators: against dense matrices, and P against the steps that optimisers make with it."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

import hesspec
from hesspec.operators import preconditioner

OPTIMIZERS = {
    "Adam": lambda p: torch.optim.Adam(p, lr=0.01),
    "Adam with amsgrad": lambda p: torch.optim.Adam(p, lr=0.01, amsgrad=True, betas=(0.8, 0.95), eps=1e-3),
    "Adam with weight decay": lambda p: torch.optim.Adam(p, lr=0.01, weight_decay=0.1, foreach=True),
    "AdamW": lambda p: torch.optim.AdamW(p, lr=0.01, weight_decay=0.0),
    "RMSprop": lambda p: torch.optim.RMSprop(p, lr=0.01),
    "RMSprop, centred": lambda p: torch.optim.RMSprop(p, lr=0.01, centered=True, alpha=0.9, eps=1e-4),
    "Adagrad": lambda p: torch.optim.Adagrad(p, lr=0.01, initial_accumulator_value=0.01),
    "Adagrad with decay": lambda p: torch.optim.Adagrad(p, lr=0.01, lr_decay=0.1),
}
BOTH = pytest.mark.parametrize("dtype", [torch.float64, torch.float32])


def problem(dtype=torch.float64, seed=0):
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)).to(dtype)
    return model, nn.CrossEntropyLoss(), [(torch.randn(20, 4, dtype=dtype), torch.arange(20) % 3)]


def train(model, loss_fn, data, optimizer, steps):
    for _ in range(steps):
        for inputs, targets in data:
            optimizer.zero_grad()
            loss_fn(model(inputs), targets).backward()
            optimizer.step()


def flat(tensors):
    return torch.cat([tensor.detach().reshape(-1).double() for tensor in tensors])


@BOTH
@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("steps", [1, 7])
def test_diagonal_is_what_the_last_step_was_divided_by(name, steps, dtype):
    model, loss_fn, data = problem(dtype)
    optimizer = OPTIMIZERS[name](model.parameters())
    train(model, loss_fn, data, optimizer, steps - 1)
    before = flat(model.parameters())
    train(model, loss_fn, data, optimizer, 1)
    made = flat(model.parameters()) - before
    if "Adam" in name:
        moment = flat(optimizer.state[parameter]["exp_avg"] for parameter in model.parameters())
    else:
        moment = flat(parameter.grad for parameter in model.parameters())
    expected = -0.01 * moment / preconditioner(optimizer, model.named_parameters())
    # Weights are rounded when the step is added to them.
    torch.testing.assert_close(
        made, expected, rtol=1e-4 if dtype == torch.float32 else 1e-10, atol=4 * torch.finfo(dtype).eps
    )


@BOTH
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_products_are_those_of_the_dense_matrix(name, dtype):
    model, loss_fn, data = problem(dtype)
    optimizer = OPTIMIZERS[name](model.parameters())
    train(model, loss_fn, data, optimizer, 5)
    hessian = hesspec.Hessian(model, loss_fn, data)
    operator = hesspec.Preconditioned(hessian, optimizer)
    scale = preconditioner(optimizer, model.named_parameters()).rsqrt()
    exact = hesspec.Hessian(model.double(), loss_fn, [(data[0][0].double(), data[0][1])])
    dense = scale[:, None] * (exact @ torch.eye(hessian.shape[0], dtype=torch.float64)) * scale
    found = (operator @ torch.eye(hessian.shape[0], dtype=dtype)).double()
    # Products of the Hessian are rounded relative to its norm, and then scaled.
    floor = 20 * torch.finfo(dtype).eps * float(torch.linalg.norm(dense, 2)) * float(scale.max() / scale.min())
    torch.testing.assert_close(found, dense, rtol=0, atol=floor)
    assert (operator.shape, operator.dtype, operator.device) == (hessian.shape, dtype, torch.device("cpu"))
    vector = torch.randn(hessian.shape[0], dtype=dtype)
    torch.testing.assert_close(operator @ vector, operator @ vector[:, None] @ torch.ones(1, dtype=dtype))


@BOTH
def test_spectrum_and_eigenpairs_are_those_of_the_dense_matrix(dtype):
    model, loss_fn, data = problem(dtype)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01, eps=1e-2)
    train(model, loss_fn, data, optimizer, 10)
    operator = hesspec.Preconditioned(hesspec.Hessian(model, loss_fn, data), optimizer)
    p = operator.shape[0]
    dense = (operator @ torch.eye(p, dtype=dtype)).double()
    truth = np.linalg.eigvalsh(((dense + dense.T) / 2).numpy())
    found = hesspec.spectrum(operator, steps=p)
    assert found.attributes["matrix"] == "preconditioned Hessian"
    assert found.attributes["preconditioner"] == "Adam"
    slack = 10 * p * torch.finfo(dtype).eps * truth[-1]
    for value, bound in zip(found.eigenvalues, found.error_bounds, strict=True):
        assert np.abs(truth - value).min() <= bound + slack
    pairs = hesspec.eigenpairs(operator, count=2)
    assert pairs.values[0] == pytest.approx(truth[-1], rel=1e-5)


@BOTH
def test_a_tensor_with_a_diagonal(dtype):
    dense = torch.randn(30, 30, generator=torch.Generator().manual_seed(0)).to(dtype)
    dense = dense + dense.T
    diagonal = torch.rand(30, generator=torch.Generator().manual_seed(1)).double() + 0.1
    operator = hesspec.Preconditioned(dense, diagonal)
    expected = diagonal.rsqrt()[:, None] * dense.double() * diagonal.rsqrt()
    found = operator @ torch.eye(30, dtype=dtype)
    torch.testing.assert_close(found.double(), expected, rtol=10 * torch.finfo(dtype).eps, atol=0)
    # The eigenvalues are those of P^-1 A.
    values = np.sort(np.linalg.eigvals(dense.double().numpy() / diagonal.numpy()[:, None]).real)
    measured = np.sort(hesspec.spectrum(operator, steps=30).eigenvalues)
    np.testing.assert_allclose(measured, values, atol=1e3 * torch.finfo(dtype).eps * np.abs(values).max())
    assert hesspec.spectrum(hesspec.Preconditioned(dense, torch.ones(30)), steps=9).norm == pytest.approx(
        hesspec.spectrum(dense, steps=9).norm
    )


def test_parameters_by_selection_and_in_another_order():
    model, loss_fn, data = problem()
    groups = [{"params": [model[2].bias, model[0].weight], "eps": 1e-2}, {"params": [model[2].weight, model[0].bias]}]
    optimizer = torch.optim.Adam(groups, lr=0.01)
    train(model, loss_fn, data, optimizer, 3)
    everything = dict(zip(dict(model.named_parameters()), range(4), strict=True))
    whole = preconditioner(optimizer, model.named_parameters()).split([p.numel() for p in model.parameters()])
    chosen = hesspec.Preconditioned(hesspec.Hessian(model, loss_fn, data, ["2.*"]), optimizer)
    expected = torch.cat([whole[everything["2.weight"]], whole[everything["2.bias"]]])
    torch.testing.assert_close(chosen.diagonal, expected)


def test_complex_parameters_have_two_entries():
    weight = nn.Parameter(torch.tensor([1 + 2j, 3 - 1j], dtype=torch.complex128))
    optimizer = torch.optim.Adam([weight], lr=0.1, eps=0.0)
    (weight.abs() ** 4).sum().backward()
    gradient = torch.view_as_real(weight.grad).reshape(-1)
    optimizer.step()
    found = preconditioner(optimizer, [("weight", weight)])
    # After one step it is (1 - beta_1) |g|, of real and imaginary part each.
    torch.testing.assert_close(found, 0.1 * gradient.abs(), rtol=1e-12, atol=0)


def test_it_stays_what_it_was_when_training_continues():
    model, loss_fn, data = problem()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    train(model, loss_fn, data, optimizer, 2)
    operator = hesspec.Preconditioned(hesspec.Hessian(model, loss_fn, data), optimizer)
    vector = torch.ones(operator.shape[0], dtype=torch.float64)
    before, known = operator @ vector, operator.identity()
    train(model, loss_fn, data, optimizer, 2)
    torch.testing.assert_close(operator @ vector, before, rtol=0, atol=0)
    assert known == operator.identity()
    assert known != hesspec.Preconditioned(operator.operator, optimizer).identity()


def test_weight_decay_is_a_sum_of_operators():
    model, loss_fn, data = problem()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    train(model, loss_fn, data, optimizer, 2)
    hessian = hesspec.Hessian(model, loss_fn, data)
    decayed = hesspec.Preconditioned(hessian + 0.5 * hesspec.Identity.like(hessian), optimizer)
    plain = hesspec.Preconditioned(hessian, optimizer)
    vector = torch.ones(hessian.shape[0], dtype=torch.float64)
    torch.testing.assert_close((decayed - plain) @ vector, 0.5 / plain.diagonal, rtol=1e-9, atol=1e-9)
    assert plain.to_scipy() @ vector.numpy() == pytest.approx((plain @ vector).numpy())


def test_noise_of_products_is_carried_over():
    class Noisy:
        shape, dtype, device, product_error = (2, 2), torch.float64, torch.device("cpu"), 1e-3

        def __matmul__(self, vectors):
            return vectors

    found = hesspec.Preconditioned(Noisy(), torch.tensor([1.0, 16.0]))
    assert found.product_error == pytest.approx(4e-3)
    assert found.reference is None
    assert hesspec.Preconditioned(torch.eye(2), torch.tensor([1.0, 16.0])).product_error == 0


def test_ranks_scale_their_slices():
    class Doubled:
        shape, dtype, device = (4, 4), torch.float64, torch.device("cpu")
        ranks = SimpleNamespace(size=2, part=lambda size: (1, size - 1))

        def sliced(self):
            return self

        def __matmul__(self, vectors):
            return 2 * vectors

    operator = hesspec.Preconditioned(Doubled(), torch.tensor([1.0, 4.0, 16.0, 1.0]))
    found = operator.sliced() @ torch.ones(2, dtype=torch.float64)
    torch.testing.assert_close(found, torch.tensor([0.5, 0.125], dtype=torch.float64))
    alone = hesspec.Preconditioned(torch.eye(2), torch.ones(2))
    assert alone.sliced() is alone


class Unused(nn.Module):
    def __init__(self):
        super().__init__()
        self.used, self.idle = nn.Linear(4, 3).double(), nn.Linear(2, 2).double()

    def forward(self, inputs):
        return self.used(inputs)


def test_a_parameter_without_gradients_is_named():
    _, loss_fn, data = problem()
    model = Unused()
    optimizer = torch.optim.Adam(model.parameters())
    train(model, loss_fn, data, optimizer, 1)
    with pytest.raises(ValueError, match=r"'idle\.weight' yet: make a step first.*params="):
        hesspec.Preconditioned(hesspec.Hessian(model, loss_fn, data, ["*"]), optimizer)
    hesspec.Preconditioned(hesspec.Hessian(model, loss_fn, data, "used.*"), optimizer)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_an_optimiser_without_state_is_a_sentence(name):
    model, loss_fn, data = problem()
    with pytest.raises(ValueError, match="has no state for parameter '0.weight' yet: make a step first"):
        hesspec.Preconditioned(hesspec.Hessian(model, loss_fn, data), OPTIMIZERS[name](model.parameters()))


def test_other_optimisers_and_parameters_are_sentences():
    model, loss_fn, data = problem()
    hessian = hesspec.Hessian(model, loss_fn, data)
    with pytest.raises(ValueError, match="An SGD has no known preconditioner"):
        hesspec.Preconditioned(hessian, torch.optim.SGD(model.parameters(), lr=0.1))
    other = torch.optim.Adam(model[0].parameters())
    train(model, loss_fn, data, other, 1)
    with pytest.raises(ValueError, match="does not train parameter '2.weight'"):
        hesspec.Preconditioned(hessian, other)
    with pytest.raises(ValueError, match="does not know its parameters; pass the diagonal"):
        hesspec.Preconditioned(torch.eye(3), other)


@pytest.mark.parametrize(
    ("diagonal", "message"),
    [
        (torch.tensor([1.0, 0.0, 1.0]), "entry 1 is 0.0, one of 1 such entries"),
        (torch.tensor([1.0, 1.0, -2.0]), "entry 2 is -2.0"),
        (torch.tensor([torch.nan, 1.0, 1.0]), "entry 0 is nan"),
        (torch.tensor([torch.inf, 1.0, 1.0]), "entry 0 is inf"),
        (torch.ones(2), r"shape \(3,\), or an optimiser; it is \(2,\)"),
        (torch.ones(3, 3), r"it is \(3, 3\)"),
        (torch.ones(3, dtype=torch.int64), "int64"),
        ([1.0, 1.0, 1.0], "it is a list"),
    ],
)
def test_an_impossible_diagonal_is_a_sentence(diagonal, message):
    with pytest.raises(ValueError, match=message):
        hesspec.Preconditioned(torch.eye(3), diagonal)


def test_what_is_no_operator_or_vector_is_a_sentence():
    with pytest.raises(ValueError, match="A list has no shape"):
        hesspec.Preconditioned([[1.0]], torch.ones(1))
    with pytest.raises(ValueError, match=r"a spectrum needs \(p, p\)"):
        hesspec.Preconditioned(torch.ones(2, 3), torch.ones(2))
    with pytest.raises(ValueError, match=r"shape \(2,\)"):
        _ = hesspec.Preconditioned(torch.eye(2), torch.ones(2)) @ torch.ones(3)
