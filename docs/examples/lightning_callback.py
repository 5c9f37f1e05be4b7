"""Spectra during a training by Lightning, in TensorBoard: a minute.

python docs/examples/lightning_callback.py && tensorboard --logdir lightning_logs && hesspec report spectra
"""

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.loggers import TensorBoardLogger
from sklearn.datasets import load_digits
from torch import nn

from hesspec.integrations import LightningCallback


class Digits(LightningModule):
    """A small classifier."""

    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(64, 24), nn.Tanh(), nn.Linear(24, 10))

    def training_step(self, batch, _):
        """Return the loss."""
        return nn.functional.cross_entropy(self.net(batch[0]), batch[1])

    def configure_optimizers(self):
        """Return the optimiser."""
        return torch.optim.SGD(self.parameters(), lr=0.1, momentum=0.9)


inputs, targets = (torch.tensor(part) for part in load_digits(return_X_y=True))
data = torch.utils.data.TensorDataset((inputs.float() - 8) / 8, targets)
measured = {"train": [data[:500]]}
callback = LightningCallback(
    "spectra", nn.CrossEntropyLoss(), measured, ["hessian"], at_epochs=[0, 1, 2, 4, 8], module="net"
)
trainer = Trainer(max_epochs=8, callbacks=[callback], logger=TensorBoardLogger("."))
trainer.fit(Digits(), torch.utils.data.DataLoader(data, batch_size=64, shuffle=True))
