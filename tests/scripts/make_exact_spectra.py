"""Train small networks on real data and diagonalise their dense Hess and G, once: `python make_exact_spectra.py`.

Dense matrices come of plain reverse mode (Hess, row by row) and of the Jacobian (G), not of hesspec's operators. The
networks of FashionMNIST take several minutes each.
"""

import sys
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.func import functional_call, jacrev

sys.path.insert(0, str(Path(__file__).parents[1] / "helpers"))

from exact_networks import FASHION, FOLDER, NAMES, build, normalise

from hesspec.study import load_dataset


def samples(name: str) -> tuple[Tensor, Tensor]:
    """Pixels as uint8 (N, 1, h, w) and labels (N,): 30 images of each class."""
    if name in FASHION:
        fashion = load_dataset("fashion-mnist", "train", samples_per_class=30, size=28)
        return fashion.inputs.add(1).mul(127.5).round().to(torch.uint8), fashion.targets
    digits = load_digits()
    chosen = torch.cat([torch.nonzero(torch.tensor(digits.target) == c)[:30, 0] for c in range(10)])
    pixels = torch.tensor(digits.images)[chosen].mul(255 / 16).round().to(torch.uint8)
    return pixels[:, None], torch.tensor(digits.target)[chosen]


def train(model: nn.Module, inputs: Tensor, targets: Tensor, epochs: int) -> None:
    batch = 64
    optimiser = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, weight_decay=5e-4)
    schedule = torch.optim.lr_scheduler.MultiStepLR(optimiser, [epochs // 3, 2 * epochs // 3])
    for _ in range(epochs):
        for chosen in torch.randperm(len(targets)).split(batch):
            optimiser.zero_grad()
            F.cross_entropy(model(inputs[chosen]), targets[chosen]).backward()
            optimiser.step()
        schedule.step()


def hessian(model: nn.Module, inputs: Tensor, targets: Tensor) -> Tensor:
    parameters = list(model.parameters())
    size = sum(part.numel() for part in parameters)
    rows = torch.zeros(size, size, dtype=inputs.dtype)
    # Of few samples at a time, whose graph fits into the processor's cache.
    for x, y in zip(inputs.split(50), targets.split(50), strict=True):
        risk = F.cross_entropy(model(x), y, reduction="sum") / len(targets)
        gradient = torch.autograd.grad(risk, parameters, create_graph=True)
        for i, entry in enumerate(torch.cat([part.flatten() for part in gradient])):
            row = torch.autograd.grad(entry, parameters, retain_graph=True, materialize_grads=True, allow_unused=True)
            rows[i] += torch.cat([part.flatten() for part in row])
    return (rows + rows.T) / 2


def gauss_newton(model: nn.Module, inputs: Tensor) -> Tensor:
    named = {name: value.detach() for name, value in model.named_parameters()}
    size = sum(value.numel() for value in named.values())
    total = torch.zeros(size, size, dtype=inputs.dtype)
    for x in inputs.split(50):
        jacobian = jacrev(lambda t, x=x: functional_call(model, t, (x,)))(named)
        j = torch.cat([part.flatten(2) for part in jacobian.values()], 2)
        probabilities = model(x).detach().softmax(1)
        curvature = torch.diag_embed(probabilities) - probabilities[:, :, None] * probabilities[:, None]
        total += j.flatten(0, 1).T @ (curvature @ j).flatten(0, 1) / len(inputs)
    return total


def main() -> None:
    for name in sys.argv[1:] or NAMES + FASHION:
        torch.manual_seed(0)
        model = build(name)
        pixels, targets = samples(name)
        inputs = normalise(pixels)
        train(model, inputs, targets, epochs=150 if name in FASHION else 60)
        model.eval()
        error = (model(inputs).argmax(1) != targets).float().mean()
        stored = {f"model.{key}": value.clone() for key, value in model.state_dict().items()}
        stored |= {"pixels": pixels, "targets": targets}
        exact, inputs = model.double(), inputs.double()
        matrices = {"Hessian": hessian(exact, inputs, targets), "GaussNewton": gauss_newton(exact, inputs)}
        for matrix, entries in matrices.items():
            stored[f"eigenvalues.{matrix}"] = torch.linalg.eigvalsh(entries)
        FOLDER.mkdir(parents=True, exist_ok=True)
        save_file(stored, FOLDER / f"{name}.safetensors", {"train_error": f"{error:.4f}"})
        print(name, len(stored["eigenvalues.Hessian"]), f"train error {error:.4f}", stored["eigenvalues.Hessian"][-12:])


if __name__ == "__main__":
    main()
