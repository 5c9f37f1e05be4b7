"""Check what `hesspec demo` wrote: that all of it is there, and that it is right.

Usage: python .ci/check_demo.py FOLDER
"""

# ruff: noqa: T201 - what it prints is its result

import re
import sys
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path

import matplotlib as mpl
import numpy as np

from hesspec.cli.demo_study import CHECKPOINTS, Demo, demo_study, read_demo
from hesspec.matrices import DEFAULT_MATRICES
from hesspec.study import SPLITS, evaluate, load_dataset, load_study, load_weights, small_cnn

FIGURES = (
    "end-train",
    "end-test",
    "end-train-and-test",
    "end-train-class-structure",
    "training-Hessian",
    "training-GaussNewton",
)
STEPS, EPOCHS = 64, 30
MEASURED = dict(zip(CHECKPOINTS, (0, EPOCHS // 3, EPOCHS), strict=True))

# With seeds 0 to 5, G has 10 outliers at the end on both sets, one for each class, once 11 on one of them.
OUTLIERS = range(8, 13)
TEST_ERROR = 0.08  # 2 to 4% with these seeds

Check = tuple[str, bool]


class Addresses(HTMLParser):
    """What a page asks the browser to fetch."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[str] = []
        self._in_style = False
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Note the addresses in an element."""
        self._in_style = tag == "style"
        self.found += [value or "" for name, value in attrs if name in {"src", "href", "data", "srcset", "poster"}]
        for name, value in attrs:
            if name == "style":
                self._note_style(value or "")

    def handle_data(self, data: str) -> None:
        """Note the addresses in a style sheet."""
        if self._in_style:
            self._note_style(data)

    def _note_style(self, text: str) -> None:
        self.found += re.findall(r"""(?:url\(|@import)\s*["']?([^"')\s]+)""", text)


def each_spectrum(demo: Demo) -> Iterator[Check]:
    """What has to be true of every spectrum by itself."""
    for key, spectrum in demo.spectra.items():
        name, (checkpoint, split, matrix) = " ".join(key), key
        attributes, epoch = spectrum.attributes, MEASURED[checkpoint]
        yield (
            f"{name}: it says what it is of",
            (
                (attributes["epoch"], attributes["split"], attributes["matrix"]) == (epoch, split, matrix)
                and (attributes["network"], attributes["dataset"], attributes["classes"]) == ("small_cnn", "digits", 10)
            ),
        )
        yield (
            f"{name}: {STEPS} steps on all {spectrum.dimension:,} parameters",
            (spectrum.steps == STEPS and spectrum.dimension == 39_670),
        )
        yield f"{name}: the weights sum to 1", abs(spectrum.weights.sum() - 1) < 1e-9
        yield (
            f"{name}: eigenvalues are resolved, within small bounds",
            (
                spectrum.eigenvalues.size > 0
                and bool((spectrum.error_bounds <= 0.05 * np.abs(spectrum.eigenvalues) + spectrum.rounding).all())
            ),
        )
        record = demo.history[epoch]
        loss = record.train_loss if split == "train" else record.test_loss
        yield f"{name}: its loss is that of the training record", abs(attributes["risk"] / loss - 1) < 1e-4
        if matrix == "GaussNewton":
            yield f"{name}: positive semidefinite, up to rounding", spectrum.ritz_values.min() >= -spectrum.rounding
        if (checkpoint, matrix) == ("end", "GaussNewton"):
            yield (
                f"{name}: about as many outliers as classes ({spectrum.outliers.size})",
                spectrum.outliers.size in OUTLIERS,
            )


def each_sum(demo: Demo) -> Iterator[Check]:
    """Hess = G + H, as far as spectra tell."""
    for checkpoint in CHECKPOINTS:
        for split in SPLITS:
            whole, gauss_newton, residual = (demo.spectra[checkpoint, split, matrix] for matrix in DEFAULT_MATRICES)
            name = f"{checkpoint} {split}"
            error = np.sqrt(sum(part.trace_standard_error**2 for part in (whole, gauss_newton, residual)))
            yield (
                f"{name}: trace(Hess) = trace(G) + trace(H) within three standard errors",
                (abs(whole.trace - gauss_newton.trace - residual.trace) <= 3 * error),
            )
            # Weyl's inequality for the largest eigenvalues, which 64 steps have resolved.
            margin = residual.norm + whole.error_bounds[0] + gauss_newton.error_bounds[0] + 0.05 * residual.norm
            yield (
                f"{name}: the largest eigenvalues of Hess and G differ by at most |H|",
                (abs(whole.nodes[-1] - gauss_newton.nodes[-1]) <= margin),
            )


def each_file(folder: Path, demo: Demo) -> Iterator[Check]:
    """Study, training, checkpoints, figures and report."""
    history, seed = demo.history, int(demo.structure.attributes["training_seed"])
    yield "the study is the preset, with a seed", load_study(folder / "study.yaml") == demo_study(seed)
    keys = {(checkpoint, split, matrix) for checkpoint in MEASURED for split in SPLITS for matrix in DEFAULT_MATRICES}
    yield "there are 18 spectra", demo.spectra.keys() == keys
    yield f"the record has the epochs 0 to {EPOCHS}", [r.epoch for r in history] == list(range(EPOCHS + 1))
    yield "the network has learnt the digits", history[-1].test_error < TEST_ERROR
    test_set = load_dataset("digits", "test")
    for checkpoint, epoch in MEASURED.items():
        network = small_cnn(test_set.channels, test_set.classes, test_set.size)
        load_weights(network, demo.weights[checkpoint])
        loss, error = evaluate(network, test_set, batch_size=len(test_set))
        yield (
            f"checkpoint {checkpoint}: loss and error on the test set are those of the training record",
            (abs(loss / history[epoch].test_loss - 1) < 1e-4 and abs(error - history[epoch].test_error) < 1e-9),
        )
    for figure in FIGURES:
        image = mpl.image.imread(folder / "figures" / f"{figure}.png")
        height, width = image.shape[:2]
        yield (
            f"figure {figure}: {width}x{height} pixels, not blank",
            (height >= 900 and width >= 1500 and image[..., :3].std() > 0.05),
        )
    page = (folder / "report.html").read_text(encoding="utf-8")
    addresses = Addresses(page).found
    yield "report.html fetches nothing", all(address.startswith(("data:", "#")) for address in addresses)
    for matrix in DEFAULT_MATRICES:
        yield f"report.html has the spectra of {matrix}", f"epoch-{EPOCHS:04}-test-{matrix}-" in page
    yield "there are no unfinished files", not [path for path in folder.rglob(".*") if path.suffix != ".lock"]


def each_part(demo: Demo) -> Iterator[Check]:
    """The class structure, at the end on the training set."""
    found, whole = demo.structure, demo.spectra["end", "train", "GaussNewton"]
    error = np.hypot(whole.trace_standard_error, np.linalg.norm(found.trace_errors))
    yield (
        "class structure: the traces of the parts of G sum to that of G within three standard errors",
        (abs(found.traces.sum() - whole.trace) <= 3 * error),
    )
    yield (
        "class structure: its outliers of Hess are those of the spectrum",
        (np.allclose(found.outliers, demo.spectra["end", "train", "Hessian"].outliers, rtol=1e-4)),
    )
    yield (
        "class structure: the outliers lie in the span of the means",
        (found.outliers.size > 0 and bool((found.outlier_in_means > 0.8).all())),
    )
    _, _, off = found.predicted(part="sum")
    yield f"class structure: the means predict the outliers ({off.max():.0%} off)", bool((off < 0.5).all())


def checks(folder: Path) -> Iterator[Check]:
    """All checks, in the order in which a fault in one explains those in the next."""
    demo = read_demo(folder)
    yield from each_file(folder, demo)
    yield from each_spectrum(demo)
    yield from each_sum(demo)
    yield from each_part(demo)


def main() -> int:
    """Print every check that fails, and how many passed and failed."""
    if len(sys.argv) != 2:
        print(__doc__)
        return 2
    folder = Path(sys.argv[1])
    passed, failed = 0, 0
    try:
        for name, right in checks(folder):
            passed, failed = passed + bool(right), failed + (not right)
            if not right:
                print(f"FAILED {name}")
    except (OSError, ValueError, KeyError) as error:
        print(f"FAILED {type(error).__name__}: {error}")
        failed += 1
    print(f"{passed} passed, {failed} failed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
