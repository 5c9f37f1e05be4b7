"""Sums, multiples, blocks and damped forms of operators are those of the dense matrices."""

import dataclasses
import itertools

import numpy as np
import pytest
import torch
from cases import batches, labels, mlp

import hesspec
from hesspec.backend.algebra import Block, Combination

P = 40


def symmetric(seed=0, dtype=torch.float64):
    a = torch.randn(P, P, dtype=dtype, generator=torch.Generator().manual_seed(seed))
    return a + a.T


@pytest.fixture(params=[torch.float32, torch.float64], ids=["float32", "float64"])
def pair(request):
    """Hess and G of a network, with their dense matrices."""
    model, loss = mlp().to(request.param), torch.nn.CrossEntropyLoss()
    data = [(x.to(request.param), y) for x, y in batches((5,), labels(4))]
    operators = [kind(model, loss, data) for kind in (hesspec.Hessian, hesspec.GaussNewton)]
    eye = torch.eye(operators[0].shape[0], dtype=request.param)
    return operators, [operator @ eye for operator in operators]


FORMULAS = {
    "sum": lambda a, b, i: a + b,
    "difference": lambda a, b, i: a - b,
    "negative": lambda a, b, i: -a,
    "twice": lambda a, b, i: 2 * a,
    "half": lambda a, b, i: a / 2,
    "damped": lambda a, b, i: a + 0.1 * i,
    "nested": lambda a, b, i: 2 * (a - 3 * (b + i)) - a * np.float64(0.5),
    "by a tensor": lambda a, b, i: torch.tensor(2.0) * a,
}


@pytest.mark.parametrize("name", FORMULAS)
@pytest.mark.few(8)
def test_products_are_those_of_the_dense_matrices(name, pair):
    (hess, g), (dense_hess, dense_g) = pair
    formula, p = FORMULAS[name], hess.shape[0]
    composed = formula(hess, g, hesspec.Identity.like(hess))
    dense = formula(dense_hess, dense_g, torch.eye(p, dtype=hess.dtype))
    vectors = torch.randn(p, 3, dtype=hess.dtype)
    # Rounding of the sum of at most eight products.
    tolerance = 16 * torch.finfo(hess.dtype).eps * float(dense.abs().sum(1).max() + 10)
    assert float((composed @ vectors - dense @ vectors).abs().max()) <= tolerance * float(vectors.abs().max())
    assert float((composed @ vectors[:, 0] - dense @ vectors[:, 0]).abs().max()) <= tolerance * float(
        vectors.abs().max()
    )
    assert (composed.shape, composed.dtype, composed.device) == (hess.shape, hess.dtype, hess.device)


def test_a_spectrum_of_a_sum_is_that_of_the_dense_matrix(pair):
    (hess, g), (dense_hess, dense_g) = pair
    composed = hess - g + 0.5 * hesspec.Identity.like(hess)
    truth = torch.linalg.eigvalsh((dense_hess - dense_g).double()).numpy() + 0.5
    spectrum = hesspec.spectrum(composed, steps=hess.shape[0])
    assert spectrum.attributes["matrix"] == "Hessian - GaussNewton + 0.5 identity"
    assert spectrum.attributes["loss"] == hess.attributes["loss"]
    assert "mode" in spectrum.attributes
    largest = spectrum.eigenvalues[0]
    distance = np.abs(truth - largest).min()
    # The dense matrix has rounding of its own, of products with the columns of the identity.
    assert distance <= spectrum.error_bounds[0] + 8 * torch.finfo(hess.dtype).eps * np.abs(truth).max()


@pytest.mark.parametrize(
    "block",
    [slice(3, 9), slice(None, None, 4), [5, 2, 7], torch.tensor([True, False] * (P // 2)), np.array([1, 3])],
    ids=["slice", "step", "list", "mask", "array"],
)
def test_a_block_is_a_principal_submatrix(block):
    a = symmetric()
    found = Block(a, block)
    entries = torch.arange(P)[block if isinstance(block, slice) else torch.as_tensor(block)]
    expected = a[entries][:, entries]
    assert torch.equal(found.entries, entries)
    torch.testing.assert_close(found @ torch.eye(len(entries), dtype=a.dtype), expected, rtol=1e-14, atol=1e-14)
    torch.testing.assert_close(found @ torch.ones(len(entries), dtype=a.dtype), expected.sum(1), rtol=1e-14, atol=1e-14)


def test_a_block_of_parameters_is_the_operator_of_these_parameters(pair):
    (hess, _), (dense, _) = pair
    model = hess._risk.model
    name = hess.names[0]
    entries = hess.entries_of([name])
    assert entries.tolist() == list(range(dict(model.named_parameters())[name].numel()))
    found = hess[name] @ torch.eye(len(entries), dtype=hess.dtype)
    torch.testing.assert_close(found, dense[entries][:, entries], rtol=0, atol=64 * torch.finfo(hess.dtype).eps)
    assert hess["*"].shape == hess.shape
    assert hesspec.spectrum(hess[name], steps=4).attributes["block"] == name


def test_composed_operators_go_to_scipy_and_can_be_composed_again(pair):
    (hess, g), (dense, _) = pair
    damped = (g + hesspec.Identity.like(g)).to_scipy()
    vector = np.ones(g.shape[0], dtype=str(g.dtype).removeprefix("torch."))
    assert np.isfinite(damped @ vector).all()
    again = 2 * hess[2:8]
    torch.testing.assert_close(again @ torch.eye(6, dtype=hess.dtype), 2 * dense[2:8, 2:8], rtol=0, atol=1e-5)


class Stating:
    """A dense matrix that says that its products may be off."""

    def __init__(self, matrix, error):
        self.matrix, self.product_error = matrix, error
        self.shape, self.dtype, self.device = matrix.shape, matrix.dtype, matrix.device

    def __matmul__(self, vectors):
        return self.matrix @ vectors


def test_what_products_are_off_by_is_that_of_the_parts_also_where_these_cancel():
    a, small = symmetric(), 1e-3 * symmetric(1)
    v = torch.randn(P, 2, dtype=a.dtype)
    difference = Combination([(1.0, Stating(a + small, 1e-6)), (-1.0, Stating(a, 0.0))])
    product = difference @ v
    expected = 1e-6 * ((a + small) @ v).norm(dim=0) / product.norm(dim=0)
    assert difference.product_error == pytest.approx(float(expected.max()), rel=1e-12)
    block = Block(Stating(a, 1e-6), slice(0, 2))
    part = block @ torch.ones(2, dtype=a.dtype)
    whole = a @ torch.cat([torch.ones(2, dtype=a.dtype), torch.zeros(P - 2, dtype=a.dtype)])
    assert block.product_error == pytest.approx(1e-6 * float(whole.norm() / part.norm()), rel=1e-12)
    # And a run's bounds have it.
    spectrum = hesspec.spectrum(difference, steps=P)
    truth = np.linalg.eigvalsh(small.numpy())
    assert np.abs(truth - spectrum.eigenvalues[0]).min() <= spectrum.error_bounds[0]
    assert spectrum.error_bounds[0] >= 1e-6 * np.linalg.norm(a.numpy(), 2) / 10


def cancelling(dtype=torch.float64):
    """A difference whose products are off by another share each, as much of two large matrices cancels."""
    a, small = symmetric(dtype=dtype), 1e-3 * symmetric(1, dtype=dtype)
    return Combination([(1.0, Stating(a + small, 1e-6)), (-1.0, Stating(a, 0.0))])


# Operators that state the errors of their products, each product its own.
STATING = {
    "difference": cancelling,
    "difference in float32": lambda: cancelling(torch.float32),
    "block": lambda: Block(Stating(symmetric(), 1e-6), slice(0, 30)),
    "block of a difference": lambda: cancelling()[5:35],
    "sum with a block": lambda: Block(Stating(symmetric(), 1e-6), slice(0, 30)) + cancelling()[:30],
    "preconditioned difference": lambda: hesspec.Preconditioned(cancelling(), torch.linspace(1, 2, P).double()),
}


@pytest.mark.parametrize("name", STATING)
def test_what_is_said_of_a_product_does_not_depend_on_products_before(name):
    operator = STATING[name]()
    generator = torch.Generator().manual_seed(0)
    vectors = torch.randn(operator.shape[0], 6, dtype=operator.dtype, generator=generator)
    errors = []
    for vector in vectors.T:
        operator @ vector
        errors.append(operator.product_error)
    assert len(set(errors)) == 6  # so that the order could matter
    for place in (3, 0, 5):
        operator @ vectors[:, place]
        assert operator.product_error == errors[place]
    operator @ vectors
    # Products with a matrix may round otherwise, and of what is left of a difference that is 1e3 times as much.
    rounding = 2 * P * 1e3 * torch.finfo(operator.dtype).eps
    assert operator.product_error >= (1 - rounding) * max(errors)
    if "block of" not in name and "sum" not in name:
        # These take the largest error of their parts' columns for that of each.
        assert operator.product_error == pytest.approx(max(errors), rel=rounding)
    operator @ torch.zeros_like(vectors[:, 0])
    assert operator.product_error == 0


RUNS = {
    "one probe": {"steps": 20},
    "probes": {"steps": 12, "probes": 3},
    "restarted": {"steps": 30, "basis": "restarted", "memory": 18 * 8 * P, "probes": 2},
    "auto": {"steps": "auto", "tolerance": 0.02},
}


@pytest.mark.parametrize("run", RUNS)
@pytest.mark.parametrize("name", STATING)
@pytest.mark.few(8)
def test_a_run_is_the_same_bit_for_bit_if_it_is_resumed_or_repeated(tmp_path, name, run):
    class StopError(Exception):
        pass

    def stop_after(products):
        counts = itertools.count()

        def stop(*_):
            if next(counts) == products:
                raise StopError

        return stop

    def bits(spectrum):
        fields = {field.name: getattr(spectrum, field.name) for field in dataclasses.fields(spectrum)}
        del fields["attributes"]
        return {key: value.tobytes() if isinstance(value, np.ndarray) else value for key, value in fields.items()}

    operator, options, interruptions = STATING[name](), RUNS[run], 0
    whole = bits(hesspec.spectrum(operator, **options))
    assert bits(hesspec.spectrum(operator, **options)) == whole
    while True:
        try:
            # A new operator each time, as in a new process: it has not made the products before.
            found = hesspec.spectrum(STATING[name](), **options, snapshot=tmp_path, every=0, on_step=stop_after(6))
        except StopError:
            interruptions += 1
        else:
            break
    assert interruptions >= 2
    assert bits(found) == whole


def test_bad_input_is_named():
    a = Block(symmetric(), slice(None))
    with pytest.raises(
        ValueError, match="An operator of size 40, torch.float64 on cpu cannot be added to one of size 3"
    ):
        a + hesspec.Identity(3, dtype=torch.float64)
    with pytest.raises(ValueError, match=r"cannot be added to one of size 40, torch\.float32"):
        a + hesspec.Identity(P)
    with pytest.raises(ValueError, match="multiplied by nan; use a finite number"):
        float("nan") * a
    with pytest.raises(TypeError):
        a + 1
    with pytest.raises(TypeError):
        "a" * a
    with pytest.raises(ValueError, match="selects no entries of 40"):
        a[:0]
    with pytest.raises(ValueError, match="selects an entry more than once"):
        a[[1, 1]]
    with pytest.raises(ValueError, match="does not name its parameters; select entries by index"):
        a["weight"]
    hess = hesspec.Hessian(mlp().double(), torch.nn.CrossEntropyLoss(), batches((5,), labels(4)))
    with pytest.raises(ValueError, match="nothing"):
        hess["nothing"]


def test_snapshots_tell_sums_apart(tmp_path):
    a = Block(symmetric(), slice(None))

    class StopError(Exception):
        pass

    def stop(done, total):
        if done == 10:
            raise StopError

    with pytest.raises(StopError):
        hesspec.spectrum(2 * a, steps=20, snapshot=tmp_path / "s", every=0, on_step=stop)
    with pytest.raises(ValueError, match="another"):
        hesspec.spectrum(3 * a, steps=20, snapshot=tmp_path / "s", every=0)
    resumed = hesspec.spectrum(2 * a, steps=20, snapshot=tmp_path / "s", every=0)
    assert np.array_equal(resumed.eigenvalues, hesspec.spectrum(2 * a, steps=20).eigenvalues)
