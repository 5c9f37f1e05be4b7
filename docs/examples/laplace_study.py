"""Evidence and effective number of parameters through training, at three sample sizes: the preset study `laplace`.

    python docs/examples/laplace_study.py [FOLDER [FIGURE]]

Runs the study in the folder, if it has not been run there, and draws it. Takes half a minute with one thread.
"""
# ruff: noqa: T201

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

import hesspec
from hesspec.plot import FILL, OKABE_ITO
from hesspec.plot.figure import new_figure, styled
from hesspec.plot.ticks import number_ticks
from hesspec.study.store import tasks_of
from hesspec.study.study_folder import read_study


def test_losses(folder: Path, samples: int) -> np.ndarray:
    """Test losses (seed, epoch); `hesspec.study.open` has those of the splits that are measured."""
    tasks = [task for task in tasks_of(read_study(folder), folder) if task.runs[0].samples_per_class == samples]
    return np.array([[record.test_loss for record in task.runs[0].history] for task in tasks])


def draw(folder: Path, path: Path) -> None:
    """Evidence per sample, effective parameters and test loss against the epoch: medians and ranges over seeds."""
    found = hesspec.study.open(folder).isel(dataset=0, network=0, optimizer=0, start=0)
    with styled():
        figure = new_figure(11, 3.6)
        left, middle, right = figure.subplots(1, 3)
        for colour, samples in zip(OKABE_ITO, found.samples_per_class.values, strict=False):
            mine = found.sel(samples_per_class=samples)
            count = 10 * int(samples)
            epochs = mine.epoch.values
            for axes, array in ((left, mine.log_evidence / count), (middle, mine.effective_parameters)):
                values = array.transpose("seed", "epoch").values
                axes.plot(epochs, np.median(values, axis=0), "o-", color=colour, markersize=4, label=f"n = {samples}")
                axes.fill_between(epochs, values.min(0), values.max(0), color=colour, alpha=FILL, linewidth=0)
            losses = test_losses(folder, int(samples))
            center = np.median(losses, axis=0)
            right.plot(np.arange(center.size), center, color=colour, linewidth=1.6)
            right.fill_between(
                np.arange(center.size), losses.min(0), losses.max(0), color=colour, alpha=FILL, linewidth=0
            )
            right.plot(center.argmin(), center.min(), "o", color=colour, fillstyle="none", markersize=10)
            best = int(center.argmin())
            print(f"n = {samples}: lowest test loss {center[best]:.3f} after epoch {best}; {center[-1]:.3f} at the end")
        for axes in (left, middle, right):
            axes.set(xscale="symlog", xlabel="epoch", xlim=(0, None))
            axes.set_xticks([0, 1, 3, 10, 30, 60], ["0", "1", "3", "10", "30", "60"])
        left.set_ylabel("log evidence per sample (nats)")
        middle.set(ylabel="effective parameters", ylim=(0, None))
        right.set(ylabel="test loss (nats)", yscale="log")
        number_ticks(right.yaxis)
        left.legend(fontsize=9)
    figure.savefig(path, dpi=100)


def main() -> None:
    """Run the study and draw it."""
    folder = Path(sys.argv[1] if len(sys.argv) > 1 else "laplace-study")
    path = Path(sys.argv[2] if len(sys.argv) > 2 else "laplace-study.png")
    hesspec.study.run_study(hesspec.study.load_study("laplace"), folder)
    draw(folder, path)
    print(f"Saved {path}.")


if __name__ == "__main__":
    main()
