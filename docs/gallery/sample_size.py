"""
Sample size
===========

Train the same network on more and more samples per class, each time until the same loss is reached. The edges of the
bulk shrink slowly, by a fifth and by nearly a half for 16 times as many samples; no eigenvalue is an outlier here.
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
    while (loss := loss_fn(model(x), y)) > 0.3:
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    spectra[size] = hesspec.spectrum(hesspec.Hessian(model, loss_fn, [(x, y)]), progress=False)

# %%
# These are small networks and one seed. If all are trained for the same number of steps instead, the edges grow with
# the sample size, because small samples are fitted sooner. ``hesspec study`` trains a grid of sizes and seeds.

plot_against_samples(spectra)
