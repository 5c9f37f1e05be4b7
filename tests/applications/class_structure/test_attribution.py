"""Shares, projections, angles and knock-outs, against dense matrices and their exact eigenvectors."""

import dataclasses

import numpy as np
import pytest
import scipy.linalg
import torch
from cases import Case, batches, cnn, dense, mlp
from class_structure import means, reference
from saved_results import check_saved
from torch import nn

import hesspec
from hesspec.applications.class_structure.record import ALL_MEANS, CLASS_MEANS, NOTHING, PARTS

OPERATORS = {"Hessian": hesspec.Hessian, "GaussNewton": hesspec.GaussNewton, "Residual": hesspec.Residual}


def case(dtype=torch.float64):
    return Case(cnn(), nn.CrossEntropyLoss(), batches((1, 4, 4), lambda size: torch.arange(size) % 4, (13, 13, 10))).to(
        dtype
    )


def names(problem):
    return tuple(name for name, _ in problem.model.named_parameters())


def structure(problem):
    return hesspec.ClassMeans(problem.model, problem.loss, problem.data)


def pairs_of(problem, matrix, count=4):
    operator = OPERATORS[matrix](problem.model, problem.loss, problem.data)
    return hesspec.eigenpairs(operator, count=count, steps=60)


def truth(problem, matrix):
    """Dense matrix, and its eigenpairs by decreasing absolute value."""
    entries = dense(problem, names(problem)).matrices[matrix]
    values, vectors = torch.linalg.eigh(entries)
    order = values.abs().argsort(descending=True)
    return entries, values[order], vectors[:, order]


def spans(problem):
    weights, mean, _, _ = means(problem, names(problem))
    off = ~torch.eye(4, dtype=torch.bool)
    centres = ((weights * off)[:, None] @ mean).squeeze(1)
    return {CLASS_MEANS: centres.T.numpy(), ALL_MEANS: mean[off].T.numpy()}


@pytest.mark.parametrize("matrix", OPERATORS)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-9), (torch.float32, 1e-4)])
@pytest.mark.few(3)
def test_shares_are_quadratic_forms_and_sum_to_the_eigenvalue(matrix, dtype, tolerance):
    parts = reference(case())
    _, values, vectors = truth(case(), matrix)
    found = hesspec.attribute_outliers(structure(case(dtype)), pairs_of(case(dtype), matrix))
    scale = float(truth(case(), "Hessian")[1].abs().max())
    for i in range(4):
        expected = [float(vectors[:, i] @ parts[part] @ vectors[:, i]) for part in PARTS]
        assert np.abs(found.shares[i, :4] - expected).max() <= tolerance * scale
        assert found.shares[i].sum() == pytest.approx(float(values[i]), abs=tolerance * scale)


@pytest.mark.parametrize("matrix", OPERATORS)
def test_projections_and_angles_are_those_of_dense_spans(matrix):
    problem = case()
    _, _, vectors = truth(problem, matrix)
    top = vectors[:, :4].numpy()
    found = hesspec.attribute_outliers(structure(problem), pairs_of(problem, matrix))
    for span, columns in spans(problem).items():
        basis = scipy.linalg.orth(columns, rcond=1e-10)
        inside = ((basis.T @ top) ** 2).sum(0)
        assert np.abs((found.in_class if span == CLASS_MEANS else found.in_means) - inside).max() <= 1e-6
        angles = np.sort(scipy.linalg.subspace_angles(basis, top))
        # An angle is the arc cosine of a number that is good to 1e-8 or so: near 0 it is good to the root of that.
        assert np.abs(found.angles[span] - angles).max() <= 1e-3
        large = angles > 0.1
        assert np.abs(found.angles[span] - angles)[large].max(initial=0) <= found.angle_error + 1e-6


def test_errors_of_vectors_bound_those_of_angles():
    problem = case()
    _, _, vectors = truth(problem, "Hessian")
    operator = hesspec.Hessian(problem.model, problem.loss, problem.data)
    pairs = hesspec.eigenpairs(operator, count=4, steps=14)
    found = hesspec.attribute_outliers(structure(problem), pairs)
    basis = scipy.linalg.orth(spans(problem)[CLASS_MEANS], rcond=1e-10)
    angles = np.sort(scipy.linalg.subspace_angles(basis, vectors[:, : pairs.values.size].numpy()))
    assert np.abs(found.angles[CLASS_MEANS] - angles).max() <= found.angle_error + 1e-6


@pytest.mark.parametrize("span", [CLASS_MEANS, ALL_MEANS])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-9), (torch.float32, 1e-5)])
@pytest.mark.few(2)
def test_knocked_out_spectrum_is_that_of_the_projected_matrix(span, dtype, tolerance):
    entries, values, _ = truth(case(), "Hessian")
    basis = torch.from_numpy(scipy.linalg.orth(spans(case())[span], rcond=1e-10))
    projector = torch.eye(len(entries), dtype=torch.float64) - basis @ basis.T
    left = torch.linalg.eigvalsh(projector @ entries @ projector)
    left = left[left.abs().argsort(descending=True)].numpy()
    problem = case(dtype)
    operator = hesspec.Hessian(problem.model, problem.loss, problem.data)
    found = hesspec.project_out(operator, structure(problem).basis(span), count=12, steps=60)
    assert found.attributes["projected_out"] == basis.shape[1]
    assert found.eigenvalues.size >= 3
    floor = tolerance * float(values.abs().max())
    assert (np.abs(found.eigenvalues[:3] - left[:3]) <= found.error_bounds[:3] + floor).all()


def test_dependent_vectors_are_knocked_out_once():
    matrix = torch.diag(torch.arange(40, 0, -1, dtype=torch.float64))
    first, second = torch.eye(40, dtype=torch.float64)[:2]
    found = hesspec.project_out(matrix, [first, first + 1e-12 * second, first + second], count=3, steps=40)
    assert found.attributes["projected_out"] == 2
    assert found.eigenvalues.max() == pytest.approx(38, abs=1e-10)


@pytest.mark.parametrize("cross", [True, False])
@pytest.mark.few(1)
def test_whole_structure_is_kept_and_comes_back(cross, tmp_path):
    problem = case()
    said = []
    found = hesspec.class_structure(
        problem.model, problem.loss, problem.data, cross=cross, steps=60, on_progress=lambda *a: said.append(a)
    )
    live = structure(problem)
    assert found.classes == 4
    assert found.dimension == live.dimension
    assert np.allclose(found.class_eigenvalues, live.eigenvalues("class"), rtol=1e-9)
    assert found.gram.shape == ((20, 20) if cross else (4, 4))
    assert found.cross_eigenvalues.size == (8 if cross else 0)
    assert np.allclose(found.distances()[:4, :4], distances(live.class_gram[:4, :4]), atol=1e-7 * found.gram.max())
    hessian = hesspec.spectrum(hesspec.Hessian(problem.model, problem.loss, problem.data), steps=60)
    hessian = dataclasses.replace(hessian, attributes={**hessian.attributes, "classes": 4})
    mine = found.outlier_matrix == "Hessian"
    explained = hessian.is_outlier | (np.arange(hessian.eigenvalues.size) < 4)
    assert np.allclose(found.outliers[mine], hessian.eigenvalues[explained], rtol=1e-9)
    assert np.isnan(found.outlier_in_means).all() != cross
    assert np.allclose(found.outlier_shares[mine].sum(1), found.outliers[mine], rtol=1e-9)
    removed = [NOTHING, CLASS_MEANS, ALL_MEANS][: 3 if cross else 2]
    assert found.knockout_edges.shape == (len(removed), 2)
    assert set(found.knockout_removed) <= set(removed)
    assert np.allclose(found.knockout_eigenvalues[found.knockout_removed == NOTHING], hessian.outliers, rtol=1e-9)
    measured, predicted, error = found.predicted()
    assert (measured > 0).all()
    assert np.allclose(error, np.abs(predicted - measured) / measured)
    assert {what for what, _, _ in said} >= {"means", "traces", "Hessian", "Hessian without class means"}
    check_saved(found, tmp_path)


def distances(gram):
    norms = np.diag(gram)
    return np.sqrt(np.clip(norms[:, None] + norms - 2 * gram, 0, None))


def test_files_that_hold_no_structure_are_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="There is no file"):
        hesspec.ClassStructure.load(tmp_path / "none.nc")
    (tmp_path / "text.nc").write_text("no")
    with pytest.raises(ValueError, match="is not a NetCDF file that hesspec can read"):
        hesspec.ClassStructure.load(tmp_path / "text.nc")
    hesspec.spectrum(torch.eye(4), steps=2).save(tmp_path / "spectrum.nc")
    with pytest.raises(ValueError, match="has no valid class structure"):
        hesspec.ClassStructure.load(tmp_path / "spectrum.nc")


def test_an_unknown_matrix_is_refused():
    with pytest.raises(ValueError, match="Hesian"):
        hesspec.class_structure(
            mlp(), nn.CrossEntropyLoss(), [(torch.zeros(4, 5), torch.arange(4))], matrices=["Hesian"]
        )
