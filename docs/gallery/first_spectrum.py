"""
A first spectrum
================

Train a small network on real digits and measure the eigenvalues of the Hessian of its loss: nine outliers for ten
classes, and a bulk around zero.
"""

import torch
from sklearn.datasets import load_digits
from torch import nn

import hesspec

# %%
# Any model, loss and batches will do. Here the data is 1,797 images of 64 pixels.

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
# An operator is a matrix that is defined by its products with vectors; 64 products give its spectrum.

hessian = hesspec.Hessian(model.eval(), loss_fn, [(inputs, targets)])
spectrum = hesspec.spectrum(hessian, progress=False)
print(spectrum)

# %%
# Each outlier has an error bound, and all other eigenvalues form the bulk.

spectrum.plot()
