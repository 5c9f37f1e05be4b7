"""
Training set against test set
=============================

The Hessian depends on the data of the loss. On images that the network has not seen, the largest eigenvalue is 1.5
times as large, the bulk is wider, and its negative side is much longer: samples that the network gets wrong have large
gradients, and with them a large residual part.
"""

import torch
from sklearn.datasets import load_digits
from torch import nn

import hesspec
from hesspec.plot import plot_spectrum

torch.manual_seed(0)
images, labels = load_digits(return_X_y=True)
inputs, targets = torch.tensor(images / 16).float(), torch.tensor(labels)
train, test = (inputs[:900], targets[:900]), (inputs[900:], targets[900:])
model = nn.Sequential(nn.Linear(64, 32), nn.Tanh(), nn.Linear(32, 10))
loss_fn, optimizer = nn.CrossEntropyLoss(), torch.optim.Adam(model.parameters(), lr=0.01)
for _ in range(100):
    optimizer.zero_grad()
    loss_fn(model(train[0]), train[1]).backward()
    optimizer.step()

# %%
spectra = {}
for name, data in (("train", train), ("test", test)):
    hessian = hesspec.Hessian(model, loss_fn, [data])
    spectra[name] = hesspec.spectrum(hessian, progress=False)
    print(f"{name:>5}: loss {hessian.risk:.4f}, largest eigenvalue {spectra[name].eigenvalues[0]:.3f}")

# %%
# Two spectra of one matrix have two shades of its colour. On the axis of log \|λ\| the whole measure is visible.

plot_spectrum(spectra, kind="log")
