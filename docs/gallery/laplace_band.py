"""
A Laplace band
==============

How certain is a network between its data points? A Laplace approximation turns the curvature of the loss into an
uncertainty of the prediction: narrow at the training data, wide between and beyond it.
"""

import torch
from torch import nn

import hesspec
from hesspec import laplace

torch.manual_seed(0)
noise, prior = 0.2, 0.1
x = torch.cat([torch.linspace(-2, -0.7, 40), torch.linspace(0.7, 2, 40)])[:, None].double()
y = torch.sin(2 * x) + noise * torch.randn_like(x)
model = nn.Sequential(nn.Linear(1, 30), nn.Tanh(), nn.Linear(30, 1)).double()

# %%
# The approximation is centred at the maximum of the posterior, so the network is trained with the prior's weight decay.

decay = prior / (y.numel() / (2 * noise**2)) / 2
optimizer = torch.optim.LBFGS(model.parameters(), max_iter=500, line_search_fn="strong_wolfe")


def closure():
    optimizer.zero_grad()
    loss = nn.functional.mse_loss(model(x), y) + decay * sum(value.square().sum() for value in model.parameters())
    loss.backward()
    return loss


optimizer.step(closure)

# %%
posterior = hesspec.laplace.Laplace(model, nn.MSELoss(), [(x, y)], prior_precision=prior, noise=noise)
print(posterior.log_evidence())
grid = torch.linspace(-3.5, 3.5, 141)[:, None].double()
found = posterior.predict(grid)

# %%
laplace.plot_band(grid, found.mean, found.variance, noise=noise, points=(x, y))
