"""
Gradient noise and curvature
============================

The gradients of single samples have a second moment M, which is a matrix like the Hessian: Hess = M − H_p for a
negative log-likelihood. How much do their top eigenspaces have in common?
"""

import torch
from sklearn.datasets import load_digits
from torch import nn

import hesspec

torch.manual_seed(0)
images, labels = load_digits(return_X_y=True)
inputs, targets = torch.tensor(images[:400] / 16).double(), torch.tensor(labels[:400])
model = nn.Sequential(nn.Linear(64, 12), nn.Tanh(), nn.Linear(12, 10)).double()
loss_fn, optimizer = nn.CrossEntropyLoss(), torch.optim.SGD(model.parameters(), lr=0.5)
for _ in range(100):
    optimizer.zero_grad()
    loss_fn(model(inputs), targets).backward()
    optimizer.step()

# %%
data = [(inputs, targets)]
hessian = hesspec.eigenpairs(hesspec.Hessian(model, loss_fn, data), count=10, steps=100, progress=False)
moment = hesspec.eigenpairs(hesspec.SecondMoment(model, loss_fn, data), count=10, steps=100, progress=False)
angles = hesspec.principal_angles(hessian, moment, min(len(hessian.values), len(moment.values)))
print(angles)

# %%
# The cosines of the principal angles between the two eigenspaces, with their bounds; those of random subspaces of
# this size are about 0.1.

angles.plot()
