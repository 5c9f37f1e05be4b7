"""Spectra from a basis that ranks share, and class structures of data that they share, are those of one process."""

import pytest
from distributed_ranks import launch_forked, results

# Of the largest number. Float32: products differ by the order of their sums, a few eps = 1.2e-7; eigenvalues, whose
# vectors differ too, by up to 9 eps.
TOLERANCE = {"float64": 1e-12, "float32": 2e-6}


# What float32 changes is the same on any number of ranks.
@pytest.fixture(
    scope="module",
    params=[
        (2, "float64"),
        *(pytest.param(of, marks=pytest.mark.long) for of in ((2, "float32"), (3, "float64"))),
    ],
    ids=lambda of: f"{of[0]} ranks, {of[1]}",
)
def measured(request):
    ranks, dtype = request.param
    return ranks, dtype, results("spectra.py", ranks, dtype, start=launch_forked)


@pytest.fixture
def ranks(measured):
    return measured[0]


@pytest.fixture
def dtype(measured):
    return measured[1]


@pytest.fixture
def found(measured):
    return measured[2]


def test_a_spectrum_is_that_of_one_process_however_the_basis_is_kept(found, ranks, dtype):
    for of_rank in found:
        for way, seen in of_rank["spectra"].items():
            if way == "eigenpairs":
                continue
            assert seen["eigenvalues"] <= TOLERANCE[dtype], way
            assert seen["excess over bounds"] <= 1, way
            assert (seen["steps"], seen["ranks"]) == (0, ranks), way


def test_every_rank_has_whole_eigenvectors(found, dtype):
    for of_rank in found:
        for what, error in of_rank["spectra"]["eigenpairs"].items():
            assert error <= TOLERANCE[dtype], what


def test_a_class_structure_is_that_of_one_process(found, dtype):
    for of_rank in found:
        for what, error in of_rank["structure"].items():
            assert error <= TOLERANCE[dtype], what


def test_slices_make_up_the_vectors_of_one_process_to_the_bit(found):
    for of_rank in found:
        for what, error in of_rank["slices"].items():
            assert error == 0 or what.startswith(("shares", "sketched")), what


def test_sketches_are_those_of_one_process_up_to_the_order_of_sums(found):
    sketches = [error for of_rank in found for what, error in of_rank["slices"].items() if what.startswith("sketched")]
    # In float64, of sums of up to 1,600 normal numbers.
    assert max(sketches) < 1e-11


def test_each_rank_keeps_its_part_of_the_basis_and_no_more(found):
    assert max(of_rank["slices"]["shares of the basis"] for of_rank in found) < 0.05
