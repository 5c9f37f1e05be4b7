"""
Your own training loop
======================

A recorder measures spectra in any training loop, at the epochs that you choose. It restores the model and the random
state, and writes files that `hesspec report` turns into a page.
"""

import tempfile
from pathlib import Path

import torch
from sklearn.datasets import load_digits
from torch import nn

import hesspec
from hesspec.plot import plot_multiples
from hesspec.study import SpectrumRecorder

torch.manual_seed(0)
images, labels = load_digits(return_X_y=True)
inputs, targets = torch.tensor(images[:512] / 16).float(), torch.tensor(labels[:512])
model = nn.Sequential(nn.Linear(64, 24), nn.Dropout(0.1), nn.Tanh(), nn.Linear(24, 10))
loss_fn, optimizer = nn.CrossEntropyLoss(), torch.optim.SGD(model.parameters(), lr=0.2, momentum=0.9)
batches = list(zip(inputs.split(128), targets.split(128), strict=True))

# %%
folder = Path(tempfile.mkdtemp()) / "spectra"
record = SpectrumRecorder(folder, loss_fn, {"train": batches}, ["hess", "g"], at=[0, 5, 20], steps=48)
for epoch in range(21):
    model.train()
    record(model, epoch)  # measures in evaluation mode at the chosen epochs, and does nothing at others
    for x, y in batches:
        optimizer.zero_grad()
        loss_fn(model(x), y).backward()
        optimizer.step()

# %%
# There is one file for each matrix and epoch. A loop that was interrupted and runs again measures only what is missing.

panels = {}
for path in sorted(folder.rglob("*.nc")):
    spectrum = hesspec.load(path)
    symbol = {"Hessian": "Hess", "GaussNewton": "G"}[spectrum.attributes["matrix"]]
    panels.setdefault(f"epoch {spectrum.attributes['epoch']:g}", {})[symbol] = spectrum
    print(path.relative_to(folder), spectrum.eigenvalues[:3])

# %%
# Both matrices at each epoch, on the same axes: the largest eigenvalues of Hess become those of G.

plot_multiples(panels, kind="scree")
