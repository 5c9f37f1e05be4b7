"""Curvature of a byte-level GPT while it learns the source of Python's standard library; about three minutes.

python docs/examples/language_model.py [FOLDER]
"""
# ruff: noqa: T201

import json
import sys
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import torch
from torch import nn

import hesspec
from hesspec.plot import OKABE_ITO
from hesspec.study import TrainingSettings, evaluate, gpt_tiny, load_dataset

LENGTH, SEQUENCES, MEASURED, BATCH = 64, 2_048, 32, 32
SETTINGS = TrainingSettings(epochs=10, learning_rate=3e-3, schedule="cosine", warmup=0.05, batch_size=BATCH)
CHECKS = (0, 1, 3, 6, 10)
LANCZOS, FREQUENT = 40, 10
MATRICES = {"Hess": hesspec.Hessian, "G": hesspec.GaussNewton, "H": hesspec.Residual}


def train(network, data, look):
    """AdamW with warm-up and cosine; calls `look(epoch, optimizer)` at the checks."""
    optimizer = torch.optim.AdamW(network.parameters(), lr=SETTINGS.learning_rate, weight_decay=0.01)
    loss_fn = nn.CrossEntropyLoss()
    torch.manual_seed(0)
    look(0, optimizer)
    for epoch in range(1, SETTINGS.epochs + 1):
        batches = torch.split(torch.randperm(len(data)), BATCH)
        for step, batch in enumerate(batches, start=1):
            for group in optimizer.param_groups:
                group["lr"] = SETTINGS.learning_rate_in(epoch, step, len(batches))
            optimizer.zero_grad()
            loss_fn(network(data.inputs[batch]), data.targets[batch]).backward()
            optimizer.step()
        if epoch in CHECKS:
            look(epoch, optimizer)


def measure(network, data, optimizer):
    """Largest eigenvalue, trace and number of outliers of each matrix; sharpness preconditioned by AdamW."""
    batches = data.first(MEASURED).batches(MEASURED)
    found = {}
    for name, matrix in MATRICES.items():
        spectrum = hesspec.spectrum(matrix(network, nn.CrossEntropyLoss(), batches), steps=LANCZOS, progress=False)
        found[name] = {
            "largest": float(spectrum.nodes.max()),
            "smallest": float(spectrum.nodes.min()),
            "trace": float(spectrum.trace),
            "outliers": len(spectrum.outliers),
        }
    if optimizer.state:
        scaled = hesspec.Preconditioned(hesspec.Hessian(network, nn.CrossEntropyLoss(), batches), optimizer)
        found["preconditioned"] = float(hesspec.spectrum(scaled, steps=LANCZOS, progress=False).nodes.max())
        found["threshold"] = hesspec.stability.threshold(optimizer).value
    return found


def explain(network, data, matrices, *, knockout):
    """Class structure over the most frequent bytes, with all others as one class."""
    batches = data.first(MEASURED).batches(MEASURED)
    classes = hesspec.frequent_classes(batches, data.classes, FREQUENT)
    print("bytes:", [data.class_names[i] for i in torch.argsort(classes, stable=True)[:FREQUENT].tolist()])
    return hesspec.class_structure(
        network,
        nn.CrossEntropyLoss(),
        batches,
        classes=classes,
        matrices=matrices,
        knockout=knockout,
        steps=64,
        progress=False,
    )


def plot(history, structure, path):
    """Draw eigenvalues through training, preconditioned sharpness, and the shares of the largest eigenvalues."""
    figure, axes = plt.subplots(1, 3, figsize=(12, 3.6), layout="constrained")
    epochs = list(history)
    for name, marker, colour in zip(MATRICES, "os^", OKABE_ITO, strict=False):
        values = [history[epoch][name]["largest"] for epoch in epochs]
        axes[0].plot(epochs, values, marker=marker, color=colour, label=name)
    axes[0].set(xlabel="epoch", ylabel="largest eigenvalue", yscale="log", xticks=epochs)
    axes[0].legend()
    later = [epoch for epoch in epochs if "threshold" in history[epoch]]
    values = [history[epoch]["preconditioned"] for epoch in later]
    axes[1].plot(later, values, "o-", color=OKABE_ITO[0], label="Hess, preconditioned")
    axes[1].plot(later, [history[epoch]["threshold"] for epoch in later], "k--", label="threshold of AdamW")
    axes[1].set(xlabel="epoch", ylabel="largest eigenvalue", yscale="log", xticks=later)
    axes[1].legend()
    chosen = structure.outlier_matrix == "GaussNewton"
    values, ranks = structure.outliers[chosen], np.arange(1, chosen.sum() + 1)
    base = np.zeros(len(values))
    for index, part in enumerate(("class", "cross", "within", "same")):
        share = structure.outlier_shares[chosen][:, index]
        axes[2].bar(ranks, share, bottom=base, color=OKABE_ITO[3 + index], label=part)
        base += share
    axes[2].set(xlabel="rank of the eigenvalue of G", ylabel="eigenvalue, by parts of G", xticks=ranks)
    axes[2].legend()
    figure.savefig(path, dpi=100)


def main(folder):
    """Train, print what was found, and draw it."""
    data, test = (
        load_dataset("python-stdlib", split, samples_per_class=count, size=LENGTH)
        for split, count in (("train", SEQUENCES), ("test", 256))
    )
    torch.manual_seed(0)
    network, history = gpt_tiny(data.classes, LENGTH), {}

    def look(epoch, optimizer):
        loss, error = evaluate(network, test, batch_size=64)
        history[epoch] = {"test_loss": loss, "test_error": error, **measure(network.eval(), data, optimizer)}
        print(epoch, json.dumps(history[epoch]), flush=True)
        if epoch in (0, 1, 3):
            print(explain(network, data, ["GaussNewton"], knockout=False), flush=True)

    train(network, data, look)
    structure = explain(network, data, ["Hessian", "GaussNewton"], knockout=True)
    print(structure)
    structure.save(folder / "language-model-structure.nc", overwrite=True)
    plot(history, structure, folder / "language-model.png")


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "."))
