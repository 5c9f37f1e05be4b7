"""
The loss on a plane of two eigenvectors
=======================================

The loss along eigenvectors in two dimensions: filled contours show the loss, dashed ellipses its quadratic. Where they
differ, the curvature at the weights no longer describes the loss.
"""

import torch
from sklearn.datasets import load_digits
from torch import nn

import hesspec

torch.manual_seed(0)
images, labels = load_digits(return_X_y=True)
inputs, targets = torch.tensor(images[:300] / 16).float(), torch.tensor(labels[:300])
model = nn.Sequential(nn.Linear(64, 16), nn.Tanh(), nn.Linear(16, 10))
loss_fn, optimizer = nn.CrossEntropyLoss(), torch.optim.Adam(model.parameters(), lr=0.01)
for _ in range(60):
    optimizer.zero_grad()
    loss_fn(model(inputs), targets).backward()
    optimizer.step()

# %%
# ``plot_loss_along`` computes and draws; ``plane=True`` adds the plane of the first two directions.

hessian = hesspec.Hessian(model, loss_fn, [(inputs, targets)])
pairs = hesspec.eigenpairs(hessian, count=2, progress=False)
hesspec.plot_loss_along(hessian, pairs, plane=True, reach=1.5, points=25)
