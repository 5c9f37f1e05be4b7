r"""Approximate orthogonalisation of matrices by a Newton-Schulz iteration, as in Muon."""

from __future__ import annotations

import torch
from torch import Tensor

from hesspec.backend.numbers import check_counts

__all__ = ["orthogonalise"]

# The odd polynomial 3.4445 s - 4.775 s^3 + 2.0315 s^5 of Muon (K. Jordan, github.com/KellerJordan/Muon), whose large
# slope at zero raises small singular values in few steps; in exchange the iteration does not converge to 1.
FIRST, THIRD, FIFTH = 3.4445, -4.7750, 2.0315


@torch.no_grad()
def orthogonalise(matrix: Tensor, steps: int = 5, dtype: torch.dtype | None = None) -> Tensor:
    r"""Approximate the orthogonal polar factor U V^T of a matrix U S V^T by Newton-Schulz steps.

    .. math:: U \varphi^{\text{steps}}(S / \|S\|_F) V^\top, \qquad \varphi(s) = 3.4445 s - 4.775 s^3 + 2.0315 s^5,

    with the coefficients of Muon (github.com/KellerJordan/Muon). Five steps map singular values from 0.01 to 1, in
    units of the Frobenius norm, to values between 0.68 and 1.14; smaller ones end lower, 0.001 at 0.47. The result does
    not depend on the scale of the matrix.

    Parameters
    ----------
    matrix : Tensor (..., m, n)
        One matrix or several.
    steps : int
        Number of steps, each of which needs three matrix products.
    dtype : torch.dtype, optional
        Precision of the products: by default that of the matrix. `torch.bfloat16`, which is used by `torch.optim.Muon`,
        has relative errors of a few percent.

    Returns
    -------
    Tensor (..., m, n)
        In the dtype of the input; zero for a matrix of zeros.

    Raises
    ------
    ValueError
        If the input is not a floating-point matrix, or `steps` is not a positive integer.

    Examples
    --------
    >>> import torch, hesspec
    >>> hesspec.optim.orthogonalise(torch.diag(torch.tensor([3.0, 0.4])))
    tensor([[0.7069, 0.0000],
            [0.0000, 0.6941]])
    """
    if matrix.ndim < 2 or not matrix.is_floating_point():
        raise ValueError(
            f"The input is {matrix.dtype} of shape {tuple(matrix.shape)}; it must be a floating-point matrix."
        )
    check_counts(steps=steps)
    tall = matrix.shape[-2] > matrix.shape[-1]
    x = matrix.mT if tall else matrix
    tiny = torch.finfo(x.dtype).tiny
    # The largest entry is divided out first, so that squares neither overflow nor underflow.
    x = x / x.abs().amax((-2, -1), keepdim=True).clamp(min=tiny)
    x = (x / torch.linalg.matrix_norm(x, keepdim=True).clamp(min=tiny)).to(dtype or x.dtype)
    for _ in range(int(steps)):
        gram = x @ x.mT
        x = FIRST * x + (THIRD * gram + FIFTH * (gram @ gram)) @ x
    found: Tensor = (x.mT if tall else x).to(matrix.dtype)
    return found
