"""What a trace that fails leaves behind: nothing."""

import gc

import pytest
import torch
from torch import nn

import hesspec

LABELS = torch.arange(5) % 3


class Quantiles(nn.Module):
    """PyTorch has no functionalised quantiles in forward over reverse, and fails to describe their arguments."""

    def __init__(self, quantile):
        super().__init__()
        self.quantile = quantile
        self.first, self.last = nn.Linear(4, 6), nn.Linear(1, 3)

    def forward(self, x):
        return self.last(self.quantile(self.first(x), 0.3, -1)[:, None])


@pytest.mark.parametrize("quantile", [torch.quantile, torch.nanquantile])
def test_autograd_is_as_it_was(traced, quantile):
    torch.manual_seed(0)
    data = [(torch.randn(5, 4), LABELS)]
    keys = torch._C._dispatch_tls_local_exclude_set()
    operator = hesspec.Hessian(Quantiles(quantile), nn.CrossEntropyLoss(), data)
    assert operator.attributes["mode"] == "double backward"
    assert "not traced: RuntimeError" in operator.attributes["mode_reason"]
    gc.collect()

    assert torch._C._dispatch_tls_local_exclude_set() == keys
    assert (torch.ones(2, requires_grad=True) * 2).requires_grad
    other = hesspec.Hessian(nn.Linear(4, 3), nn.CrossEntropyLoss(), data)
    assert other.attributes["mode"] == "traced"
