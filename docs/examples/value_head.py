"""A value head that says whether a small language model knows an answer: mixed arithmetic, a few minutes.

python docs/examples/value_head.py [FOLDER]
"""
# ruff: noqa: T201

import sys
from pathlib import Path

import matplotlib.pyplot as plt
import torch
import torch.nn.functional as F
from byte_transformer import VOCABULARY, WIDTH, Backbone, encode
from torch import nn

import hesspec
from hesspec import language

LENGTH = 26
STEPS, BATCH = 1_500, 128
SAMPLES = 30  # answers drawn for each question
TRAINED, OTHER = "plus", "minus"
OPERATIONS = {"plus": lambda a, b: a + b, "minus": lambda a, b: a - b}


def questions(operation):
    """All questions of an operation on numbers below 100, and their answers, in random order."""
    order = torch.randperm(10_000, generator=torch.Generator().manual_seed(sum(operation.encode()))).tolist()
    numbers = [divmod(place, 100) for place in order]
    asked = [f"What is {a} {operation} {b}?" for a, b in numbers]
    return asked, [f" {OPERATIONS[operation](a, b)}\n" for a, b in numbers]


def next_byte_loss(model, tokens):
    """Cross-entropy of each byte after the first; padding does not count."""
    return F.cross_entropy(model(tokens)[:, :-1].transpose(1, 2), tokens[:, 1:], ignore_index=0, reduction="none")


def rates(steps):
    """Learning rate at each step: linear warm-up, then a cosine to zero."""
    ramp = (torch.arange(steps) + 1).div(50).clamp(max=1)
    return 3e-3 * ramp * (1 + torch.cos(torch.pi * torch.arange(steps) / steps)) / 2


def train(parameters, loss_of, steps, scale=1.0):
    """AdamW on `loss_of(step)`."""
    optimizer = torch.optim.AdamW(parameters, weight_decay=0.01)
    for step, rate in enumerate(rates(steps).tolist()):
        for group in optimizer.param_groups:
            group["lr"] = scale * rate
        optimizer.zero_grad()
        loss = loss_of(step)
        loss.backward()
        optimizer.step()
    return loss.item()


@torch.no_grad()
def chance_of_answers(model, asked, answers):
    """Probability that an answer drawn at temperature 1 is right, byte by byte."""
    tokens = encode([a + b for a, b in zip(asked, answers, strict=True)], LENGTH)
    start = torch.tensor([len(text) for text in asked])
    of_answer = torch.arange(1, LENGTH) >= start[:, None]
    losses = torch.cat([next_byte_loss(model, part) for part in tokens.split(500)])
    return torch.exp(-(losses * of_answer).sum(1)).double()


def main(folder):
    """Train the language model and the head, and measure calibration and curvature."""
    torch.manual_seed(0)
    backbone = Backbone(LENGTH)
    model = nn.Sequential(backbone, nn.Linear(WIDTH, VOCABULARY))
    print(f"{sum(value.numel() for value in backbone.parameters()):,} parameters of the backbone")
    asked = {name: questions(name) for name in OPERATIONS}
    known = torch.cat(
        [encode([q + a for q, a in zip(*(part[:5_000] for part in asked[n]), strict=True)], LENGTH) for n in asked]
    )

    def language_loss(step):
        chosen = torch.randint(len(known), (BATCH,), generator=torch.Generator().manual_seed(step))
        losses = next_byte_loss(model, known[chosen])
        return losses.sum() / (known[chosen][:, 1:] != 0).sum()

    print(f"language model: loss {train(model.parameters(), language_loss, STEPS):.3f}")
    data = {}
    for name in OPERATIONS:
        chance = chance_of_answers(model, *asked[name])
        # The number of right ones of 30 answers drawn at temperature 1.
        drawn = torch.distributions.Binomial(SAMPLES, chance).sample()
        data[name] = encode(asked[name][0], LENGTH), (drawn / SAMPLES).float()
        print(f"{name}: {chance[:5_000].mean():.3f} right of trained questions, {chance[5_000:].mean():.3f} of others")

    torch.manual_seed(1)
    head = language.ValueHead(backbone, WIDTH, padding=0)
    loss_fn = nn.BCEWithLogitsLoss()
    inputs, shares = data[TRAINED]
    # Questions that the language model was not trained on: those for the head, and those to test it.
    trained, test = slice(5_000, 7_500), slice(9_000, 10_000)
    before = measure(head, loss_fn, [(inputs[trained][:500], shares[trained][:500])])

    def head_loss(step):
        chosen = torch.randint(2_500, (BATCH,), generator=torch.Generator().manual_seed(step)) + 5_000
        return loss_fn(head(inputs[chosen]), shares[chosen])

    print(f"head: loss {train(head.parameters(), head_loss, 300, scale=0.3):.3f}")
    head.eval()
    after = measure(head, loss_fn, [(inputs[trained][:500], shares[trained][:500])])
    fitted = hesspec.laplace.Laplace(
        head, loss_fn, [(inputs[trained], shares[trained])], params=["head.*"], prior_precision=1.0, steps=49
    )
    results = {}
    for name in OPERATIONS:
        x, t = data[name][0][test], data[name][1][test]
        with torch.no_grad():
            plain = torch.sigmoid(head(x))
        found = language.calibration(plain, t)
        curvature = language.label_consistency(head, loss_fn, [(x, t)])
        moved = fitted.predict(x).mean.reshape(-1)
        bayes = language.calibration(moved, t)
        temperature = language.fit_temperature(torch.logit(plain.double()), t)
        print(f"\n{name}\n{found}\n{curvature.summary()}\n{temperature}")
        print(f"Laplace, last layer: ECE {bayes.ece:.4f}, Brier {bayes.brier:.4f}")
        print(f"mean |p - 1/2|: {(plain - 0.5).abs().mean():.4f}, by Laplace {(moved - 0.5).abs().mean():.4f}")
        results[name] = found, curvature
    draw(results, before, after, folder / "value-head.png")


def measure(head, loss_fn, data):
    """Spectra of the whole network and of the head."""
    found = {
        "Hess": hesspec.spectrum(hesspec.Hessian(head, loss_fn, data), steps=40),
        "G": hesspec.spectrum(hesspec.GaussNewton(head, loss_fn, data), steps=40),
        "G, head": hesspec.spectrum(hesspec.GaussNewton(head, loss_fn, data, params=["head.*"]), steps=49),
    }
    for name, spectrum in found.items():
        largest = ", ".join(f"{value:.4g}" for value in spectrum.eigenvalues[:5])
        print(f"{name}: {largest}; trace {spectrum.trace:.4g}; {spectrum.outliers.size} outliers")
    return found


def draw(results, before, after, path):
    """Reliability, tr F / tr G, and the largest eigenvalues before and after training."""
    figure, axes = plt.subplots(1, 3, figsize=(13, 4.2), layout="constrained")
    colours = dict(zip(results, ("#0072B2", "#D55E00"), strict=True))
    for name, (found, curvature) in results.items():
        kind = "trained" if name == TRAINED else "not trained"
        found.plot(axes[0], color=colours[name], label=f"{name} ({kind}): ECE {found.ece:.3f}, AUROC {found.auroc:.2f}")
        bars = [[curvature.ratio - curvature.low], [curvature.high - curvature.ratio]]
        axes[1].errorbar([name], [curvature.ratio], bars, fmt="o", color=colours[name], capsize=5, markersize=8)
        axes[1].plot([name], [found.consistency], "D", color=colours[name], fillstyle="none", markersize=8)
    axes[0].set(
        xlabel="predicted share of right answers", ylabel="share of right answers", title="Calibration of the head"
    )
    axes[0].set(xlim=(0, 0.7), ylim=(0, 0.7))
    axes[0].legend(fontsize=8, loc="upper left")
    axes[1].axhline(1, color="#888888", linestyle="--", linewidth=1)
    axes[1].plot([], [], "o", color="black", label="whole network")
    axes[1].plot([], [], "D", color="black", fillstyle="none", label="bias of the head: Brier / mean p(1 − p)")
    axes[1].set(title="tr F / tr G: 1 if calibrated", xlim=(-0.6, 1.6))
    axes[1].legend(fontsize=8, loc="upper left")
    axes[1].margins(y=0.25)
    for name, marker in (("G", "o"), ("Hess", "s")):
        for found, colour, when in ((before, "#999999", "before"), (after, "#009E73", "after")):
            values = abs(found[name].eigenvalues[:12])
            axes[2].semilogy(
                range(1, len(values) + 1),
                values,
                marker,
                color=colour,
                fillstyle="none" if name == "G" else "full",
                label=f"{name}, {when} training",
            )
    axes[2].set(xlabel="rank", ylabel="|eigenvalue|", title="Largest eigenvalues, whole network")
    axes[2].legend(fontsize=8)
    figure.savefig(path, dpi=100)


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "."))
