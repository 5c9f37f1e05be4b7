"""Traces that fail leave PyTorch as it was."""

import gc

import pytest
import torch
from torch import nn

import hesspec


class Shows(nn.Module):
    """A network that shows a tensor in the message of an error, which fails within torch.func, as quantiles do."""

    def __init__(self, kind):
        super().__init__()
        self.body, self.head, self.kind = nn.Linear(4, 5), nn.Linear(5, 3), kind

    def forward(self, x):
        z = self.body(x).tanh()
        if self.kind == "quantile":
            return self.head(z - z.quantile(0.4, dim=1, keepdim=True))
        if self.kind == "nanquantile":
            return self.head(z - z.nanquantile(0.4, dim=1, keepdim=True))
        if self.kind == "median of a list":
            return self.head(z * sorted(z.detach().flatten().tolist())[3])
        assert z.isfinite().all(), f"not finite: {z}"
        return self.head(z)


def guards():
    return repr((torch._C._dispatch_tls_local_include_set(), torch._C._dispatch_tls_local_exclude_set()))


@pytest.mark.parametrize("kind", ["quantile", "nanquantile", "median of a list", "message"])
@pytest.mark.parametrize("matrix", ["Hessian", "GaussNewton"])
def test_autograd_and_transforms_work_after_a_trace_that_failed(kind, matrix, traced):
    torch.manual_seed(0)
    before, model = guards(), Shows(kind).double()
    data = [(torch.randn(n, 4).double(), torch.arange(n) % 3) for n in (5, 4)]
    v = torch.randn(sum(p.numel() for p in model.parameters()), dtype=torch.float64)
    for _ in range(2):
        operator = getattr(hesspec, matrix)(model, nn.CrossEntropyLoss(), data, verify=False)
        assert operator.attributes["mode"] == "double backward"
        assert (operator @ v).isfinite().all()
        assert guards() == before
    gc.collect()
    assert guards() == before
    x = torch.ones(3, requires_grad=True)
    assert (2 * x).requires_grad
    assert torch.func.jvp(torch.sin, (x.detach(),), (torch.ones(3),))[1].equal(torch.cos(x.detach()))
    # The next model is traced.
    other = hesspec.Hessian(nn.Sequential(nn.Linear(4, 3)).double(), nn.CrossEntropyLoss(), data, verify=False)
    assert other.attributes["mode"] == "traced"
