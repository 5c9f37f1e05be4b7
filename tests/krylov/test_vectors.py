"""Inner products and norms are exact to the unit of float32, whatever the length, the layout and the scale."""

import math

import numpy as np
import pytest
import torch

from hesspec.krylov.vectors import ROW, inner, norm


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
