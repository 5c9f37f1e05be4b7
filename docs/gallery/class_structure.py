"""
Outliers and classes
====================

Why are there about as many outliers as classes? The means of the gradients of logits, by true class and by logit, span
a space of few dimensions. How much of each large eigenvalue does it explain, and what remains if it is projected out?
"""

import torch
from sklearn.datasets import load_digits
from torch import nn

import hesspec

torch.manual_seed(0)
images, labels = load_digits(return_X_y=True)
inputs, targets = torch.tensor(images / 16).float(), torch.tensor(labels)
model = nn.Sequential(nn.Linear(64, 32), nn.Tanh(), nn.Linear(32, 10))
loss_fn, optimizer = nn.CrossEntropyLoss(), torch.optim.Adam(model.parameters(), lr=0.01)
for _ in range(100):
    optimizer.zero_grad()
    loss_fn(model(inputs), targets).backward()
    optimizer.step()

# %%
# One call measures the parts of G, predicts its eigenvalues from the class means, and projects the means out of the
# Hessian.

structure = hesspec.class_structure(model, loss_fn, [(inputs, targets)], steps=64)
print(structure)

# %%
# The parts of G; predicted and measured eigenvalues; the share of each part in each large eigenvalue; what is left
# without the means; and a map of the means.

structure.plot()
