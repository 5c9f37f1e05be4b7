"""Precision of float32 matrix products and convolutions, which PyTorch's settings may lower."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch

__all__ = ["float32_sums", "full_float32", "is_full_float32"]

# TF32 by default for convolutions on CUDA, and everywhere what `torch.set_float32_matmul_precision` says.
ON_CUDA: list[Any] = [torch.backends.cuda.matmul, torch.backends.cudnn.conv, torch.backends.cudnn.rnn]  # type: ignore[attr-defined]
ON_CPU: list[Any] = [torch.backends.mkldnn.matmul, torch.backends.mkldnn.conv, torch.backends.mkldnn.rnn]  # type: ignore[attr-defined]
# Settings that do not round float32; "none" is that of a backend without one.
FULL = ("ieee", "none")


def _backends() -> list[Any]:
    return [*ON_CPU, *ON_CUDA] if torch.cuda.is_initialized() else ON_CPU  # type: ignore[no-untyped-call]


def is_full_float32() -> bool:
    """Whether products and convolutions are in full float32 on all devices in use."""
    return all(backend.fp32_precision in FULL for backend in _backends())


@contextmanager
def full_float32(*, tf32: bool = False) -> Iterator[None]:
    """Compute float32 products and convolutions in full precision, and restore the caller's settings.

    Parameters
    ----------
    tf32 : bool
        Whether those on CUDA are in TF32 instead.
    """
    backends = _backends()
    before = [backend.fp32_precision for backend in backends]
    wanted = ["tf32" if tf32 and backend in ON_CUDA else "ieee" for backend in backends]
    changed = [each for each in zip(backends, before, wanted, strict=True) if _differs(each[1], each[2])]
    products = _product_precision()
    try:
        for backend, _, value in changed:
            backend.fp32_precision = value
        with _older_switches(products, backends, wanted, before) if len(backends) > len(ON_CPU) else nullcontext():
            yield
    finally:
        for backend, value, _ in changed:
            backend.fp32_precision = value


@contextmanager
def float32_sums() -> Iterator[None]:
    """Sum products of bfloat16 matrices in float32 on CUDA, where PyTorch may add parts of a sum in bfloat16."""
    matmul: Any = torch.backends.cuda.matmul
    reduced = matmul.allow_bf16_reduced_precision_reduction
    if not reduced:
        yield
        return
    split = matmul.allow_bf16_reduced_precision_reduction_split_k
    matmul.allow_bf16_reduced_precision_reduction = False, split
    try:
        yield
    finally:
        matmul.allow_bf16_reduced_precision_reduction = reduced, split


@contextmanager
def _older_switches(products: str | None, backends: list[Any], wanted: list[str], before: list[str]) -> Iterator[None]:
    """Make PyTorch's older switches for CUDA agree with the newer settings, `wanted`, within this context.

    Where they disagree, reading one raises, and models read them: `torch.backends.cudnn.flags(enabled=False)`, which
    second derivatives of RNNs need, reads the one of cuDNN. To set one sets newer settings, too.
    """
    tf32 = "tf32" in wanted
    other_products = products is not None and (products != "highest") != tf32
    other_cudnn = not _cudnn_is_readable()

    def put(precision: str | None, switch: bool, settings: list[str]) -> None:
        if other_products and precision is not None:
            torch.set_float32_matmul_precision(precision)
        if other_cudnn:
            torch.backends.cudnn.allow_tf32 = switch
        if other_products or other_cudnn:
            for backend, value in zip(backends, settings, strict=True):
                backend.fp32_precision = value

    try:
        put("high" if tf32 else "highest", tf32, wanted)
        yield
    finally:
        put(products, not tf32, before)


def _product_precision() -> str | None:
    """Return the older setting for matrix products; None if it disagrees with the newer ones."""
    try:
        return torch.get_float32_matmul_precision()
    except RuntimeError:
        return None


def _cudnn_is_readable() -> bool:
    try:
        return torch.backends.cudnn.allow_tf32 in (True, False)
    except RuntimeError:
        return False


def _differs(one: str, other: str) -> bool:
    return (one in FULL) != (other in FULL) or (one not in FULL and one != other)
