"""Applications on a pretended device: no tensor on the wrong one, the numbers of the CPU, and few waits."""

import pytest
from device_process import printed_rows


def rows(*names):
    return {row["what"]: row for row in printed_rows("device_applications.py", *names)}


# How often the host waits for the device each time. Of an iteration of a solver: one of the product and one of its
# check, three of the norms of vectors that bound the matrix, one of the residuals that are left; conjugate gradients
# have two inner products, one that is refused, and a norm besides.
SHORT = {"diagonal": 0.5, "minres": 7, "conjugate_gradients": 11, "amuse": 0}
LONG = [
    "eigenpairs",
    "largest",
    "trace",
    "class_structure",
    "attribution",
    "by_block",
    "along",
    "noise",
    "angles",
    "fast_gauss_newton",
    "shares",
    "stability",
    "exponents",
    "laplace",
]


def test_solvers_and_optimisers_are_those_of_the_cpu_and_wait_no_more_than_they_must():
    found = rows(*SHORT)
    for name, waits in SHORT.items():
        assert found[name]["apart"] <= 1e-12, name
        assert found[name]["waits"] <= waits, name


@pytest.mark.long
def test_applications_are_those_of_the_cpu():
    found = rows(*LONG)
    for name in LONG:
        # Inner products may be summed in another order.
        assert found[name]["apart"] <= 1e-9, name
