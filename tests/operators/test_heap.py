"""Freed memory is used again within a block, given back after it, and left alone where somebody else tunes it."""

import gc
import resource
import subprocess
import sys

import psutil
import pytest
import torch
from torch import nn

import hesspec
from cases import batches, labels
from hesspec._heap import _libc, kept_heap

SIZE = 16 << 20  # float32 numbers: 64 MB, which the C library maps anew each time

pytestmark = pytest.mark.skipif(_libc() is None, reason="the C library is another, or its memory is tuned")


def faults(count=32):
    """Page faults of so many tensors, one after the other, beyond the first.

    A few of them may find that a small block was put into the place of the one before, and take another.
    """
    torch.ones(SIZE)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(count):
        torch.ones(SIZE)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before


def resident():
    gc.collect()
    return psutil.Process().memory_info().rss


def test_within_a_block_the_same_pages_serve_again_and_again():
    outside = faults()
    with kept_heap():
        within = faults()
    assert within < outside / 4
    assert faults() > outside / 2


def test_a_block_gives_everything_back_at_its_end():
    with kept_heap():
        torch.ones(SIZE)
    before = resident()
    with kept_heap():
        torch.ones(2 * SIZE)
        kept = resident()
        with kept_heap():
            torch.ones(SIZE)
        inner = resident()
    after = resident()
    assert kept - before > 4 * SIZE  # of 8 * SIZE bytes
    assert inner - before < SIZE
    assert after - before < SIZE


def test_memory_is_given_back_after_an_error():
    with pytest.raises(ZeroDivisionError), kept_heap():
        1 / 0  # noqa: B018
    outside = faults()
    with kept_heap():
        assert faults() < outside / 4


def test_products_share_their_memory_and_an_operator_gives_back_what_it_kept():
    torch.manual_seed(0)
    samples, width = 20_000, 512
    activations = (nn.Tanh() for _ in range(4))
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, width), *activations, nn.Linear(width, 10))
    size = samples * width * 4

    def multiplied():
        operator = hesspec.Hessian(model, nn.CrossEntropyLoss(), batches((1, 8, 8), labels(10), sizes=[samples]))
        vector = torch.ones(operator.shape[0])
        # The first builds, and the second leaves the memory that the third works in.
        operator @ vector, operator @ vector
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        operator @ vector
        return operator, resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

    multiplied()
    before = resident()
    operator, seen = multiplied()
    # A product makes some dozen tensors of this size; each of them in fresh memory has as many faults as it has pages.
    assert operator.attributes["predicted_peak_bytes"] > 8 * size
    assert seen < size / resource.getpagesize()
    assert resident() - before > 4 * size
    del operator
    assert resident() - before < size


def test_a_spectrum_gives_back_its_basis_though_the_operator_lives():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 10_000), nn.Tanh(), nn.Linear(10_000, 10))
    operator = hesspec.Hessian(model, nn.CrossEntropyLoss(), batches((1, 8, 8), labels(10), sizes=[200]))
    hesspec.spectrum(operator, steps=2)
    before = resident()
    hesspec.spectrum(operator, steps=40)
    assert operator.shape[0] > 700_000
    assert resident() - before < 10 * 4 * operator.shape[0]


@pytest.mark.parametrize(
    "setting", [{"MALLOC_TRIM_THRESHOLD_": "1000000"}, {"GLIBC_TUNABLES": "glibc.malloc.mmap_max=9"}]
)
def test_settings_of_the_user_stay(setting):
    code = "from hesspec._heap import _libc; print(_libc())"
    run = subprocess.run(  # noqa: S603 - this very Python
        [sys.executable, "-c", code], env={**setting}, capture_output=True, text=True, check=True, timeout=100
    )
    assert run.stdout.strip() == "None"
