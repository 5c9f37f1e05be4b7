"""
Through training
================

At initialisation nine eigenvalues stand apart from the bulk. Within a few steps the positive side of the bulk grows up
to them, and no gap separates outliers from it any more; then the bulk contracts faster than the largest eigenvalues.
Outliers are tracked by their eigenvectors, so that crossings are visible.
"""

import torch
from sklearn.datasets import load_digits
from torch import nn

import hesspec
from hesspec.plot import plot_training

torch.manual_seed(0)
images, labels = load_digits(return_X_y=True)
inputs, targets = torch.tensor(images[:600] / 16).float(), torch.tensor(labels[:600])
model = nn.Sequential(nn.Linear(64, 24), nn.Tanh(), nn.Linear(24, 10))
loss_fn, optimizer = nn.CrossEntropyLoss(), torch.optim.Adam(model.parameters(), lr=0.01)

# %%
# The model is traced once for all checkpoints. `hesspec.study.SpectrumRecorder` does the same with files, see
# :doc:`own_loop`.

graphs, spectra = hesspec.GraphCache(), {}
for step in range(129):
    if step in (0, 2, 4, 8, 16, 32, 64, 128):
        hessian = hesspec.Hessian(model, loss_fn, [(inputs, targets)], graphs=graphs)
        spectra[f"step {step}"] = hesspec.spectrum(hessian, steps=48, progress=False)
    optimizer.zero_grad()
    loss_fn(model(inputs), targets).backward()
    optimizer.step()

# %%
# A river: eigenvalues, solid where they are outliers, around bands that hold 50%, 90% and 99% of the bulk.

tracks = hesspec.track_outliers(list(spectra.values()))
plot_training(spectra, tracks=tracks)
