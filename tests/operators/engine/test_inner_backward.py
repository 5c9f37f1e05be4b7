"""Functions that run a part of the model in their backward pass, as activation checkpointing of several libraries."""

import pytest
import torch
from cases import MATRICES, seeded
from reference import gauss_newton_of, hessian_of, whole
from torch import nn

import hesspec

CE = nn.CrossEntropyLoss()


class Again(torch.autograd.Function):
    """A part of the model, computed once more in the backward pass, whose parameters get their gradients there."""

    @staticmethod
    def forward(ctx, part, x, _):
        ctx.part = part
        ctx.save_for_backward(x)
        with torch.no_grad():
            return part(x)

    @staticmethod
    def backward(ctx, g):
        (x,) = ctx.saved_tensors
        x = x.detach().requires_grad_()
        with torch.enable_grad():
            y = ctx.part(x)
        torch.autograd.backward(y, g)
        return None, x.grad, None


class Checkpointed(nn.Module):
    def __init__(self, again):
        super().__init__()
        self.first, self.part, self.last = nn.Linear(4, 3), nn.Linear(3, 3), nn.Linear(3, 3)
        self.again = again

    def _inner(self, x):
        # A weight that is also used outside of the checkpointed part has gradients of both.
        return torch.tanh(self.part(x)) @ self.last.weight

    def forward(self, x):
        x = self.first(x)
        needed = torch.zeros(1, dtype=x.dtype, requires_grad=True)
        return self.last(Again.apply(self._inner, x, needed) if self.again else self._inner(x))


@pytest.mark.parametrize("matrix", MATRICES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("params", [None, ["part.*"]])
def test_parameters_with_gradients_from_an_inner_backward_pass_count(matrix, dtype, params):
    torch.manual_seed(1)
    x, y = torch.randn(7, 4), torch.randint(3, (7,))
    model = seeded(lambda: Checkpointed(again=True)).to(dtype)
    plain = Checkpointed(again=False).double()
    plain.load_state_dict(model.state_dict())
    wide = x.double()
    for name, parameter in plain.named_parameters():
        parameter.requires_grad_(params is None or name.startswith("part."))
    hess = hessian_of(plain, lambda: CE(plain(wide), y))
    g = gauss_newton_of(plain, lambda: plain(wide), lambda f: CE(f, y))
    exact = {"Hessian": hess, "GaussNewton": g, "Residual": hess - g}[matrix]
    operator = getattr(hesspec, matrix)(model, CE, [(x[:4].to(dtype), y[:4]), (x[4:].to(dtype), y[4:])], params)
    with pytest.warns(UserWarning, match="central differences of gradients"):
        found = whole(operator).double()
    assert operator.attributes["mode"] == "differences"
    # With the parameters in float32, differences are taken in float64 too.
    assert (found - exact).norm() <= (1e-7 if dtype == torch.float64 else 1e-5) * hess.norm()
    assert all(parameter.grad is None for parameter in model.parameters())
