"""
Comparing two optimisers
========================

Does Adam find flatter minima than SGD here? A comparison computes the difference of every quantity with its error,
and says which differences are larger than their errors.
"""

import torch
from sklearn.datasets import load_digits
from torch import nn

import hesspec

torch.manual_seed(0)
images, labels = load_digits(return_X_y=True)
inputs, targets = torch.tensor(images[:600] / 16).float(), torch.tensor(labels[:600])
loss_fn = nn.CrossEntropyLoss()
optimizers = {
    "SGD": lambda parameters: torch.optim.SGD(parameters, lr=0.3, momentum=0.9),
    "Adam": lambda parameters: torch.optim.Adam(parameters, lr=0.01),
}

# %%
# Both start from the same weights and stop at the same loss, because curvature falls with the loss.

spectra = []
for make in optimizers.values():
    torch.manual_seed(1)
    model = nn.Sequential(nn.Linear(64, 24), nn.Tanh(), nn.Linear(24, 10))
    optimizer, loss = make(model.parameters()), torch.tensor(torch.inf)
    while loss > 0.05:
        optimizer.zero_grad()
        loss = loss_fn(model(inputs), targets)
        loss.backward()
        optimizer.step()
    spectra.append(hesspec.spectrum(hesspec.Hessian(model, loss_fn, [(inputs, targets)]), progress=False))

# %%
comparison = hesspec.compare(*spectra, names=list(optimizers))
print(comparison)

# %%
comparison.plot()
