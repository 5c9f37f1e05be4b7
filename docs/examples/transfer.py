"""FashionMNIST to digits: effective data by the loss and by spectral statistics, in a few minutes.

python docs/examples/transfer.py [FOLDER]
"""
# ruff: noqa: T201

import sys
from pathlib import Path

import matplotlib.pyplot as plt

import hesspec


def main(folder):
    """Run the preset, print what fine-tuning is worth, and draw it."""
    study = folder / "transfer-digits"
    hesspec.study.run_study(hesspec.study.load_study("transfer-digits"), study)
    found = hesspec.study.open(study)
    # From scratch, networks for 10 samples per class are barely trained: their trace is not part of a monotone curve.
    parts = {"loss": found, "bulk edge": found, "trace": found.isel(samples_per_class=slice(1, None))}
    figure, panels = plt.subplots(1, 3, figsize=(13, 4), layout="constrained", sharey=True)
    for panel, (statistic, part) in zip(panels, parts.items(), strict=True):
        effective = hesspec.study.transfer(part, statistic)
        effective.save(study / f"transfer-{statistic.replace(' ', '-')}.nc")  # the page of the study shows it
        print(effective)
        effective.plot(panel)
    panels[0].set_ylim(0.4, 8)
    for panel in panels:
        panel.set(xlim=(9, 150), xticks=[10, 20, 50, 100], xticklabels=["10", "20", "50", "100"])
    figure.savefig(folder / "transfer.png", dpi=100)


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "."))
