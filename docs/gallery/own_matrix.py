"""
Your own matrix
===============

`hesspec.spectrum` accepts any symmetric matrix that can multiply vectors: a class of your own, a dense tensor, or an
operator of another library. Conversely, hesspec's operators work in SciPy.
"""

import numpy as np
import torch
from scipy.sparse.linalg import eigsh

import hesspec
from hesspec.plot import plot_spectrum


class Covariance:
    """Covariance of data (n, p), whose p by p entries are never stored."""

    def __init__(self, data):
        self.data = data - data.mean(0)
        self.shape, self.dtype, self.device = (data.shape[1],) * 2, data.dtype, data.device

    def __matmul__(self, vectors):
        return self.data.T @ (self.data @ vectors) / len(self.data)


torch.manual_seed(0)
factors = 3 * torch.randn(1_500, 4) @ torch.randn(4, 3_000) / 3_000**0.5
covariance = Covariance(factors + torch.randn(1_500, 3_000))

# %%
# Four factors plus noise give outliers, and a bulk that follows the Marchenko–Pastur law.

spectrum = hesspec.spectrum(covariance, progress=False)
print(spectrum)

# %%
# SciPy's ``eigsh`` finds the same largest eigenvalues of an operator of a network.

model = torch.nn.Linear(20, 5)
data = [(torch.randn(200, 20), torch.randint(5, (200,)))]
hessian = hesspec.Hessian(model, torch.nn.CrossEntropyLoss(), data)
ours = hesspec.eigenpairs(hessian, count=3, progress=False).values
theirs = eigsh(hessian.to_scipy(), k=3, return_eigenvectors=False)[::-1]
print(ours, theirs)
assert np.allclose(ours, theirs, rtol=1e-4)

# %%
# The eigenvalues of a covariance are variances: the axis has no unit of a loss.

plot_spectrum({"covariance": spectrum}, kind="linear")
