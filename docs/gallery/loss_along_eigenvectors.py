"""
The loss along eigenvectors
===========================

How far from the weights does the loss follow its quadratic? The figure shows the loss along the eigenvectors of the
largest eigenvalues, and L + t g·v + t²λ/2, whose slope and curvature are computed, not fitted.
"""

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
hessian = hesspec.Hessian(model, loss_fn, [(inputs, targets)])
pairs = hesspec.eigenpairs(hessian, count=3, progress=False)
along = hesspec.loss_along(hessian, pairs, reach=1.5)
print(along)

# %%
along.plot()
