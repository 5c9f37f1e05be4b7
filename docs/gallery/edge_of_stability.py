"""
Edge of stability
=================

Full-batch gradient descent is stable on a quadratic if the largest eigenvalue of the Hessian, the sharpness, is below
2/η. Here it starts at twice that: the first steps are unstable and move the weights to a flatter region. After that the
sharpness stays near the threshold, while the loss keeps falling.
"""

import torch
from sklearn.datasets import load_digits
from torch import nn

import hesspec

torch.manual_seed(0)
images, labels = load_digits(return_X_y=True)
inputs = torch.tensor(images[:300]).float()
inputs = (inputs - inputs.mean()) / inputs.std()
targets = nn.functional.one_hot(torch.tensor(labels[:300]), 10).float()
layers = [nn.Linear(size, out, bias=False) for size, out in ((64, 12), (12, 12), (12, 10))]
model = nn.Sequential(layers[0], nn.Tanh(), layers[1], nn.Tanh(), layers[2])
loss_fn, optimizer = nn.MSELoss(), torch.optim.SGD(model.parameters(), lr=2.5)

# %%
# The monitor is called after each step and measures at every 25th step, with four or five products each time.

monitor = hesspec.stability.monitor(model, loss_fn, [(inputs, targets)], optimizer, every=25)
for step in range(1_501):
    optimizer.zero_grad()
    loss_fn(model(inputs), targets).backward()
    optimizer.step()
    monitor(step)
run = monitor.result()
print(run)

# %%
run.plot()
