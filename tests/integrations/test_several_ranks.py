"""Measurements in trainings with several processes."""

import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from distributed_ranks import launch_forked, results
from torch import nn

import hesspec

SCRIPT = """\
import warnings
warnings.simplefilter("ignore")
import torch
from lightning.pytorch import LightningModule, Trainer
from torch import nn
from hesspec.integrations import LightningCallback

class Net(LightningModule):
    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3))
    def forward(self, inputs):
        return self.net(inputs)
    def training_step(self, batch, _):
        return nn.functional.cross_entropy(self(batch[0]), batch[1])
    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)

torch.manual_seed(0)
model, inputs, targets = Net(), torch.randn(16, 4), torch.randint(3, (16,))
callback = LightningCallback("spectra", nn.CrossEntropyLoss(), {"train": [(inputs, targets)]}, steps=6, progress=False)
trainer = Trainer(max_epochs=1, accelerator="cpu", devices=2, strategy="ddp", callbacks=[callback],
                  enable_progress_bar=False, enable_model_summary=False)
trainer.fit(model, torch.utils.data.DataLoader(torch.utils.data.TensorDataset(inputs, targets), batch_size=4))
if trainer.is_global_zero:
    torch.save((model.net.state_dict(), inputs, targets), "end.pt")
"""


def test_ranks_measure_together_and_the_first_one_writes(tmp_path):
    found = results("recorder.py", 2, tmp_path, start=launch_forked)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3))
    data = [(torch.randn(12, 4), torch.arange(12) % 3)]
    alone = hesspec.spectrum(hesspec.Hessian(model, nn.CrossEntropyLoss(), data), steps=8)
    for each in found:
        assert np.allclose(each["values"], alone.ritz_values, rtol=0, atol=1e-5 * alone.norm)
        assert (each["again"], each["kept"]) == (0, True)
        # Products of the sharded model are differences of gradients in float32.
        assert np.allclose(each["sharded"], alone.ritz_values, rtol=0, atol=1e-2 * alone.norm)
        assert "The GaussNewton of a sharded model cannot be measured" in each["refused"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["epoch-0000-train-Hessian.nc", "sharded"]
    assert [path.name for path in (tmp_path / "sharded").iterdir()] == ["epoch-0000-train-Hessian.nc"]
    assert hesspec.load(tmp_path / "epoch-0000-train-Hessian.nc").attributes["ranks"] == 2


@pytest.mark.long
def test_lightning_with_two_processes(tmp_path):
    (tmp_path / "script.py").write_text(SCRIPT)
    done = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "script.py"],
        cwd=tmp_path,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    state, inputs, targets = torch.load(tmp_path / "end.pt", weights_only=True)
    model = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3))
    model.load_state_dict(state)
    exact = hesspec.spectrum(hesspec.Hessian(model, nn.CrossEntropyLoss(), [(inputs, targets)]), steps=6)
    found = hesspec.load(tmp_path / "spectra/epoch-0001-train-Hessian.nc")
    assert found.attributes["ranks"] == 2
    assert np.allclose(found.ritz_values, exact.ritz_values, rtol=0, atol=1e-4 * exact.norm)
