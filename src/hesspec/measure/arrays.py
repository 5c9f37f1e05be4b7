"""NumPy arrays, and sparse matrices and linear operators of SciPy, as operators."""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np
import scipy.sparse
import torch
from scipy.sparse.linalg import LinearOperator
from torch import Tensor

from hesspec.backend.algebra import Composable, SymmetricOperator

__all__ = ["ScipyOperator", "as_operator"]


def as_operator(operator: Any) -> SymmetricOperator:
    """Return an operator for a NumPy array, or a sparse matrix or linear operator of SciPy; others are unchanged.

    Parameters
    ----------
    operator : object
        Symmetric. Float32 and float64 are kept; integers, booleans and float16 become float64, as does a linear
        operator that has no dtype. Arrays are not copied unless their dtype changes or they are read-only.

    Raises
    ------
    ValueError
        If the dtype is complex or no number.
    """
    if isinstance(operator, np.ndarray):
        matrix = np.asarray(operator, dtype=_dtype_of(operator, "NumPy array"))
        return torch.from_numpy(matrix if matrix.flags.writeable else matrix.copy())
    if scipy.sparse.issparse(operator):
        dtype = _dtype_of(operator, "sparse matrix")
        return ScipyOperator(operator.tocsr().astype(dtype, copy=False), dtype)
    if isinstance(operator, LinearOperator):
        return ScipyOperator(operator, _dtype_of(operator, "LinearOperator"))
    found: SymmetricOperator = operator
    return found


def _dtype_of(operator: Any, what: str) -> np.dtype[Any]:
    dtype = np.dtype(np.float64 if operator.dtype is None else operator.dtype)
    if dtype.kind not in "fiub" or dtype.itemsize > 8:
        raise ValueError(
            f"The operator is a {what} of {dtype}; spectra are measured of real symmetric operators, in float32 or "
            "float64. The eigenvalues of a Hermitian matrix A + iB are those of [[A, -B], [B, A]], each twice."
            if dtype.kind == "c"
            else f"The operator is a {what} of {dtype}; spectra are measured in float32 or float64."
        )
    return dtype if dtype in (np.float32, np.float64) else np.dtype(np.float64)


class ScipyOperator(Composable):
    """Sparse matrix or linear operator of SciPy, on the CPU.

    Parameters
    ----------
    matrix : scipy.sparse matrix or array, or scipy.sparse.linalg.LinearOperator
        Symmetric, of shape (p, p).
    dtype : numpy.dtype
        Float32 or float64: that of the vectors.
    """

    device = torch.device("cpu")

    def __init__(self, matrix: Any, dtype: np.dtype[Any]) -> None:
        self._matrix = matrix
        self.shape = tuple(map(int, matrix.shape))
        self.dtype = torch.float32 if dtype == np.float32 else torch.float64

    def identity(self) -> dict[str, str]:
        """Content hash of a sparse matrix; a linear operator is known by its class only."""
        if not scipy.sparse.issparse(self._matrix):
            return {"matrix": type(self._matrix).__name__}
        parts = (self._matrix.indptr, self._matrix.indices, self._matrix.data)
        content = b"".join(np.ascontiguousarray(part).tobytes() for part in parts)
        return {"matrix's content": hashlib.blake2b(content).hexdigest()[:16]}

    def __matmul__(self, vectors: Tensor) -> Tensor:
        """Product with a vector (p,) or with the columns of a matrix (p, k)."""
        product = np.asarray(self._matrix @ vectors.detach().numpy())
        if np.iscomplexobj(product):
            raise ValueError("The operator's product with a real vector is complex; only real operators are measured.")
        return torch.as_tensor(product, dtype=self.dtype, device="cpu").reshape(vectors.shape)
