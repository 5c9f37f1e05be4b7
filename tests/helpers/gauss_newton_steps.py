"""A small classifier, and the matrices of its Gauss-Newton steps from plain autograd."""

import torch
from torch import nn
from torch.func import functional_call, grad, jacrev

CLASSES = 4
CURVATURES = ["true-vs-rest", "full"]


def problem(dtype=torch.float64, classes=CLASSES, samples=24, seed=0):
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, classes)).to(dtype)
    return model, nn.CrossEntropyLoss(), torch.randn(samples, 5, dtype=dtype), torch.arange(samples) % classes


def dense(model, loss, x, y):
    """G_1 and G from their output curvatures, and the gradient, in float64."""
    theta = {name: value.detach().double() for name, value in model.named_parameters()}
    x = x.double()
    logits = functional_call(model, theta, (x,))
    jacobian = jacrev(lambda named: functional_call(model, named, (x,)))(theta)
    jacobian = torch.cat([part.flatten(2) for part in jacobian.values()], 2)
    p, n = torch.softmax(logits, 1), len(x)
    e = nn.functional.one_hot(y, logits.shape[1]).double()
    q = p * (1 - e) / (p * (1 - e)).sum(1, keepdim=True)
    py = (p * e).sum(1)
    rows = ((py * (1 - py) / n).sqrt()[:, None, None] * (e - q)[:, None]) @ jacobian
    rows = rows[:, 0]
    full = torch.diag_embed(p) - p[:, :, None] * p[:, None]
    g = grad(lambda named: loss(functional_call(model, named, (x,)), y))(theta)
    return {
        "true-vs-rest": rows.T @ rows,
        "full": (jacobian.transpose(1, 2) @ full @ jacobian).sum(0) / n,
    }, torch.cat([part.flatten() for part in g.values()])


def flat(model):
    return torch.cat([value.detach().flatten() for value in model.parameters()])
