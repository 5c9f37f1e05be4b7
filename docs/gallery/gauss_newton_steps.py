"""
Gauss–Newton steps
==================

Fast Gauss–Newton keeps only the part of G that separates the true class from the rest. How close are its steps to
those of the full matrix G? That depends on the damping.
"""

import torch
from sklearn.datasets import load_digits
from torch import nn

import hesspec

torch.manual_seed(0)
images, labels = load_digits(return_X_y=True)
inputs, targets = torch.tensor(images[:200] / 16), torch.tensor(labels[:200])
model = nn.Sequential(nn.Linear(64, 16), nn.Tanh(), nn.Linear(16, 10)).double()
loss_fn, optimizer = nn.CrossEntropyLoss(), torch.optim.SGD(model.parameters(), lr=0.5)

# %%
found = {}
for name, steps in (("initial", 0), ("trained", 300)):
    for _ in range(steps):
        optimizer.zero_grad()
        loss_fn(model(inputs), targets).backward()
        optimizer.step()
    found[name] = hesspec.optim.compare_steps(model, loss_fn, [(inputs, targets)])
    print(name, found[name], sep="\n")

# %%
hesspec.optim.plot_steps(found)
