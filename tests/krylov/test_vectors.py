"""Inner products, norms and combinations are exact to rounding, whatever the length, the layout and the scale."""

import math

import numpy as np
import pytest
import torch

from hesspec.krylov.vectors import PIECE, ROW, Space, inner, norm, reduce_and_scale


def exact(a, b):
    return float(np.sum(a.double().numpy() * b.double().numpy(), dtype=np.longdouble))


@pytest.mark.parametrize("size", [0, 1, ROW - 1, ROW, ROW + 1, 7 * ROW + 5, 1_000_003])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_inner_products(size, dtype):
    generator = torch.Generator().manual_seed(size)
    a, b = torch.randn(2, size, generator=generator, dtype=torch.float64).to(dtype)
    scale = norm(a) * norm(b)
    assert abs(inner(a, b) - exact(a, b)) <= torch.finfo(dtype).eps * scale
    # In float64 nothing wider is there to add in: some units, for the terms that each lane of the processor adds up.
    units = 1 if dtype == torch.float32 else 16
    assert abs(norm(a) - math.sqrt(exact(a, a))) <= units * torch.finfo(dtype).eps * norm(a)


def test_all_of_one_sign():
    # Errors do not average out: up to half a unit for each term of a row that one of 16 lanes adds up.
    a = torch.full((3_000_000,), 1 / 3)
    assert abs(inner(a, a) / exact(a, a) - 1) <= ROW / 16 / 2 * torch.finfo(torch.float32).eps


def test_columns_of_a_matrix():
    matrix = torch.randn(3 * ROW + 1, 3, generator=torch.Generator().manual_seed(0))
    a, b = matrix.T[0], matrix.T[2]
    assert not a.is_contiguous()
    assert inner(a, b) == pytest.approx(exact(a, b), abs=torch.finfo(torch.float32).eps * norm(a) * norm(b))


@pytest.mark.parametrize("scale", [1e-30, 1e-12, 1.0, 1e12, 1e30])
def test_norms_neither_overflow_nor_vanish(scale):
    a = torch.randn(2 * ROW, generator=torch.Generator().manual_seed(0))
    assert norm(a * scale) == pytest.approx(float((a * scale).double().norm()), rel=torch.finfo(torch.float32).eps)


def drawn(count, size, dtype):
    generator = torch.Generator().manual_seed(size)
    return torch.randn(count, size, generator=generator, dtype=torch.float64).to(dtype)


# Lengths of no piece, of one, and of several of which the last is short.
LENGTHS = pytest.mark.parametrize("size", [0, 1, ROW + 1, PIECE, 2 * PIECE + ROW + 3])
DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.float64])


@LENGTHS
@DTYPES
def test_an_inner_product_and_a_norm_in_one_pass(size, dtype):
    a, b = drawn(2, size, dtype)
    product, length = Space(size).inner_and_norm(a, b)
    assert abs(product - exact(a, b)) <= torch.finfo(dtype).eps * norm(a) * norm(b)
    assert length == pytest.approx(norm(b), rel=16 * torch.finfo(dtype).eps)


@LENGTHS
@DTYPES
def test_a_step_of_the_recurrence_in_one_pass(size, dtype):
    image, q, last = drawn(3, size, dtype)
    before = image.clone()
    w, along, length = Space(size).combine(image, [(-0.7, q), (-1.3, last)], q)
    eps = torch.finfo(dtype).eps
    expected = image.double() - 0.7 * q.double() - 1.3 * last.double()
    # Two sums and two products are rounded, none of which is larger than the three terms.
    largest = image.abs() + 0.7 * q.abs() + 1.3 * last.abs()
    assert ((w.double() - expected).abs() <= 2 * eps * largest.double()).all()
    assert abs(along - exact(q, w)) <= eps * norm(q) * norm(w)
    assert length == pytest.approx(norm(w), rel=16 * eps)
    assert torch.equal(image, before)


@LENGTHS
@DTYPES
def test_what_is_left_of_a_residual_in_one_pass(size, dtype):
    w, q = drawn(2, size, dtype)
    expected = (w.double() - 0.3 * q.double()) / 2.5
    eps = torch.finfo(dtype).eps
    largest = (w.abs() + 0.3 * q.abs()).double() / 2.5
    result = reduce_and_scale(w, 0.3, q, 2.5)
    assert result is w
    assert ((w.double() - expected).abs() <= 2 * eps * largest).all()


@pytest.mark.parametrize("scale", [1e-30, 1e30])
def test_one_pass_neither_overflows_nor_vanishes(scale):
    q, image = drawn(2, 2 * ROW, torch.float32)
    q /= norm(q)
    product, length = Space(len(q)).inner_and_norm(q, image * scale)
    assert length == pytest.approx(norm(image) * scale, rel=1e-6)
    assert product == pytest.approx(inner(q, image) * scale, rel=1e-4)
    w, _, rest = Space(len(q)).combine(image * scale, [(-inner(q, image) * scale, q)], q)
    assert rest == pytest.approx(float(w.double().norm()), rel=1e-6)
