"""Check what `hesspec study` and `hesspec report` made of the preset `digits-quick`: all of it is there, and right.

Usage: python .ci/check_study.py FOLDER
"""

# ruff: noqa: T201 - what it prints is its result

import sys
from pathlib import Path

import numpy as np

from hesspec import study
from hesspec.study.study_file import load_study


def main(folder: Path) -> int:
    """Print every check and whether it holds; the number of those that do not."""
    found = study.open(folder)
    train = found.sel(split="train").squeeze()
    end = train.isel(epoch=-1)
    hess, gauss_newton, residual = (end.sel(matrix=name) for name in ("Hessian", "GaussNewton", "Residual"))
    # Relative difference of the largest outliers; 1 to 3% in the study that docs/studies.md describes.
    apart = np.abs(hess.eigenvalue.values[:, 0] / gauss_newton.eigenvalue.values[:, 0] - 1)
    checks = {
        "the study is the preset": study.load_study(folder / "study.yaml") == load_study("digits-quick"),
        "72 spectra": len(list(folder.rglob("epoch-*.nc"))) == 72,
        "every number is there": not np.isnan(found.trace).any() and not np.isnan(found.loss).any(),
        "bounds beside all eigenvalues": bool((np.isnan(found.eigenvalue) == np.isnan(found.error_bound)).all()),
        "learning has happened": bool((end.error.isel(training_epoch=-1) < 0.1).all()),
        "about C outliers of G": bool(((gauss_newton.outliers >= 8) & (gauss_newton.outliers <= 12)).all()),
        "H has none": bool((residual.outliers == 0).all()),
        "the largest eigenvalue of Hess is that of G": bool((apart < 0.1).all()),
        "outliers grow": bool(
            (hess.eigenvalue[:, 0] > train.sel(matrix="Hessian").isel(epoch=0).eigenvalue[:, 0]).all()
        ),
        "a page": (folder / "report.html").stat().st_size > 1_000_000,
        "PDF figures": len(list((folder / "figures").glob("*.pdf"))) >= 12,
    }
    for name, holds in checks.items():
        print(f"{'ok  ' if holds else 'FAIL'} {name}")
    failed = sum(not holds for holds in checks.values())
    print(f"{len(checks) - failed} passed, {failed} failed")
    return failed


if __name__ == "__main__":
    sys.exit(min(main(Path(sys.argv[1])), 1))
