"""
Sample size
===========

Train the same network on more and more samples of each class. The edges of the bulk shrink with the number of
samples, the outliers hardly.
"""

import torch
from sklearn.datasets import load_digits
from torch import nn

import hesspec
from hesspec.plot import plot_against_samples

images, labels = load_digits(return_X_y=True)
inputs, targets = torch.tensor(images / 16).float(), torch.tensor(labels)
loss_fn, spectra = nn.CrossEntropyLoss(), {}
for size in (10, 20, 40, 80, 160):
    torch.manual_seed(0)
    chosen = torch.cat([torch.where(targets == label)[0][:size] for label in range(10)])
    x, y = inputs[chosen], targets[chosen]
    model = nn.Sequential(nn.Linear(64, 24), nn.Tanh(), nn.Linear(24, 10))
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    for _ in range(200):
        optimizer.zero_grad()
        loss_fn(model(x), y).backward()
        optimizer.step()
    spectra[size] = hesspec.spectrum(hesspec.Hessian(model, loss_fn, [(x, y)]), progress=False)

# %%
# These are small networks and one seed. `hesspec study` trains a grid of sizes and seeds and writes a report.

plot_against_samples(spectra)
