"""
Scree and CDF
=============

Two figures show everything that is known about a spectrum, with its errors: the absolute value of each eigenvalue
against its rank, and the share of eigenvalues up to λ with its bracket.
"""

import matplotlib.pyplot as plt
import torch
from sklearn.datasets import load_digits
from torch import nn

import hesspec

torch.manual_seed(0)
images, labels = load_digits(return_X_y=True)
inputs, targets = torch.tensor(images[:600] / 16).float(), torch.tensor(labels[:600])
model = nn.Sequential(nn.Linear(64, 24), nn.Tanh(), nn.Linear(24, 10))
loss_fn, optimizer = nn.CrossEntropyLoss(), torch.optim.Adam(model.parameters(), lr=0.01)
for _ in range(60):
    optimizer.zero_grad()
    loss_fn(model(inputs), targets).backward()
    optimizer.step()

# %%
# With few steps the bracket is wide, with many it is narrow. It shows whether 16 steps are enough for what you want to
# say.

hessian = hesspec.Hessian(model, loss_fn, [(inputs, targets)])
spectra = {steps: hesspec.spectrum(hessian, steps=steps, progress=False) for steps in (16, 64)}
for steps, spectrum in spectra.items():
    print(f"{steps} steps: {len(spectrum.eigenvalues)} resolved, Wasserstein-1 bound {spectrum.wasserstein_bound:.2g}")

# %%
figure, panels = plt.subplots(2, 2, figsize=(11, 8), layout="constrained")
for row, (steps, spectrum) in zip(panels, spectra.items(), strict=True):
    for panel, kind in zip(row, ("scree", "cdf"), strict=True):
        spectrum.plot(kind, ax=panel)
        panel.set_title(f"{steps} steps")
