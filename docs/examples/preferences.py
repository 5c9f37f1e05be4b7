"""Imitation, binary and ranked objectives at the same weights: lines of Python's standard library, a few minutes.

python docs/examples/preferences.py [FOLDER]
"""
# ruff: noqa: T201

import copy
import random
import sys
import sysconfig
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import torch
import torch.nn.functional as F
from byte_transformer import VOCABULARY, WIDTH, Backbone, encode
from torch import nn

import hesspec
from hesspec import language

BEFORE, LINE = 32, 24
LENGTH = BEFORE + LINE
STEPS, BATCH, TUNING = 1_000, 48, 300
GRADES = (0, 1, 3, 8)  # corrupted bytes of the lines that are ranked, best first
KINDS = ("graded", "other file")


class NextByte(nn.Module):
    """Logits (N, 128, LINE) of the bytes of a line after what stands before it: the imitation of good lines."""

    def __init__(self, backbone):
        super().__init__()
        self.backbone, self.head = backbone, nn.Linear(WIDTH, VOCABULARY)

    def forward(self, tokens):
        """Map tokens (N, 56) to the logits."""
        return self.head(self.backbone(tokens)[:, BEFORE - 1 : -1]).transpose(1, 2)


def read_lines(count, generator):
    """Pairs of what stands before a line and the line, of 24 bytes and the newline at most, by file."""
    files = sorted(Path(sysconfig.get_path("stdlib")).glob("*.py"))
    generator.shuffle(files)
    found = []
    for path in files:
        text = path.read_bytes().decode("ascii", "ignore")
        place = 0
        for line in text.splitlines(keepends=True):
            # Names and statements; blank lines and short ones say nothing.
            if place > BEFORE and 12 <= len(line) <= LINE:
                found.append((text[place - BEFORE : place], line))
            place += len(line)
        if len(found) >= count:
            return found[:count]
    return found


def corrupted(line, count, generator):
    """The line with some of its bytes before the newline replaced by letters."""
    letters = list(line)
    for place in generator.sample(range(len(line) - 1), min(count, len(line) - 1)):
        letters[place] = generator.choice("abcdefghijklmnopqrstuvwxyz_ (")
    return "".join(letters)


def make_pairs(lines, generator):
    """Good and bad lines of each kind: with fewer and more corrupted bytes; the true line, and one of another file."""
    made = {"graded": ([], []), "other file": ([], [])}
    for (before, line), (_, other) in zip(lines, lines[len(lines) // 2 :] + lines[: len(lines) // 2], strict=True):
        fewer, more = sorted(generator.sample(GRADES, 2))
        for side, count in zip(made["graded"], (fewer, more), strict=True):
            side.append(before + corrupted(line, count, generator))
        made["other file"][0].append(before + line)
        made["other file"][1].append(before + other)
    return {kind: tuple(encode(side, LENGTH) for side in sides) for kind, sides in made.items()}


def targets_of(tokens):
    """The bytes of the line; padding does not count."""
    return torch.where(tokens[:, BEFORE:] == 0, -100, tokens[:, BEFORE:])


def tune(model, loss_of, steps, rate):
    """AdamW on `loss_of(batch indices)` with a cosine schedule."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for step in range(steps):
        optimizer.zero_grad()
        loss = loss_of(torch.Generator().manual_seed(step))
        loss.backward()
        optimizer.step()
        schedule.step()
    return loss.item()


def drawn(generator, count):
    """Indices of the pairs of a batch."""
    return torch.randint(count, (BATCH,), generator=generator)


@torch.no_grad()
def accuracy(score, good, bad):
    """Share of pairs of which the good one has the larger score."""
    wins = torch.cat([score(a) > score(b) for a, b in zip(good.split(250), bad.split(250), strict=True)])
    return float(wins.float().mean())


def log_likelihood(model):
    """Score of a line: the log-probability of its bytes, a byte, as lines differ in length."""

    def score(tokens):
        targets = targets_of(tokens)
        losses = F.cross_entropy(model(tokens), targets, ignore_index=-100, reduction="none")
        return -losses.sum(1) / targets.ge(0).sum(1)

    return score


def fit_head(value, features, labels):
    """Fit the head on features of the frozen backbone, with a small weight decay."""
    optimizer = torch.optim.LBFGS(value.head.parameters(), max_iter=100, line_search_fn="strong_wolfe")

    def closure():
        optimizer.zero_grad()
        loss = F.binary_cross_entropy_with_logits(value.head(features).squeeze(1), labels)
        loss = loss + 1e-3 * value.head.weight.square().sum()
        loss.backward()
        return loss

    optimizer.step(closure)


def common_shift(value, backbone, data):
    """Squared cosines between the gradient of the mean reward and the largest eigenvectors of G, binary and ranked."""
    tokens = torch.cat(data)
    gradient = torch.autograd.grad(value(tokens).mean(), list(backbone.parameters()))
    direction = torch.cat([part.reshape(-1) for part in gradient])
    direction = direction / direction.norm()
    size = len(data[0])
    problems = {
        "binary": (value, nn.BCEWithLogitsLoss(), language.labelled(*data, 2 * size)),
        "ranked": (language.Pairwise(value), nn.CrossEntropyLoss(), language.pairs(*data, size)),
    }
    for name, problem in problems.items():
        top = hesspec.eigenpairs(hesspec.GaussNewton(*problem, params=backbone), count=1, steps=24).vectors[:, 0]
        print(
            f"{name}: squared cosine of the largest eigenvector and the mean gradient {float(top @ direction) ** 2:.3f}"
        )


def main(folder):
    """Pre-train, tune three objectives, report accuracies, and compare curvature at the same weights."""
    torch.manual_seed(0)
    generator = random.Random(0)  # noqa: S311 - for data
    lines = read_lines(9_000, generator)
    train, test = lines[:8_000], lines[8_000:]
    pairs, held_out = make_pairs(train, generator), make_pairs(test, generator)
    true, _ = pairs["other file"]
    backbone = Backbone(LENGTH)
    imitation = NextByte(backbone)
    print(f"{len(lines):,} lines, {sum(v.numel() for v in backbone.parameters()):,} parameters of the backbone")
    loss = tune(
        imitation,
        lambda g: F.cross_entropy(imitation(true[(i := drawn(g, len(true)))]), targets_of(true[i])),
        STEPS,
        3e-3,
    )
    print(f"language model: {loss:.3f} nats a byte")

    accuracies = {"imitation": {}, "binary": {}, "ranked": {}}
    for kind, (good, bad) in pairs.items():
        accuracies["imitation"][kind] = accuracy(log_likelihood(imitation), *held_out[kind])
        for name in ("binary", "ranked"):
            torch.manual_seed(1)
            value = language.ValueHead(copy.deepcopy(backbone), WIDTH, padding=0)
            pairwise = language.Pairwise(value)

            def binary(g, value=value, good=good, bad=bad):
                i = drawn(g, len(good))
                logits = value(torch.cat([good[i], bad[i]]))
                return F.binary_cross_entropy_with_logits(logits, torch.arange(2 * BATCH).lt(BATCH).float())

            def ranked(g, pairwise=pairwise, good=good, bad=bad):
                i = drawn(g, len(good))
                return F.cross_entropy(pairwise(good[i], bad[i]), torch.zeros(BATCH, dtype=torch.int64))

            tune(value, binary if name == "binary" else ranked, TUNING, 1e-3)
            accuracies[name][kind] = accuracy(value, *held_out[kind])
    for name, found in accuracies.items():
        shown = ", ".join(f"{kind} {share:.3f}" for kind, share in found.items())
        print(f"{name}: accuracy on {len(test):,} held-out pairs: {shown}")

    value = language.ValueHead(backbone, WIDTH, padding=0)
    few, other = (side[:1_000] for side in pairs["graded"])
    with torch.no_grad():
        ends = torch.cat([few, other]).ne(0).sum(1) - 1
        features = backbone(torch.cat([few, other]))[torch.arange(2_000), ends]
    fit_head(value, features, torch.arange(2_000).lt(1_000).float())
    few, other, known = few[:128], other[:128], true[:128]
    found = language.compare_objectives(
        {
            "imitation": (imitation, nn.CrossEntropyLoss(), [(known, targets_of(known))]),
            "binary": (value, nn.BCEWithLogitsLoss(), language.labelled(few, other, 256)),
            "ranked": (language.Pairwise(value), nn.CrossEntropyLoss(), language.pairs(few, other, 128)),
        },
        params=backbone,
        count=10,
        steps=80,
    )
    print(found)
    common_shift(value, backbone, (few, other))
    law = language.reward_law(features[:1_000], features[1_000:])
    print(law)
    found.save(folder / "objectives.nc")
    draw(found, accuracies, folder / "preferences.png")
    law_table()


def law_table():
    """Largest eigenvalue of Gaussian features against the law, d = 200, N = 1,000, 20 seeds."""
    for strength in (1.0, 2.0, 0.2):
        found = []
        for seed in range(20):
            one, other = np.random.default_rng(seed).standard_normal((2, 1_000, 200))
            one[:, 0] += np.sqrt(2 * strength)
            found.append(language.reward_law(one, other))
        values = np.array([law.eigenvalues[0] for law in found])
        predicted = hesspec.spectra.spiked.spiked_outlier(strength, 0.2, 0.5)
        seen = sum(law.visible for law in found)
        measured = f"{values.mean():.4f} ± {values.std():.4f}"
        print(f"h = {strength:g}: {measured}, law {predicted.value:.4f}; visible in {seen} of 20")


def draw(found, accuracies, path):
    """Largest eigenvalues of G over the trace, overlaps of eigenspaces, accuracies."""
    figure, axes = plt.subplots(1, 3, figsize=(13, 4.2), layout="constrained")
    colours = dict(zip(found.objectives, ("#0072B2", "#D55E00", "#009E73"), strict=True))
    for row, (name, matrix) in enumerate(zip(found.objective, found.matrix, strict=True)):
        if matrix == "GaussNewton":
            shares = found.eigenvalues[row] / found.traces[row]
            label = f"{name}, effective rank {found.effective_ranks[row]:.3g}"
            axes[0].semilogy(range(1, len(shares) + 1), shares, "o-", color=colours[str(name)], label=label)
    axes[0].set(xlabel="rank", ylabel="eigenvalue / trace", title="G at the same weights")
    axes[0].legend(fontsize=9)
    looks = iter((("s", "#CC79A7"), ("D", "#E69F00"), ("^", "#56B4E9")))
    for place in np.flatnonzero(found.pair_matrix == "GaussNewton"):
        label = f"{found.first[place]} and {found.second[place]}"
        marker, colour = next(looks)
        axes[1].plot(range(1, 11), found.cosines[place], marker=marker, color=colour, label=label)
    axes[1].set(xlabel="principal angle", ylabel="cosine", title="Top eigenspaces of G", ylim=(0, 1.03))
    axes[1].legend(fontsize=9)
    for offset, (name, shares) in enumerate(accuracies.items()):
        axes[2].bar([k + 0.27 * (offset - 1) for k in range(2)], shares.values(), 0.25, color=colours[name], label=name)
    axes[2].axhline(0.5, color="#888888", linestyle="--", linewidth=1)
    axes[2].set_xticks(range(2), [f"{kind}" for kind in KINDS])
    axes[2].set(ylabel="accuracy", title="Held-out pairs", ylim=(0, 1.18))
    axes[2].legend(fontsize=9, loc="upper left", ncols=3)
    figure.savefig(path, dpi=100)


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "."))
