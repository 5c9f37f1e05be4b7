"""English to Python: byte transformers of three sizes, from scratch and pre-trained on English; ten minutes on a core.

The English text is that of Python's own help topics, the target is the source of the standard library: nothing is
downloaded. What was computed is kept in FOLDER/transfer-language.json, so that the script can be interrupted.

python docs/examples/transfer_language.py [FOLDER [NETWORK]]
"""
# ruff: noqa: T201

import copy
import hashlib
import json
import pydoc_data.topics
import sys
import sysconfig
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import torch
from torch import nn
from torch.nn.functional import cross_entropy

import hesspec

LENGTH, BATCH = 64, 16
# Layers and width; names are numbers of parameters, with embeddings.
NETWORKS = {"13k": (1, 16), "44k": (2, 32), "137k": (2, 64)}
SCRATCH = (1_000, 4_000, 16_000, 64_000, 256_000)
TUNED = (1_000, 4_000, 16_000, 64_000)
SEEDS = (0, 1)
RATE, WARM_UP, MOST_STEPS, EVERY, PATIENCE = 3e-3, 20, 1500, 50, 3
PRETRAINING = 800
STATISTICS = ("loss", "outlier1", "bulk edge", "trace")


class Block(nn.Module):
    """Causal attention and an MLP, each after a layer norm."""

    def __init__(self, width, heads):
        super().__init__()
        self.heads, self.norms = heads, nn.ModuleList([nn.LayerNorm(width), nn.LayerNorm(width)])
        self.attend, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, x):
        """Map (N, L, width) to the same."""
        parts = self.attend(self.norms[0](x)).chunk(3, dim=-1)
        q, k, v = (part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in parts)
        scores = q @ k.mT / q.shape[-1] ** 0.5
        future = torch.ones(x.shape[1], x.shape[1], dtype=torch.bool).triu(1)
        mixed = scores.masked_fill(future, -torch.inf).softmax(-1) @ v
        x = x + self.out(mixed.transpose(1, 2).flatten(2))
        return x + self.mlp(self.norms[1](x))


class Bytes(nn.Module):
    """Next-byte logits (N, 256, L) of bytes (N, L)."""

    def __init__(self, layers, width):
        super().__init__()
        self.tokens, self.places = nn.Embedding(256, width), nn.Embedding(LENGTH, width)
        self.blocks = nn.Sequential(*(Block(width, width // 16) for _ in range(layers)))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, 256, bias=False)
        for table in (self.tokens, self.places):
            nn.init.normal_(table.weight, std=0.02)

    def forward(self, x):
        """Logits at all positions."""
        embedded = self.tokens(x) + self.places(torch.arange(x.shape[1]))
        return self.head(self.norm(self.blocks(embedded))).mT


def texts():
    """English; and the files of the standard library for training and for validation, without the English."""
    folder = Path(sysconfig.get_path("stdlib"))
    left_out = {"site-packages", "dist-packages", "test", "tests", "idle_test", "pydoc_data"}
    names = [file.relative_to(folder) for file in folder.rglob("*.py")]
    names = [name for name in names if not left_out & set(name.parts)]
    names.sort(key=lambda name: hashlib.sha256(name.as_posix().encode()).digest())
    contents = [(folder / name).read_bytes() for name in names]
    return "\n".join(pydoc_data.topics.topics.values()).encode(), contents[60:], b"".join(contents[:60])


def windows(text, count, generator):
    """Draw sequences and the bytes that follow theirs."""
    data = torch.frombuffer(bytearray(text), dtype=torch.uint8).long()
    starts = torch.randint(len(data) - LENGTH, (count,), generator=generator)
    rows = data[starts[:, None] + torch.arange(LENGTH + 1)]
    return rows[:, :-1], rows[:, 1:]


def train(network, text, held_out, seed, steps=MOST_STEPS, patience=PATIENCE):
    """Train by Adam to early stopping; leave the best weights, and return their validation loss and the last step."""
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.Adam(network.parameters(), lr=RATE)
    best, weights, worse = np.inf, None, 0
    for step in range(steps + 1):
        if step % EVERY == 0:
            with torch.no_grad():
                loss = cross_entropy(network(held_out[0]), held_out[1]).item()
            worse = 0 if loss < best else worse + 1
            if loss < best:
                best, weights = loss, copy.deepcopy(network.state_dict())
            if worse == patience:
                break
        optimizer.param_groups[0]["lr"] = RATE * min(1, (step + 1) / WARM_UP) * (1 - 0.9 * step / steps)
        inputs, targets = windows(text, BATCH, generator)
        optimizer.zero_grad()
        cross_entropy(network(inputs), targets).backward()
        optimizer.step()
    network.load_state_dict(weights)
    return best, step


def measure(network, held_out, graphs):
    """Statistics of the Hessian on 32 sequences, the same for all networks."""
    batch = [(held_out[0][:32], held_out[1][:32])]
    spectrum = hesspec.spectrum(hesspec.Hessian(network, nn.CrossEntropyLoss(), batch, graphs=graphs), steps=24)
    found = (spectrum.eigenvalues[0], spectrum.bulk_edges[1], spectrum.trace)
    return dict(zip(STATISTICS[1:], map(float, found), strict=True))


def run(name, results, save):
    """All trainings of one network that are not in the results yet."""
    english, training, validation = texts()
    held_out = windows(validation, 128, torch.Generator().manual_seed(0))
    torch.manual_seed(0)
    network, graphs = Bytes(*NETWORKS[name]), hesspec.GraphCache(points=2)
    for seed in SEEDS:
        text = b"".join(training[index] for index in np.random.default_rng(seed).permutation(len(training)))
        torch.manual_seed(seed)
        starts = {"scratch": Bytes(*NETWORKS[name]).state_dict()}
        jobs = [("scratch", size) for size in SCRATCH] + [("english", size) for size in TUNED]
        for start, size in jobs:
            key = f"{name} {start} {size} {seed}"
            if key in results:
                continue
            if start not in starts:
                network.load_state_dict(starts["scratch"])
                english_loss = windows(english[-len(english) // 20 :], 128, torch.Generator().manual_seed(0))
                lowest, _ = train(network, english[: -len(english) // 20], english_loss, seed, PRETRAINING, 100)
                print(f"{name}, seed {seed}: English to {lowest:.3f} nats a byte", flush=True)
                starts[start] = copy.deepcopy(network.state_dict())
            network.load_state_dict(starts[start])
            loss, steps = train(network, text[:size], held_out, seed)
            results[key] = {"loss": loss, "steps": steps, **measure(network, held_out, graphs)}
            print(key, {what: round(value, 4) for what, value in results[key].items()}, flush=True)
            save()


def columns(results, name, start, sizes, statistic):
    """Values (sizes, seeds)."""
    return np.array([[results[f"{name} {start} {size} {seed}"][statistic] for seed in SEEDS] for size in sizes])


def main(folder, names):
    """Train what is missing, invert, fit and draw."""
    file = folder / "transfer-language.json"
    results = json.loads(file.read_text()) if file.is_file() else {}
    for name in names:
        run(name, results, lambda: file.write_text(json.dumps(results, indent=0)))
    if set(names) != set(NETWORKS):
        return
    figure, panels = plt.subplots(1, 2, figsize=(10, 4.2), layout="constrained")
    points = []
    for index, (name, (layers, width)) in enumerate(NETWORKS.items()):
        count = sum(p.numel() for p in Bytes(layers, width).blocks.parameters())
        curve = columns(results, name, "scratch", SCRATCH, "loss")
        tuned = columns(results, name, "english", TUNED, "loss")
        panels[0].plot(SCRATCH, curve.mean(1), "o-", color=f"C{index}", label=f"N = {count:,}, from scratch")
        panels[0].plot(TUNED, tuned.mean(1), "o--", color=f"C{index}", mfc="white")
        for statistic in STATISTICS:
            for size, values in zip(TUNED, columns(results, name, "english", TUNED, statistic), strict=True):
                try:
                    found = hesspec.effective_data(
                        SCRATCH, columns(results, name, "scratch", SCRATCH, statistic), values
                    )
                except ValueError as error:
                    print(f"{name} {statistic} D_F = {size}: {error}")
                    continue
                print(f"{name} {statistic} D_F = {size}: D_E = {found}")
                if statistic == "loss":
                    points.append((size, count, found.value - size))
                    panels[1].errorbar(
                        size * 1.06 ** (index - 1),
                        found.value / size,
                        [[(found.value - found.lower) / size], [min(found.upper, 1e7) / size - found.value / size]],
                        fmt="o",
                        capsize=3,
                        color=f"C{index}",
                        label=f"N = {count:,}" if size == TUNED[0] else None,
                    )
    panels[0].set(
        xscale="log", yscale="log", xlabel="training set (bytes of Python)", ylabel="validation loss (nats per byte)"
    )
    panels[1].set(xscale="log", yscale="log", xlabel="fine-tuned on $D_F$ (bytes)", ylabel="$D_E/D_F$", ylim=(0.5, 300))
    panels[0].set_yticks([2, 2.5, 3, 3.5], ["2", "2.5", "3", "3.5"])
    panels[0].minorticks_off()
    panels[0].plot([], [], "o--", color="#555555", mfc="white", label="from English")
    panels[1].axhline(1, color="k", linewidth=0.8)
    for panel in panels:
        panel.legend(fontsize=9)
    figure.savefig(folder / "transfer-language.png", dpi=100)
    try:
        print(hesspec.fit_transfer_law(*np.array(points).T, unit="bytes"))
    except ValueError as error:
        print(error)


if __name__ == "__main__":
    chosen = sys.argv[2:] or list(NETWORKS)
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "."), chosen)
