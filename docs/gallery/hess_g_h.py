"""
The Hessian and its two parts
=============================

The Hessian of the loss is Hess = G + H. The Gauss–Newton part G is positive semi-definite and has the large
eigenvalues; the residual part H has both signs. In a network that fits its data H is small: the largest eigenvalues of
Hess are nearly those of G.
"""

import torch
from sklearn.datasets import load_digits
from torch import nn

import hesspec
from hesspec.plot import plot_spectrum

torch.manual_seed(0)
images, labels = load_digits(return_X_y=True)
inputs, targets = torch.tensor(images / 16).float(), torch.tensor(labels)
model = nn.Sequential(nn.Linear(64, 32), nn.Tanh(), nn.Linear(32, 10))
loss_fn, optimizer = nn.CrossEntropyLoss(), torch.optim.Adam(model.parameters(), lr=0.01)
for _ in range(100):
    optimizer.zero_grad()
    loss_fn(model(inputs), targets).backward()
    optimizer.step()

# %%
# All three are operators of the same model, loss and data. A `hesspec.GraphCache` lets them share one trace.

graphs = hesspec.GraphCache()
matrices = {"Hess": hesspec.Hessian, "G": hesspec.GaussNewton, "H": hesspec.Residual}
spectra = {
    name: hesspec.spectrum(matrix(model, loss_fn, [(inputs, targets)], graphs=graphs), progress=False)
    for name, matrix in matrices.items()
}
for name, spectrum in spectra.items():
    print(f"{name:>4}: {spectrum.nodes.min():9.4f} to {spectrum.nodes.max():.4f}")

# %%
# A matrix has the same colour in all figures. Outliers are defined by gaps: the rule finds nine in Hess and none in G,
# although their largest eigenvalues nearly agree.

plot_spectrum(spectra)
