"""Weights, means, eigenvalues, eigenvectors and traces of the class structure, against dense matrices."""

import numpy as np
import pytest
import scipy.linalg
import torch
from cases import Case, batches, cnn, mlp
from class_structure import means, reference
from torch import nn

from hesspec.applications.class_structure.gram import slices
from hesspec.applications.class_structure.means import ClassMeans

DTYPES = [(torch.float64, 1e-12), (torch.float32, 3e-6)]


def case(dtype=torch.float64, sizes=(9, 7, 4), model=None, **loss):
    data = batches((1, 4, 4), lambda size: torch.arange(size) % 4, sizes)
    return Case(cnn() if model is None else model, nn.CrossEntropyLoss(**loss), data).to(dtype)


def structure(problem, **options):
    return ClassMeans(problem.model, problem.loss, problem.data, **options)


def names(problem):
    return tuple(name for name, _ in problem.model.named_parameters())


def exact(problem, part):
    dense = reference(problem)
    matrix = dense["class"] + dense["cross"] + dense["same"] if part == "sum" else dense[part]
    return torch.linalg.eigvalsh(matrix).flip(0).numpy()


@pytest.mark.parametrize("loss", [{}, {"weight": torch.tensor([0.2, 1.0, 3.0, 0.7])}, {"reduction": "sum"}])
@pytest.mark.parametrize("part", ["class", "cross", "same", "sum"])
@pytest.mark.parametrize(("dtype", "tolerance"), DTYPES)
@pytest.mark.few(8)
def test_eigenvalues_are_those_of_the_dense_part(part, dtype, tolerance, loss):
    truth = exact(case(**loss), part)
    found = structure(case(dtype, **loss)).eigenvalues(part)
    assert 0 < len(found) <= {"class": 4, "cross": 8, "same": 4, "sum": 16}[part]
    assert np.abs(found - truth[: len(found)]).max() <= tolerance * truth[0]
    assert truth[len(found)] <= 16 * torch.finfo(dtype).eps * truth[0]
    assert (np.diff(found) <= 0).all()


def test_weights_and_gram_matrix_are_those_of_the_means():
    problem = case()
    weights, mean, _, _ = means(problem, names(problem))
    found = structure(problem)
    assert found.classes == 4
    assert np.allclose(found.weights, weights.numpy(), rtol=1e-13)
    flat = mean.reshape(16, -1)
    gram = (flat @ flat.T).numpy()
    assert np.allclose(found.pair_gram, gram, rtol=1e-12, atol=1e-13 * gram.max())


@pytest.mark.parametrize(("dtype", "tolerance"), DTYPES)
def test_means_are_those_of_the_definition(dtype, tolerance):
    problem = case()
    weights, mean, _, _ = means(problem, names(problem))
    found = structure(case(dtype))
    off = weights * ~torch.eye(4, dtype=torch.bool)
    centres = (off[:, None] @ mean).squeeze(1) / off.sum(1, keepdim=True)
    assert (found.class_means() - centres.T).abs().max() <= tolerance * centres.abs().max()
    assert (found.cross_class_means(2) - mean[2].T).abs().max() <= tolerance * mean[2].abs().max()


def test_class_gram_is_the_same_before_and_after_all_pairs():
    alone, after = structure(case()), structure(case())
    after.pair_gram  # noqa: B018 - it is computed by being looked at
    assert np.allclose(alone.class_gram, after.class_gram, rtol=1e-11, atol=1e-13 * alone.class_gram.max())


@pytest.mark.parametrize("part", ["class", "cross", "same", "sum"])
@pytest.mark.parametrize(("dtype", "tolerance"), DTYPES)
def test_eigenvectors_are_eigenvectors(part, dtype, tolerance):
    dense = reference(case())
    matrix = dense["class"] + dense["cross"] + dense["same"] if part == "sum" else dense[part]
    found = structure(case(dtype))
    values, vectors = found.eigenvalues(part)[:3], found.eigenvectors(part, 3).double()
    assert vectors.shape == (found.dimension, min(3, len(values)))
    residuals = (matrix @ vectors - vectors * torch.from_numpy(values)).norm(dim=0)
    assert (residuals <= 30 * tolerance * values[0]).all()
    assert (vectors.norm(dim=0) - 1).abs().max() <= 30 * tolerance * values[0] / values[-1]


@pytest.mark.parametrize("span", ["class means", "class and cross-class means"])
def test_basis_of_a_span_is_orthonormal_and_holds_the_means(span):
    problem = case()
    _, mean, _, _ = means(problem, names(problem))
    basis = torch.stack(list(structure(problem).basis(span)), 1)
    assert (basis.T @ basis - torch.eye(basis.shape[1])).abs().max() < 1e-6
    off = ~torch.eye(4, dtype=torch.bool)
    weights = means(problem, names(problem))[0]
    chosen = mean[off] if "cross" in span else (weights * off)[:, None] @ mean
    chosen = chosen.reshape(-1, basis.shape[0])
    outside = chosen.T - basis @ (basis.T @ chosen.T)
    assert outside.norm() <= 1e-6 * chosen.norm()


@pytest.mark.parametrize("memory", [None, 16_000, 20_000])
def test_slices_and_parts_of_batches_do_not_change_the_gram_matrices(memory):
    whole, sliced = structure(case()), structure(case(), memory=memory)
    pieces = 1 if memory is None else len(slices(whole.dimension, 16, 8, int(memory * 0.4 / 0.9)))
    assert (pieces > 1) == (memory is not None)
    assert np.allclose(sliced.pair_gram, whole.pair_gram, rtol=1e-12, atol=1e-13 * whole.pair_gram.max())


def test_positions_of_a_sequence_have_means_too():
    class Spatial(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(16, 8)

        def forward(self, x):
            return torch.tanh(self.layer(x.flatten(1))).view(-1, 4, 2)

    torch.manual_seed(0)
    data = [(torch.randn(6, 16), torch.arange(12).view(6, 2) % 4), (torch.randn(2, 16), torch.arange(4).view(2, 2))]
    data[1][1][0, 0] = -100
    problem = Case(Spatial(), nn.CrossEntropyLoss(), data).to(torch.float64)
    found = structure(problem).eigenvalues("sum")
    truth = exact(problem, "sum")
    assert np.abs(found - truth[: len(found)]).max() <= 1e-12 * truth[0]


def test_projections_are_inner_products_with_the_means():
    problem = case()
    weights, mean, _, g = means(problem, names(problem))
    vectors = torch.randn(g.shape[-1], 11, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    found = structure(problem).project(vectors)
    assert len(found) == 11
    scale = float(mean.norm(dim=-1).max() * vectors.norm(dim=0).max())
    for projection, vector in zip(found, vectors.T, strict=True):
        assert (projection.pair - mean @ vector).abs().max() <= 1e-14 * scale
        assert (torch.cat(projection.single) - g @ vector).abs().max() <= 1e-14 * scale


@pytest.mark.parametrize("span", ["class means", "class and cross-class means"])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-9), (torch.float32, 1e-4)])
def test_ritz_values_are_those_of_g_on_the_span(span, dtype, tolerance):
    problem = case()
    weights, mean, _, _ = means(problem, names(problem))
    off = ~torch.eye(4, dtype=torch.bool)
    columns = mean[off].T if "cross" in span else ((weights * off)[:, None] @ mean).squeeze(1).T
    basis = torch.from_numpy(scipy.linalg.orth(columns.numpy(), rcond=1e-6))
    truth = torch.linalg.eigvalsh(basis.T @ reference(problem)["full"] @ basis).flip(0).numpy()
    found = structure(case(dtype)).ritz_values(span)
    count = min(len(found), 4)
    assert np.abs(found[:count] - truth[:count]).max() <= tolerance * truth[0]
    assert (
        found <= torch.linalg.eigvalsh(reference(problem)["full"]).flip(0).numpy()[: len(found)] * (1 + tolerance)
    ).all()


@pytest.mark.parametrize("part", ["class", "cross", "same", "within"])
def test_traces_hold_their_errors(part):
    problem = case()
    truth = float(reference(problem)[part].trace())
    found = structure(problem)
    value, error = found.trace(part)
    assert abs(value - truth) <= 4 * error + 1e-12 * truth
    assert (error == 0) == (part in ("class", "same"))
    found.pair_gram  # noqa: B018
    value, error = found.trace("cross")
    assert error == 0
    assert value == pytest.approx(float(reference(problem)["cross"].trace()), rel=1e-11)


def test_within_traces_hold_their_errors_and_sum_to_that_of_the_part():
    problem = case()
    _, mean, w, g = means(problem, names(problem))
    y = torch.cat([targets for _, targets in problem.data])
    squares = w * (g - mean[y]).square().sum(-1)
    truth = torch.stack([squares[y == c].sum(0) for c in range(4)]).numpy()
    found, errors = structure(problem).within_traces(probes=64, seed=1)
    # Sixteen estimates of 64 samples each of a chi-square mixture: beyond 4 standard errors is not to be expected.
    assert (np.abs(found - truth) <= 4 * errors).all()
    assert truth.sum() == pytest.approx(float(reference(problem)["within"].trace()), rel=1e-12)
    assert errors.max() < truth.max()


def test_a_class_alone_in_its_samples_has_one_mean_and_no_spread():
    data = [(torch.randn(4, 1, 4, 4, generator=torch.Generator().manual_seed(0)), torch.arange(4))]
    problem = Case(cnn(), nn.CrossEntropyLoss(), data).to(torch.float64)
    found, errors = structure(problem).within_traces(probes=4)
    scale = float(reference(problem)["full"].trace())
    assert np.abs(found).max() <= 1e-20 * scale
    assert np.abs(errors).max() <= 1e-20 * scale


def test_bad_input_is_refused():
    with pytest.raises(ValueError, match="The loss is MSELoss"):
        ClassMeans(mlp(), nn.MSELoss(), [(torch.zeros(4, 5), torch.zeros(4, 4))])
    missing = Case(mlp(), nn.CrossEntropyLoss(), [(torch.zeros(4, 5), torch.tensor([0, 1, 1, 3]))]).to(torch.float64)
    with pytest.raises(ValueError, match=r"1 of 4 classes have no samples in the data \(2\)"):
        structure(missing).eigenvalues("class")
    with pytest.raises(ValueError, match="part is 'rest'; use one of 'class', 'cross', 'same' and 'sum'"):
        structure(case()).eigenvalues("rest")


def test_predicted_outliers_cost_less_than_15_products(monkeypatch):
    """Counted in gradients, each no dearer than half a Gauss-Newton product over the samples that it is of."""
    problem = case(sizes=(20,))
    count, original = [], torch.autograd.grad

    def grad(outputs, *args, **kwargs):
        if isinstance(outputs, torch.Tensor):  # and not once more from a torch function mode, as a tuple
            count.append(len(outputs))
        return original(outputs, *args, **kwargs)

    found = structure(problem)
    found.weights  # noqa: B018 - the passes over the whole data are not gradients
    monkeypatch.setattr(torch.autograd, "grad", grad)
    found.eigenvalues("class")
    # Two for each class (g_c and g_{c,c}), over its five samples.
    assert count == [5] * 8
    assert sum(count) / 20 / 2 < 15
