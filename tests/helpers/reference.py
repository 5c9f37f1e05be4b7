"""Dense matrices in float64 by plain reverse mode twice, of any loss that is written out, and whole operators."""

from collections.abc import Callable

import torch
from torch import Tensor, nn


def whole(operator) -> Tensor:
    """An operator as a dense matrix."""
    return operator @ torch.eye(operator.shape[0], dtype=operator.dtype)


def hessian_of(model: nn.Module, loss: Callable[[], Tensor]) -> Tensor:
    """Hessian of a loss in all parameters of a model that require a gradient, (p, p)."""
    leaves = [value for value in model.parameters() if value.requires_grad]
    with torch.enable_grad():
        gradient = torch.autograd.grad(loss(), leaves, create_graph=True, materialize_grads=True)
        entries = torch.cat([part.reshape(-1) for part in gradient])
        rows = [
            torch.autograd.grad(entry, leaves, retain_graph=True, materialize_grads=True)
            if entry.requires_grad
            else [torch.zeros_like(leaf) for leaf in leaves]
            for entry in entries
        ]
    return torch.stack([torch.cat([part.reshape(-1) for part in row]) for row in rows])


def gauss_newton_of(model: nn.Module, outputs: Callable[[], Tensor], loss: Callable[[Tensor], Tensor]) -> Tensor:
    """J^T (d^2 l / d f^2) J of outputs f and a loss of them, (p, p)."""
    leaves = [value for value in model.parameters() if value.requires_grad]
    with torch.enable_grad():
        found = outputs()
        rows = [
            torch.autograd.grad(entry, leaves, retain_graph=True, materialize_grads=True) for entry in found.reshape(-1)
        ]
    jacobian = torch.stack([torch.cat([part.reshape(-1) for part in row]) for row in rows])
    curvature = torch.autograd.functional.hessian(loss, found.detach()).reshape(found.numel(), -1)
    return jacobian.T @ curvature @ jacobian
