"""Products in bfloat16 and TF32: which arithmetic changes, how far, and the reference beside them."""

import functools
from operator import getitem

import pytest
import torch
from cases import CASES, MATRICES, batches, cnn, labels, mlp
from sweeps import swept
from torch import nn

import hesspec
from hesspec.operators.engine import passes
from hesspec.operators.engine.graph.precision import BILINEAR, PRECISIONS, check_precision
from hesspec.operators.engine.passes import Passes

CE = nn.CrossEntropyLoss()
# bfloat16 has 8 bits: one rounding is off by 2^-9 at most, and a product takes a few in a row.
ROUNDING = 2.0**-9


# Both precisions are of one trace, and all tests of a model share it.
GRAPHS = hesspec.GraphCache()


@functools.cache
def case_of(name):
    return CASES[name]().to(torch.float32)


def operators(name="cnn", matrix="Hessian", **options):
    case = case_of(name)
    options = {**case.options, **options, "graphs": GRAPHS}
    return [
        getattr(hesspec, matrix)(case.model, case.loss, case.data, precision=precision, **options)
        for precision in ("full", "bfloat16")
    ]


def test_full_precision_is_the_default_and_its_own_reference():
    operator = hesspec.Hessian(mlp(), CE, batches((5,), labels(4)))
    assert operator.attributes["precision"] == "full"
    assert operator.reference is None


@pytest.mark.parametrize("matrix", swept(MATRICES, "Hessian", "GaussNewton"))
@pytest.mark.parametrize(
    "name", swept(["mlp", "cnn", "transformer encoder", "mse", "gpt2, own loss"], "mlp", "cnn", "mse")
)
@pytest.mark.few(2)
def test_bfloat16_products_are_off_by_its_rounding(name, matrix, traced):
    full, lower = operators(name, matrix)
    v = torch.randn(full.shape[0])
    exact, found = full @ v, lower @ v
    assert found.dtype == torch.float32
    error = (found - exact).norm() / exact.norm()
    assert 0.01 * ROUNDING < error < 10 * ROUNDING
    assert lower.attributes["mode"] == "traced"
    assert lower.attributes["precision"] == "bfloat16"
    assert lower.risk == full.risk


@pytest.mark.parametrize("matrix", swept(MATRICES, "Hessian", "GaussNewton"))
def test_only_bilinear_nodes_of_the_tangent_part_are_lowered(matrix):
    _, lower = operators(matrix=matrix)
    built = lower._passes()
    trace = built._traced(next(iter(lower._risk.batches)))
    lowered = 0
    for node in trace.tangents[0].__self__.graph.nodes:
        value = node.meta.get("val")
        for part in value if isinstance(value, tuple) else (value,):
            if node.target in BILINEAR and part is not None:
                assert part.dtype == torch.bfloat16
                lowered += 1
            elif isinstance(part, torch.Tensor) and part.dtype == torch.bfloat16:
                # A residual, a cast, or a result of such a node before it is widened.
                assert node.op == "placeholder" or node.target in (torch.ops.aten._to_copy.default, getitem)
    assert lowered
    assert all(
        node.meta["val"].dtype != torch.bfloat16 or node.target is torch.ops.aten._to_copy.default
        for node in trace.primal.__self__.graph.nodes
        if isinstance(node.meta.get("val"), torch.Tensor)
    )


def test_predictions_are_of_what_runs():
    """The fake tensors beside the graph's nodes, by which bytes are predicted, are those of its results."""
    _, lower = operators()
    built = lower._passes()
    batch = next(iter(lower._risk.batches))
    trace = built._traced(batch)
    _, *residuals = trace.primal(*built._constants(batch))
    residuals = [*trace.shared(*built._fixed), *residuals]
    placeholders = [node for node in trace.tangents[0].__self__.graph.nodes if node.op == "placeholder"]
    for node, residual in zip(placeholders, residuals, strict=False):
        assert (node.meta["val"].dtype, node.meta["val"].shape) == (residual.dtype, residual.shape)
    assert any(residual.dtype == torch.bfloat16 for residual in residuals)


@pytest.mark.parametrize("matrix", swept(MATRICES, "Hessian", "GaussNewton"))
def test_the_reference_is_the_operator_at_full_precision(matrix, traced):
    full, lower = operators(matrix=matrix)
    v = torch.randn(full.shape[0])
    before = lower @ v
    reference = lower.reference
    assert (reference.shape, reference.dtype, reference.device) == (full.shape, full.dtype, full.device)
    assert torch.equal(reference @ v, full @ v)
    assert torch.equal(lower @ v, before)
    assert reference.reference is None
    assert (lower.matvecs, reference.matvecs) == (2, 1)
    assert reference.attributes["precision"] == "full"


def test_the_reference_shares_traces(monkeypatch):
    traces, original = [], passes.trace_linear
    monkeypatch.setattr(passes, "trace_linear", lambda *a: traces.append(1) or original(*a))
    operator = hesspec.Hessian(cnn(), CE, batches((1, 4, 4), labels(4), sizes=(5, 5)), precision="bfloat16")
    v = torch.ones(operator.shape[0])
    _ = operator @ v, operator.reference @ v, operator.reference @ v
    assert len(traces) == 1


def test_the_budget_has_room_for_the_reference():
    lower = hesspec.Hessian(cnn(), CE, batches((1, 4, 4), labels(4), sizes=(400,)), precision="bfloat16")
    full = lower._passes().at_full_precision()
    batch = next(iter(lower._risk.batches))
    assert lower.attributes["predicted_peak_bytes"] >= full.bytes(batch).streamed


def test_a_spectrum_in_bfloat16():
    full, lower = operators(matrix="GaussNewton")
    exact, found = (hesspec.spectrum(operator, steps=20) for operator in (full, lower))
    assert max(found.nodes) == pytest.approx(max(exact.nodes), rel=10 * ROUNDING)


@pytest.mark.parametrize("matrix", ["Hessian", "GaussNewton"])
def test_bounds_of_a_spectrum_in_bfloat16_hold_against_float64(matrix, traced):
    _, lower = operators("mlp", matrix)
    case = CASES["mlp"]().to(torch.float64)
    double = getattr(hesspec, matrix)(case.model, case.loss, case.data)
    exact = torch.linalg.eigvalsh(double @ torch.eye(double.shape[0], dtype=torch.float64))
    for seed in range(3):
        found = hesspec.spectrum(lower, steps=20, seed=seed)
        # The noise of products, not rounding in float32, is in the bounds.
        assert found.rounding > 0.1 * ROUNDING * found.norm
        apart = (torch.as_tensor(found.ritz_values)[:, None] - exact).abs().amin(1)
        assert (apart <= torch.as_tensor(found.ritz_bounds)).all()


class Branching(nn.Module):
    """Goes the one way or the other, as a number says."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(5, 2)

    def forward(self, x):
        y = self.linear(x)
        return y.tanh() if float(y.detach().sum()) < 1e6 else y


def test_a_model_that_cannot_be_traced_is_refused():
    data = [(torch.randn(6, 5), torch.randint(2, (6,)))]
    operator = hesspec.Hessian(Branching(), CE, data, precision="bfloat16")
    with pytest.raises(ValueError, match="precision='bfloat16' needs a trace.*Leave precision at 'full'"):
        _ = operator @ torch.ones(operator.shape[0])


@pytest.mark.parametrize(
    ("precision", "dtype", "message"),
    [
        ("half", torch.float32, "precision='half' is unknown; use one of 'full', 'tf32', 'bfloat16'"),
        ("bfloat16", torch.float64, r"for float32 operators, but this one is torch\.float64.*model\.float"),
        ("tf32", torch.float64, "for float32 operators"),
        ("tf32", torch.float32, "needs a CUDA device, but the model is on cpu"),
    ],
)
def test_precisions_that_cannot_be_had_are_refused_at_once(precision, dtype, message):
    with pytest.raises(ValueError, match=message):
        hesspec.Hessian(mlp().to(dtype), CE, batches((5,), labels(4)), precision=precision)


def test_tf32_is_for_cuda():
    check_precision("tf32", dtype=torch.float32, device=torch.device("cuda"))
    assert PRECISIONS == ("full", "tf32", "bfloat16")


def test_tf32_shares_what_is_kept_with_its_reference(monkeypatch, traced):
    # TF32 itself needs a GPU; what is shared does not.
    monkeypatch.setattr("hesspec.operators.base.check_precision", lambda *_, **__: None)
    operator = hesspec.Hessian(cnn(), CE, batches((1, 4, 4), labels(4)), precision="tf32")
    v = torch.ones(operator.shape[0])
    product = operator @ v
    builds, original = [], Passes.build
    monkeypatch.setattr(Passes, "build", lambda *a: builds.append(1) or original(*a))
    assert torch.equal(operator.reference @ v, product)
    assert not builds
