"""Spectra in your own training loop, with a tracker: a minute.

python docs/examples/plain_loop.py && tensorboard --logdir runs && hesspec report spectra
"""

import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.tensorboard import SummaryWriter

from hesspec.study import SpectrumRecorder

inputs, targets = (torch.tensor(part) for part in load_digits(return_X_y=True))
data = torch.utils.data.TensorDataset((inputs.float() - 8) / 8, targets)
model = nn.Sequential(nn.Linear(64, 24), nn.Tanh(), nn.Linear(24, 10))
optimizer, loss_fn = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9), nn.CrossEntropyLoss()
record = SpectrumRecorder("spectra", loss_fn, {"train": [data[:500]]}, ["hessian", "g"], at=[0, 1, 2, 4, 8])
with SummaryWriter("runs/digits") as writer:
    record(model, 0, log_to=writer)
    for epoch in range(1, 9):
        for batch, labels in torch.utils.data.DataLoader(data, batch_size=64, shuffle=True):
            optimizer.zero_grad()
            loss_fn(model(batch), labels).backward()
            optimizer.step()
        record(model, epoch, log_to=writer)
