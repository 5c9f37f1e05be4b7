"""
Where steps go
==============

How much of the gradient, the momentum and the update of Adam lies in the eigenspace of the ten largest eigenvalues?
The share of a random vector is about sqrt(10/p). At the first step the gradient has six times that share; after fifteen
steps it is no larger than that of a random vector.
"""

import torch
from sklearn.datasets import load_digits
from torch import nn

import hesspec

torch.manual_seed(0)
images, labels = load_digits(return_X_y=True)
inputs, targets = torch.tensor(images[:400] / 16).float(), torch.tensor(labels[:400])
model = nn.Sequential(nn.Linear(64, 16), nn.Tanh(), nn.Linear(16, 10))
loss_fn, optimizer = nn.CrossEntropyLoss(), torch.optim.Adam(model.parameters(), lr=0.01)

# %%
# The monitor is called before each step, after the gradient has been computed.

monitor = hesspec.optim.monitor_shares(model, loss_fn, [(inputs, targets)], optimizer, every=15, k=10, steps=64)
for step in range(91):
    optimizer.zero_grad()
    loss_fn(model(inputs), targets).backward()
    monitor(step)
    optimizer.step()
run = monitor.result()
print(run)

# %%
run.plot()
