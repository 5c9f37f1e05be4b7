"""Train small networks on real data and diagonalise their dense Hess and G, once: `python make_exact_spectra.py`.

Dense matrices come of plain reverse mode (Hess, row by row) and of the Jacobian (G), not of hesspec's operators.
"""

import sys
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.func import functional_call, jacrev

sys.path.insert(0, str(Path(__file__).parents[1]))

from exact_networks import FOLDER, NAMES, build, normalise


def samples() -> tuple[Tensor, Tensor]:
    """Pixels as uint8 (N, 1, 8, 8) and labels (N,): the first 30 digits of each class."""
    digits = load_digits()
    chosen = torch.cat([torch.nonzero(torch.tensor(digits.target) == c)[:30, 0] for c in range(10)])
    pixels = torch.tensor(digits.images)[chosen].mul(255 / 16).round().to(torch.uint8)
    return pixels[:, None], torch.tensor(digits.target)[chosen]


def train(model: nn.Module, inputs: Tensor, targets: Tensor) -> None:
    epochs, batch = 60, 64
    optimiser = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, weight_decay=5e-4)
    schedule = torch.optim.lr_scheduler.MultiStepLR(optimiser, [epochs // 3, 2 * epochs // 3])
    for _ in range(epochs):
        for chosen in torch.randperm(len(targets)).split(batch):
            optimiser.zero_grad()
            F.cross_entropy(model(inputs[chosen]), targets[chosen]).backward()
            optimiser.step()
        schedule.step()


def dense(model: nn.Module, inputs: Tensor, targets: Tensor) -> dict[str, Tensor]:
    model, inputs = model.double(), inputs.double()
    parameters = list(model.parameters())
    gradient = torch.autograd.grad(F.cross_entropy(model(inputs), targets), parameters, create_graph=True)
    flat = torch.cat([part.flatten() for part in gradient])
    rows = []
    for entry in flat:
        row = torch.autograd.grad(entry, parameters, retain_graph=True, materialize_grads=True, allow_unused=True)
        rows.append(torch.cat([part.flatten() for part in row]))
    hessian = torch.stack(rows)
    named = {name: value.detach() for name, value in model.named_parameters()}
    gauss_newton = torch.zeros_like(hessian)
    for x in inputs.split(50):
        jacobian = jacrev(lambda t, x=x: functional_call(model, t, (x,)))(named)
        j = torch.cat([part.flatten(2) for part in jacobian.values()], 2)
        probabilities = model(x).detach().softmax(1)
        curvature = torch.diag_embed(probabilities) - probabilities[:, :, None] * probabilities[:, None]
        gauss_newton += torch.einsum("ncp,ncq->pq", j, curvature @ j) / len(inputs)
    return {"Hessian": (hessian + hessian.T) / 2, "GaussNewton": gauss_newton}


def main() -> None:
    for name in sys.argv[1:] or NAMES:
        torch.manual_seed(0)
        model = build(name)
        pixels, targets = samples()
        inputs = normalise(pixels)
        train(model, inputs, targets)
        model.eval()
        error = (model(inputs).argmax(1) != targets).float().mean()
        stored = {f"model.{key}": value.clone() for key, value in model.state_dict().items()}
        stored |= {"pixels": pixels, "targets": targets}
        for matrix, entries in dense(model, inputs, targets).items():
            stored[f"eigenvalues.{matrix}"] = torch.linalg.eigvalsh(entries)
        FOLDER.mkdir(parents=True, exist_ok=True)
        save_file(stored, FOLDER / f"{name}.safetensors", {"train_error": f"{error:.4f}"})
        print(name, len(stored["eigenvalues.Hessian"]), f"train error {error:.4f}", stored["eigenvalues.Hessian"][-12:])


if __name__ == "__main__":
    main()
