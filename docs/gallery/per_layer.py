"""
Per layer
=========

The curvature with respect to the parameters of one layer is a diagonal block of the Hessian. By Cauchy's
interlacing theorem its largest eigenvalue is at most that of the whole matrix.
"""

import torch
from sklearn.datasets import load_digits
from torch import nn

import hesspec
from hesspec.plot import plot_spectrum

torch.manual_seed(0)
images, labels = load_digits(return_X_y=True)
inputs, targets = torch.tensor(images[:600] / 16).float(), torch.tensor(labels[:600])
model = nn.Sequential(nn.Linear(64, 24), nn.Tanh(), nn.Linear(24, 24), nn.Tanh(), nn.Linear(24, 10))
loss_fn, optimizer = nn.CrossEntropyLoss(), torch.optim.Adam(model.parameters(), lr=0.01)
for _ in range(60):
    optimizer.zero_grad()
    loss_fn(model(inputs), targets).backward()
    optimizer.step()

# %%
# Select layers by names, patterns or modules.

spectra = {"all": hesspec.spectrum(hesspec.Hessian(model, loss_fn, [(inputs, targets)]), progress=False)}
for layer in ("0", "2", "4"):
    block = hesspec.Hessian(model, loss_fn, [(inputs, targets)], params=[f"{layer}.*"])
    spectra[f"layer {layer}"] = hesspec.spectrum(block, progress=False)
for name, spectrum in spectra.items():
    print(f"{name:>8}: p = {spectrum.dimension:5,}, largest {spectrum.eigenvalues[0]:.3f}, trace {spectrum.trace:.3f}")

# %%
plot_spectrum(spectra, kind="scree")
