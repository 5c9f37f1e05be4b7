"""
Outliers and classes
====================

Why are there about as many outliers as classes? Averages of the gradients of logits, by true class and by logit,
span the eigenvectors of the outliers; the bulk is what remains within the classes.
"""

import torch
from sklearn.datasets import load_digits
from torch import nn

import hesspec

torch.manual_seed(0)
images, labels = load_digits(n_class=5, return_X_y=True)
inputs, targets = torch.tensor(images[:400] / 16).float(), torch.tensor(labels[:400])
model = nn.Sequential(nn.Linear(64, 16), nn.Tanh(), nn.Linear(16, 5))
loss_fn, optimizer = nn.CrossEntropyLoss(), torch.optim.Adam(model.parameters(), lr=0.01)
for _ in range(60):
    optimizer.zero_grad()
    loss_fn(model(inputs), targets).backward()
    optimizer.step()

# %%
# One call measures the parts of G, predicts its eigenvalues from the class means, and projects the means out of the
# Hessian.

structure = hesspec.class_structure(model, loss_fn, [(inputs, targets)], steps=48)
print(structure)

# %%
# Left to right: the parts of G, predicted and measured eigenvalues, shares of each outlier, and the spectrum
# without the means.

structure.plot()
