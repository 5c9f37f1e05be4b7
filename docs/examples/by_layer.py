"""Spectra by layer, projection and head of a byte-level transformer, and by layer of a CNN; a few minutes.

python docs/examples/by_layer.py [FOLDER]
"""
# ruff: noqa: T201

import sys
import time
from pathlib import Path

import numpy as np
import torch
from torch import nn

import hesspec
from hesspec.study import load_dataset, small_cnn

CONTEXT, WIDTH, LAYERS, HEADS, BYTES = 32, 32, 4, 4, 128
TRAINING_STEPS, SEQUENCES, LANCZOS = 1_000, 32, 48


class Layer(nn.Module):
    """Causal attention and an MLP, each after a normalisation, with a skip connection."""

    def __init__(self):
        super().__init__()
        self.norm_1, self.norm_2 = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.attention = nn.MultiheadAttention(WIDTH, HEADS, batch_first=True)
        self.mlp = nn.Sequential(nn.Linear(WIDTH, 4 * WIDTH), nn.GELU(), nn.Linear(4 * WIDTH, WIDTH))
        self.register_buffer("mask", torch.full((CONTEXT, CONTEXT), -torch.inf).triu(1))

    def forward(self, x):
        """Return activations (n, CONTEXT, WIDTH)."""
        h = self.norm_1(x)
        x = x + self.attention(h, h, h, attn_mask=self.mask, need_weights=False)[0]
        return x + self.mlp(self.norm_2(x))


class Transformer(nn.Module):
    """Language model of bytes."""

    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(BYTES, WIDTH)
        self.position = nn.Embedding(CONTEXT, WIDTH)
        self.layers = nn.ModuleList(Layer() for _ in range(LAYERS))
        self.norm, self.head = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, BYTES, bias=False)

    def forward(self, x):
        """Return logits (n, BYTES, CONTEXT) of the next bytes."""
        h = self.embedding(x) + self.position.weight
        for layer in self.layers:
            h = layer(h)
        return self.head(self.norm(h)).transpose(1, 2)


def sequences():
    """Sequences of ASCII bytes of Python source, that of NumPy, (n, CONTEXT + 1)."""
    files = sorted(Path(np.__file__).parent.rglob("*.py"))[:120]
    text = b"".join(file.read_bytes() for file in files)
    codes = torch.tensor([code for code in text if code < BYTES])
    return codes[: len(codes) // (CONTEXT + 1) * (CONTEXT + 1)].view(-1, CONTEXT + 1)


def train(model, draw, steps, rate):
    """Train with Adam on batches from `draw(step)`."""
    optimizer, loss_fn = torch.optim.Adam(model.parameters(), lr=rate), nn.CrossEntropyLoss()
    for step in range(steps):
        inputs, targets = draw(step)
        optimizer.zero_grad()
        loss_fn(model(inputs), targets).backward()
        optimizer.step()
    return model.eval()


def report(title, result):
    """Print the table of a result, and how much its blocks differ."""
    scales = np.array([np.abs(each.nodes) @ each.weights for each in result.spectra.values()])
    print(f"\n{title}: {result.attributes['seconds']:.0f} s")
    print(result)
    print(
        f"mean |eigenvalue| of blocks: {scales.min():.3g} to {scales.max():.3g}, {np.ptp(np.log10(scales)):.1f} decades"
    )


def draw_blocks(result, path):
    """Draw a result; a share of the rest that would hide those of small blocks is written instead."""
    figure, shares = result.plot(), 100 * result.trace_shares
    if "rest" in result and shares[-1] > 5 * shares[:-1].max():
        axes = figure.axes[1]
        axes.set_xlim(0, 2 * shares[:-1].max())
        axes.text(
            0.97, len(shares) - 1, f"{shares[-1]:.0f}%", transform=axes.get_yaxis_transform(), ha="right", va="center"
        )
    figure.savefig(path, dpi=90)


def transformer(folder):
    """Measure the transformer by layer, projection and head, at initialisation and trained."""
    torch.manual_seed(0)
    rows = sequences()[torch.randperm(len(sequences()))]
    held, rows = rows[:SEQUENCES], rows[SEQUENCES:]
    data = [(held[:, :-1], held[:, 1:])]
    model, loss_fn, graphs = Transformer().eval(), nn.CrossEntropyLoss(), hesspec.GraphCache(points=8)
    for when in ("initialisation", "trained"):
        if when == "trained":

            def draw(step):
                batch = rows[torch.randint(len(rows), (32,), generator=torch.Generator().manual_seed(step))]
                return batch[:, :-1], batch[:, 1:]

            train(model, draw, TRAINING_STEPS, 3e-3)
        begin = time.perf_counter()
        hessian = hesspec.Hessian(model, loss_fn, data, graphs=graphs)
        whole = hesspec.spectrum(hessian, steps=LANCZOS)
        seconds = time.perf_counter() - begin
        trace = f"{whole.trace:.4g} ± {2 * whole.trace_standard_error:.2g}"
        print(f"\n{when}: loss {hessian.risk:.3f}, whole in {seconds:.0f} s, trace {trace}")
        for by in ("layer", "projection", "head") if when == "trained" else ("layer", "projection"):
            result = hesspec.by_block(hessian, blocks=by, steps=LANCZOS)
            report(f"{when}, by {by}", result)
            result.save(folder / f"by-layer-{when}-{by}.nc")
            if when == "trained":
                draw_blocks(result, folder / f"by-layer-{'transformer' if by == 'layer' else f'{by}s'}.png")


def cnn(folder):
    """Measure a small CNN on digits by layer, at initialisation and trained."""
    torch.manual_seed(0)
    digits = load_dataset("digits", "train", samples_per_class=50)
    model, (inputs, targets) = small_cnn(1, 10, 8), next(iter(digits.batches(500)))
    for when in ("initialisation", "trained"):
        if when == "trained":

            def draw(step):
                chosen = torch.randint(len(inputs), (64,), generator=torch.Generator().manual_seed(step))
                return inputs[chosen], targets[chosen]

            train(model.train(), draw, 200, 3e-3)
        result = hesspec.by_block(model.eval(), nn.CrossEntropyLoss(), [(inputs, targets)], steps=LANCZOS)
        report(f"CNN, {when}, by layer", result)
    result.plot().savefig(folder / "by-layer-cnn.png", dpi=90)


def main(folder):
    """Measure, print and draw."""
    folder.mkdir(parents=True, exist_ok=True)
    cnn(folder)
    transformer(folder)


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "."))
