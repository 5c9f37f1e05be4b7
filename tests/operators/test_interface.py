"""What an operator is beside its entries: shapes, selection, conversion, counting, SciPy, batching."""

import gc
import weakref

import numpy as np
import pytest
import torch
from cases import CASES, Recurrent, batches, labels, mlp
from torch import nn

import hesspec
from hesspec.operators.engine import passes


@pytest.fixture
def hessian():
    case = CASES["cnn"]().to(torch.float64)
    return hesspec.Hessian(case.model, case.loss, case.data)


def test_shape_dtype_device(hessian):
    count = sum(parameter.numel() for parameter in CASES["cnn"]().model.parameters())
    assert hessian.shape == (count, count)
    assert hessian.dtype == torch.float64
    assert hessian.device == torch.device("cpu")


def test_a_matrix_is_multiplied_column_by_column(hessian):
    matrix = torch.randn(hessian.shape[0], 3, dtype=torch.float64)
    product = hessian @ matrix
    assert product.shape == matrix.shape
    for column in range(3):
        torch.testing.assert_close(product[:, column], hessian @ matrix[:, column].clone(), rtol=1e-12, atol=1e-14)


def test_matvecs_are_counted(hessian):
    v = torch.randn(hessian.shape[0], dtype=torch.float64)
    _ = hessian @ v
    _ = hessian @ torch.stack([v, v, v], 1)
    assert hessian.matvecs == 4


def test_flat_and_named_tensors_are_inverse(hessian):
    v = torch.randn(hessian.shape[0], dtype=torch.float64)
    named = hessian.to_named(v)
    model = CASES["cnn"]().model
    assert list(named) == [name for name, _ in model.named_parameters()]
    assert all(named[name].shape == parameter.shape for name, parameter in model.named_parameters())
    assert torch.equal(hessian.to_flat(named), v)


def test_flat_order_is_that_of_named_parameters(hessian):
    model = CASES["cnn"]().to(torch.float64).model
    flat = torch.cat([parameter.detach().flatten() for parameter in model.parameters()])
    assert torch.equal(hessian.to_flat(dict(model.named_parameters())).detach(), flat)


def test_scipy_operator_gives_the_same_products_and_eigenvalues(hessian):
    operator = hessian.to_scipy()
    v = torch.randn(hessian.shape[0], dtype=torch.float64)
    assert operator.dtype == np.float64
    np.testing.assert_array_equal(operator @ v.numpy(), (hessian @ v).numpy())
    np.testing.assert_array_equal(operator @ v.numpy()[:, None], (hessian @ v).numpy()[:, None])
    assert (operator @ np.eye(hessian.shape[0])[:, :2]).shape == (hessian.shape[0], 2)


@pytest.mark.parametrize("matrix", ["Hessian", "GaussNewton", "Residual"])
@pytest.mark.parametrize("loss", [nn.CrossEntropyLoss(), nn.CrossEntropyLoss(reduction="sum")])
def test_batching_does_not_change_the_matrix(matrix, loss):
    data = batches((5,), labels(4), sizes=(12,))
    (x, y) = data[0]
    v = None
    products = []
    for split in ((12,), (5, 5, 2), (1,) * 12):
        operator = getattr(hesspec, matrix)(
            mlp().double(), loss, list(zip(x.split(split), y.split(split), strict=True))
        )
        v = torch.randn(operator.shape[0], dtype=torch.float64) if v is None else v
        products.append(operator @ v)
    for product in products[1:]:
        torch.testing.assert_close(product, products[0], rtol=1e-12, atol=1e-14)


def test_hessian_is_gauss_newton_plus_residual():
    case = CASES["residual cnn"]().to(torch.float64)
    operators = [
        getattr(hesspec, name)(case.model, case.loss, case.data) for name in ("Hessian", "GaussNewton", "Residual")
    ]
    v = torch.randn(operators[0].shape[0], dtype=torch.float64)
    whole, g, h = (operator @ v for operator in operators)
    torch.testing.assert_close(g + h, whole, rtol=1e-12, atol=1e-14)


def test_batches_of_one_shape_are_traced_once(monkeypatch, traced):
    traces = []
    original = passes.trace_linear
    monkeypatch.setattr(passes, "trace_linear", lambda *a: traces.append(1) or original(*a))
    operator = hesspec.Hessian(mlp(), nn.CrossEntropyLoss(), batches((5,), labels(4), sizes=(4, 4, 4, 3)))
    for _ in range(3):
        _ = operator @ torch.ones(operator.shape[0])
    assert len(traces) == 2


@pytest.mark.parametrize(
    ("params", "names"),
    [
        (None, ["0.weight", "0.bias", "2.weight", "2.bias"]),
        ("2.*", ["2.weight", "2.bias"]),
        (["2.bias", "0.weight"], ["0.weight", "2.bias"]),
        ("*.bias", ["0.bias", "2.bias"]),
    ],
)
def test_parameters_by_name_and_pattern(params, names):
    operator = hesspec.Hessian(mlp(), nn.CrossEntropyLoss(), batches((5,), labels(4)), params=params)
    assert list(operator.names) == names


def test_parameters_by_module_and_by_parameter():
    model = mlp()
    data = batches((5,), labels(4))
    by_module = hesspec.Hessian(model, nn.CrossEntropyLoss(), data, params=model[2])
    by_parameter = hesspec.Hessian(model, nn.CrossEntropyLoss(), data, params=[model[0].bias])
    assert by_module.names == ("2.weight", "2.bias")
    assert by_parameter.names == ("0.bias",)


def test_frozen_parameters_are_left_out_unless_named():
    model = mlp()
    model[0].requires_grad_(False)
    data = batches((5,), labels(4))
    assert hesspec.Hessian(model, nn.CrossEntropyLoss(), data).names == ("2.weight", "2.bias")
    assert hesspec.Hessian(model, nn.CrossEntropyLoss(), data, params="0.*").names == ("0.weight", "0.bias")


def test_a_subset_is_the_block_of_the_whole():
    case = CASES["mlp"]().to(torch.float64)
    whole = hesspec.Hessian(case.model, case.loss, case.data)
    block = hesspec.Hessian(case.model, case.loss, case.data, params="2.*")
    v = torch.randn(block.shape[0], dtype=torch.float64)
    padded = torch.cat([torch.zeros(whole.shape[0] - block.shape[0], dtype=torch.float64), v])
    torch.testing.assert_close((whole @ padded)[-block.shape[0] :], block @ v, rtol=1e-12, atol=1e-14)


def test_later_changes_of_the_model_do_not_change_the_operator():
    model = mlp()
    data = batches((5,), labels(4))
    operator = hesspec.Hessian(model, nn.CrossEntropyLoss(), data)
    with torch.no_grad():
        model[0].weight.mul_(2)
    reference = hesspec.Hessian(mlp(), nn.CrossEntropyLoss(), data)
    v = torch.ones(operator.shape[0])
    assert torch.equal(operator @ v, reference @ v)


def test_the_model_is_left_as_it_was():
    case = CASES["cnn"]()
    before = {name: value.clone() for name, value in case.model.state_dict().items()}
    operator = hesspec.Hessian(case.model, case.loss, case.to(torch.float32).data)
    _ = operator @ torch.ones(operator.shape[0])
    assert all(torch.equal(value, before[name]) for name, value in case.model.state_dict().items())
    assert all(parameter.grad is None and parameter.requires_grad for parameter in case.model.parameters())


def test_an_lstm_falls_back_to_double_backward_by_itself():
    model = Recurrent().eval()
    x, y = torch.randn(6, 5, 3), torch.randint(2, (6,))
    operators = [
        getattr(hesspec, name)(model, nn.CrossEntropyLoss(), [(x, y)])
        for name in ("Hessian", "GaussNewton", "Residual")
    ]
    v = torch.randn(operators[0].shape[0])
    gradient = torch.autograd.grad(
        nn.functional.cross_entropy(model(x), y), list(model.parameters()), create_graph=True
    )
    expected = torch.autograd.grad(torch.cat([g.flatten() for g in gradient]) @ v, list(model.parameters()))
    expected = torch.cat([part.flatten() for part in expected])
    whole, g, h = (operator @ v for operator in operators)
    assert operators[0].attributes["mode"] == "double backward"
    torch.testing.assert_close(whole, expected, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(g + h, expected, rtol=1e-4, atol=1e-6)


def test_repr_says_what_it_is(hessian):
    assert "Hessian(" in repr(hessian)
    assert "CrossEntropyLoss over 12 samples" in repr(hessian)


@pytest.mark.parametrize("traced", [True, False])
@pytest.mark.parametrize("matrix", ["Hessian", "GaussNewton", "Residual", "GaussNewtonWithin"])
@pytest.mark.few(3)
def test_an_operator_and_all_that_it_keeps_is_freed_with_its_last_reference(matrix, traced, monkeypatch):
    monkeypatch.setattr(passes, "trace_pays", lambda *_, **__: (traced, "forced"))
    case = CASES["cnn"]()
    data = [(inputs, torch.arange(len(targets)) % 4) for inputs, targets in case.data]  # of every class
    gc.collect()
    gc.disable()  # what is in a cycle, and gigabytes with it, would wait for it
    try:
        operator = getattr(hesspec, matrix)(case.model, case.loss, data)
        _ = operator @ torch.ones(operator.shape[0])
        alive = weakref.ref(operator), weakref.ref(operator._built)
        del operator
        assert [one() for one in alive] == [None, None]
    finally:
        gc.enable()


@pytest.mark.parametrize(
    ("loss", "declared"),
    [
        (nn.CrossEntropyLoss(), True),
        (nn.functional.cross_entropy, True),
        (nn.CrossEntropyLoss(weight=torch.tensor([1.0, -0.1, 1.0])), False),
        (lambda outputs, targets: nn.functional.cross_entropy(outputs, targets).sin(), False),
    ],
    ids=["module", "function", "negative weight", "unknown"],
)
def test_the_gauss_newton_matrix_is_declared_positive_where_it_is(loss, declared):
    torch.manual_seed(0)
    model = nn.Linear(4, 3)
    data = [(torch.randn(12, 4), torch.tensor([0, 1, 2] * 4))]
    g = hesspec.GaussNewton(model, loss, data)
    spectrum = hesspec.spectrum(g, steps=4)
    assert spectrum.is_positive == declared
    if declared:
        assert (spectrum.num_negative.lower, spectrum.num_negative.upper) == (0, 0)
        assert not hesspec.spectrum(-1.0 * g, steps=4).is_positive
        assert hesspec.spectrum(2.0 * g + 0.1 * hesspec.Identity.like(g), steps=4).is_positive
    assert not hesspec.spectrum(hesspec.Hessian(model, loss, data), steps=4).is_positive


@pytest.mark.parametrize(
    ("loss_fn", "classes"),
    [
        (nn.CrossEntropyLoss(), 3),
        (nn.CrossEntropyLoss(reduction="sum"), 3),
        (nn.functional.cross_entropy, 3),
        (lambda outputs, targets: outputs.square().mean() + 0 * targets.sum(), None),
    ],
)
def test_a_label_for_each_sample_tells_the_number_of_classes(loss_fn, classes):
    data = [(torch.randn(6, 4), torch.arange(6) % 3), (torch.randn(6, 4), torch.arange(6) % 3)]
    operator = hesspec.Hessian(nn.Linear(4, 3), loss_fn, data)
    assert operator.attributes.get("classes") == classes


def test_labels_of_positions_are_no_classes_of_samples():
    data = [(torch.randn(4, 2, 5), torch.randint(3, (4, 5)))]
    operator = hesspec.Hessian(nn.Conv1d(2, 3, 1), nn.CrossEntropyLoss(), data)
    assert "classes" not in operator.attributes


def test_a_choice_of_parameters_is_stated():
    model = nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 3))
    data = [(torch.randn(6, 4), torch.arange(6) % 3)]
    for params, words in [
        (None, None),
        ("1.*", "1.*"),
        (["0.weight", "1.*"], "0.weight 1.*"),
        (model[1], "1.weight 1.bias"),
        ((name for name in ["1.bias"]), "1.bias"),
    ]:
        operator = hesspec.Hessian(model, nn.CrossEntropyLoss(), data, params)
        assert operator.attributes.get("params") == words
