"""Operators on a pretended device: no tensor on the wrong one, the numbers of the CPU, and one wait in a product."""

import pytest
from device_process import printed_rows

# The product is looked at once, whether it is finite, however many vectors it has.
ONE = {"to the host": 1}
# Differences have sizes: of a batch, norms that set displacements, values, and slopes.
OF_DIFFERENCES = 13
BATCHES = 3
# Of a step: those of `tests/krylov/test_pretended_gpu.py`, and one of the product.
OF_STEPS = 6


def rows(*asked):
    return printed_rows("device_products.py", *asked)


def check(found, waits=ONE):
    for row in found:
        here, there = row["modes"]
        # Linear layers and attention are several operations there; differences settle to 1e-8 in float64.
        assert row["apart"] <= (1e-8 if there == "differences" else 1e-13), row
        assert here == there, row
        if there == "differences":
            assert sum(row["waits"].values()) <= OF_DIFFERENCES * BATCHES, row
        else:
            assert row["waits"] == waits, row


def test_products_and_spectra_are_those_of_the_cpu():
    found = rows("few=mlp", "others", "spectra")
    products = [row for row in found if "modes" in row]
    check(products)
    spectra = {row["what"]: row for row in found if row not in products}
    assert (len(products), len(spectra)) == (8, 6)
    for row in spectra.values():
        # Inner products are summed in another order where the basis is rounded.
        assert row["apart"] <= 1e-13, row
    assert spectra["ten steps"]["waits"]["of any kind"] <= 10 * OF_STEPS


@pytest.mark.long
def test_spectra_where_tensors_are_on_the_device_by_default():
    found = rows("default")
    assert len(found) == 4
    for row in found:
        assert row["apart"] <= 1e-13, row


@pytest.mark.long
# Not of losses with weights: a tensor of a device in Python cannot be copied as a part of a module.
@pytest.mark.parametrize("name", ["mlp", "cnn", "residual cnn", "transformer encoder", "recurrent"])
def test_products_of_other_networks_are_those_of_the_cpu(name):
    check(rows(f"products={name}"))


@pytest.mark.long
def test_parts_and_moments_are_those_of_the_cpu():
    check(rows("moments=mlp"))
    # Parts of classes ask first whether each class has samples.
    check(rows("parts=mlp"), {"to the host": 2})
