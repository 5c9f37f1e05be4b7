"""Spectra in a training loop with Accelerate, on one process or on several: a minute.

accelerate launch docs/examples/accelerate_loop.py && tensorboard --logdir runs && hesspec report spectra
"""

import torch
from accelerate import Accelerator
from sklearn.datasets import load_digits
from torch import nn

from hesspec.study import SpectrumRecorder

accelerator = Accelerator(log_with="tensorboard", project_dir="runs")
accelerator.init_trackers("digits")
inputs, targets = (torch.tensor(part) for part in load_digits(return_X_y=True))
data = torch.utils.data.TensorDataset((inputs.float() - 8) / 8, targets)
model, loss_fn = nn.Sequential(nn.Linear(64, 24), nn.Tanh(), nn.Linear(24, 10)), nn.CrossEntropyLoss()
optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
batches = torch.utils.data.DataLoader(data, batch_size=64, shuffle=True)
model, optimizer, batches = accelerator.prepare(model, optimizer, batches)
group = torch.distributed.group.WORLD if accelerator.num_processes > 1 else None  # all processes share the measurement
record = SpectrumRecorder("spectra", loss_fn, {"train": [data[:500]]}, ["hessian"], at=[0, 1, 2, 4, 8], group=group)
for epoch in range(9):
    for batch, labels in batches if epoch else ():
        optimizer.zero_grad()
        accelerator.backward(loss_fn(model(batch), labels))
        optimizer.step()
    record(model, epoch, log_to=accelerator)
accelerator.end_training()
