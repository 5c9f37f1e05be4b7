"""Gradient noise and curvature of a small network on digits, with true and with random labels; a few minutes.

python docs/examples/gradient_noise.py [FOLDER]
"""
# ruff: noqa: T201

import sys
from pathlib import Path

import matplotlib.pyplot as plt
import torch
from sklearn.datasets import load_digits
from torch import nn

import hesspec

SAMPLES, BATCH, RATE, COUNT = 1_500, 32, 0.2, 15
# Of the prior's variance, relative to that of the initialisation, and of the posterior's precision to that of Laplace.
CHOICES = [(wide, sharp) for wide in (16, 64) for sharp in (1, 4, 16)]
CHECKPOINTS = (0, 50, 200, 600, 2_000)
LOSS = nn.CrossEntropyLoss()


def network():
    """A tanh network 64-12-12-10 without biases, p = 1,032, in float64."""
    torch.manual_seed(0)
    layers = [nn.Linear(size, out, bias=False) for size, out in ((64, 12), (12, 12), (12, 10))]
    return nn.Sequential(layers[0], nn.Tanh(), layers[1], nn.Tanh(), layers[2]).double()


def flat(model):
    """All parameters as one vector."""
    return torch.cat([parameter.detach().reshape(-1) for parameter in model.parameters()])


def measured(model, data, graphs):
    """Spectra of Hess, M and H_p, and the principal angles between the eigenspaces of Hess and M."""
    found = {}
    for matrix in (hesspec.Hessian, hesspec.SecondMoment, hesspec.LikelihoodResidual):
        operator = matrix(model, LOSS, data, graphs=graphs)
        found[matrix.__name__] = hesspec.eigenpairs(operator, count=COUNT, steps=200)
    first, second = found["Hessian"], found["SecondMoment"]
    count = min(COUNT, first.values.size, second.values.size)
    angles = {k: hesspec.principal_angles(first, second, k) for k in sorted({min(10, count), count})}
    return {name: pairs.spectrum for name, pairs in found.items()}, angles


def error(model, inputs, targets):
    """Share of samples that are not classified right."""
    return float((model(inputs).argmax(1) != targets).double().mean())


def flatness(model, start, data):
    """Bounds on the error of networks drawn around this one, from the flatness of the minimum, for several priors."""
    inputs, targets = data[0]
    # Variances of PyTorch's initialisation, which those of the priors are multiples of.
    own = torch.cat([torch.full((w.numel(),), 1 / (3 * w.shape[1])) for w in model.parameters()]).double()
    hessian = hesspec.Hessian(model, LOSS, data)
    pairs = hesspec.eigenpairs(hessian, count=30, steps=200)
    diagonal = hesspec.diagonal(hessian, probes=200, deflate=pairs)
    theta, bounds = flat(model), {}
    for wide, sharp in CHOICES:
        # The posterior of a Laplace approximation has the curvature of the sum over samples.
        prior, curvature, errors = wide * own, sharp * SAMPLES * diagonal.values, []
        deviation = torch.as_tensor(hesspec.noise.posterior_variance(curvature, prior_variance=prior)).sqrt()
        for _ in range(50):
            nn.utils.vector_to_parameters(theta + deviation * torch.randn_like(theta), model.parameters())
            errors.append(error(model, inputs, targets))
        bounds[wide, sharp] = hesspec.noise.flatness_bound(
            theta,
            start,
            curvature,
            prior_variance=prior,
            samples=SAMPLES,
            empirical_risk=sum(errors) / len(errors),
            # All of them hold together with 95%.
            confidence=1 - 0.05 / len(CHOICES),
        )
    nn.utils.vector_to_parameters(theta, model.parameters())
    return diagonal, bounds


def run(share):
    """Train with a share of random labels; spectra and angles at each checkpoint, and the bound at the end."""
    digits = load_digits()
    everything = torch.tensor(digits.data)
    everything = (everything - everything[:SAMPLES].mean()) / everything[:SAMPLES].std()
    inputs, targets = everything[:SAMPLES], torch.tensor(digits.target[:SAMPLES])
    torch.manual_seed(1)
    random = torch.randperm(SAMPLES)[: round(share * SAMPLES)]
    targets[random] = torch.randint(10, (len(random),))
    model, data, graphs = network(), [(inputs, targets)], hesspec.GraphCache(points=20)
    start, optimizer, history = flat(model), torch.optim.SGD(model.parameters(), lr=RATE), {}
    for step in range(CHECKPOINTS[-1] + 1):
        if step in CHECKPOINTS:
            history[step] = spectra, angles = measured(model, data, graphs)
            change = hesspec.noise.expected_loss_change(
                model, LOSS, data, learning_rate=RATE, batch_size=BATCH, batches=16
            )
            residual = spectra["LikelihoodResidual"]
            print(
                f"{share:4.0%} random, step {step:5}: loss {spectra['Hessian'].attributes['risk']:.4f}, largest "
                f"Hess {spectra['Hessian'].eigenvalues[0]:.3f}, M {spectra['SecondMoment'].eigenvalues[0]:.3f}, "
                f"H_p {residual.nodes.min():.3f} to {residual.nodes.max():.3f}; "
                + "; ".join(
                    f"{k} angles: mean cosine {a.cosines.mean():.2f}, above .9: {(a.cosines > 0.9).sum()}, smallest "
                    f"{a.cosines[-1]:.2f} [{a.low[-1]:.2f}, {a.high[-1]:.2f}]"
                    for k, a in angles.items()
                )
                + f"; change {change.value:+.2e} ({change.first_order:+.1e} {change.gradient_term:+.1e} "
                f"{change.noise_term:+.1e} ± {change.noise_standard_error:.0e}), best {change.best_learning_rate:.2f}"
            )
        chosen = torch.randperm(SAMPLES)[:BATCH]
        optimizer.zero_grad()
        LOSS(model(inputs[chosen]), targets[chosen]).backward()
        optimizer.step()
    diagonal, bounds = flatness(model, start, data)
    held_out = error(model, everything[SAMPLES:], torch.tensor(digits.target[SAMPLES:]))
    print(f"{share:4.0%} random: training error {error(model, inputs, targets):.3f}, test {held_out:.3f}")
    print(f"  diagonal: relative error {diagonal.relative_error:.2g}")
    for (wide, sharp), found in bounds.items():
        print(
            f"  prior x {wide}, curvature x {sharp:2}: bound {found.bound:.3f}, empirical {found.empirical_risk:.3f}, "
            f"KL {found.kl:.0f}, effective curvature {found.effective_curvature:.0f}, distance {found.distance:.0f}"
        )
    return history


def main(folder):
    """Train with true, half and all random labels, and draw what was found."""
    results = {share: run(share) for share in (0.0, 0.5, 1.0)}
    history = results[0.0]
    figure, (left, middle, right) = plt.subplots(1, 3, figsize=(14, 4.8), layout="constrained")
    spectra, _ = history[CHECKPOINTS[-1]]
    named = {"Hess": spectra["Hessian"], "M": spectra["SecondMoment"], "$H_p$": spectra["LikelihoodResidual"]}
    hesspec.plot.plot_spectrum(named, kind="linear", ax=left)
    for shade, (step, (_, angles)) in enumerate(history.items()):
        colour = plt.get_cmap("viridis")(0.9 * shade / (len(history) - 1))
        angles[max(angles)].plot(ax=middle, color=colour, label=f"step {step:,}")
    middle.set(xlabel="principal angle, smallest first", ylabel="cosine", title=f"Top {max(angles)} of Hess and M")
    middle.legend(loc="lower left")
    steps = list(history)[1:]
    extremes = {
        "largest of Hess": [history[step][0]["Hessian"].nodes.max() for step in steps],
        "−smallest of $H_p$": [-history[step][0]["LikelihoodResidual"].nodes.min() for step in steps],
        "largest of M": [history[step][0]["SecondMoment"].nodes.max() for step in steps],
    }
    for (name, values), colour, marker in zip(extremes.items(), ("#0072B2", "#999933", "#882255"), "o*p", strict=True):
        right.loglog(steps, values, color=colour, marker=marker, label=name)
    right.set(xlabel="step", ylabel="eigenvalue", title="Through training")
    right.set_xticks(steps, [f"{step:,}" for step in steps], minor=False)
    right.minorticks_off()
    right.legend(loc="lower left")
    figure.savefig(folder / "gradient-noise.png", dpi=90)


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "."))
