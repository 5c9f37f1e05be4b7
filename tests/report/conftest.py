"""Spectra of matrices that resemble a network's, from a small Lanczos run of their own."""

import json

import numpy as np
import pytest
from browsing import ARGUMENTS, AT_FIRST, EXECUTABLE, open_in

from hesspec.applications.class_structure.record import CLASS_MEANS, NOTHING, ClassStructure
from hesspec.report import write_report
from hesspec.spectra.spectrum import Spectrum

STEPS = 40
OUTLIERS = np.geomspace(10.0, 2.0, 10)  # far from the bulk: no rule for outliers would miss them
BULK = 0.2


def lanczos(eigenvalues, steps, rng):
    """Ritz values, quadrature weights and residual bounds of diag(eigenvalues), fully reorthogonalised."""
    basis, diagonal, beside = np.zeros((steps, eigenvalues.size)), np.zeros(steps), np.zeros(steps)
    vector = rng.standard_normal(eigenvalues.size)
    vector /= np.linalg.norm(vector)
    for step in range(steps):
        basis[step] = vector
        image = eigenvalues * vector
        diagonal[step] = vector @ image
        for _ in range(2):
            image -= basis[: step + 1].T @ (basis[: step + 1] @ image)
        beside[step] = np.linalg.norm(image)
        vector = image / beside[step]
    tridiagonal = np.diag(diagonal) + np.diag(beside[:-1], 1) + np.diag(beside[:-1], -1)
    ritz, vectors = np.linalg.eigh(tridiagonal)
    return ritz, vectors[0] ** 2, beside[-1] * np.abs(vectors[-1])


def spectrum_of(eigenvalues, *, reach, seed=0, sketches=None, **attributes):
    """Spectrum of diag(eigenvalues) from one probe; Ritz pairs beyond the reach of the bulk are resolved."""
    p = eigenvalues.size
    ritz, weights, bounds = lanczos(eigenvalues, STEPS, np.random.default_rng(1000 + seed))
    floor = 1e-7 * float(np.abs(eigenvalues).max())
    order = np.argsort(-np.abs(ritz))
    count = int((np.abs(ritz) > reach).sum())
    resolved, bulk = order[:count], np.sort(order[count:])
    return Spectrum(
        dimension=p,
        eigenvalues=ritz[resolved],
        error_bounds=bounds[resolved] + floor,
        eigenvalue_weights=np.full(count, 1 / p),
        bulk_nodes=ritz[bulk],
        bulk_weights=weights[bulk] / weights[bulk].sum() * (1 - count / p),
        bulk_probe=np.zeros(bulk.size, np.int64),
        ritz_values=ritz,
        ritz_weights=weights,
        ritz_bounds=bounds,
        ritz_probe=np.zeros(ritz.size, np.int64),
        norm=float(np.abs(ritz).max()),
        rounding=floor,
        probes=1,
        steps=STEPS,
        matvecs=STEPS,
        exact=False,
        stopped="all steps done",
        attributes=attributes,
        # A row of a unit matrix for each number: eigenvectors of the same number are the same.
        **({} if sketches is None else {"eigenvector_sketches": np.eye(64, dtype=np.float32)[np.asarray(sketches)]}),
    )


def network_like(matrix, *, scale=1.0, outliers=OUTLIERS, p=1500, seed=0):
    """Eigenvalues: outliers far from a heavy-tailed bulk, which is two-sided but for the Gauss-Newton matrix."""
    rng = np.random.default_rng(seed)
    bulk = np.clip(rng.standard_normal(p) ** 3 * 4e-3, -BULK, BULK)
    if matrix == "GaussNewton":
        bulk = np.abs(bulk)
    top = np.empty(0) if matrix == "Residual" else np.asarray(outliers) * (0.98 if matrix == "GaussNewton" else 1.0)
    return scale * np.concatenate([bulk[top.size :], top])


@pytest.fixture(scope="session")
def make_spectrum():
    """Function from a matrix and attributes to a spectrum: `scale`, `outliers` and `p` shape it."""

    def make(matrix="Hessian", *, scale=1.0, outliers=OUTLIERS, p=1500, seed=0, sketches=None, **attributes):
        eigenvalues = network_like(matrix, scale=scale, outliers=outliers, p=p, seed=seed)
        reach = 1.01 * BULK * abs(scale)
        return spectrum_of(eigenvalues, reach=reach, seed=seed, sketches=sketches, matrix=matrix, **attributes)

    return make


@pytest.fixture(scope="session")
def make_structure():
    """Function from attributes to a class structure of three classes."""

    def make(**attributes):
        points = np.random.default_rng(0).standard_normal((12, 5))
        return ClassStructure(
            dimension=1500,
            classes=3,
            weights=np.full((3, 3), 0.1),
            gram=points @ points.T,
            gram_true=np.concatenate([np.arange(3), np.repeat(np.arange(3), 3)]),
            gram_other=np.concatenate([np.full(3, -1), np.tile(np.arange(3), 3)]),
            class_eigenvalues=np.array([9.0, 2.0]),
            same_eigenvalues=np.array([0.2]),
            cross_eigenvalues=np.array([0.5, 0.1]),
            sum_eigenvalues=np.array([9.9, 2.2]),
            traces=np.array([11.0, 0.6, 1.0, 0.2]),
            trace_errors=np.array([0.0, 0.0, 0.1, 0.0]),
            outlier_matrix=np.array(["Hessian", "Hessian", "GaussNewton"]),
            outliers=np.array([10.0, 2.5, 9.9]),
            outlier_bounds=np.full(3, 1e-3),
            outlier_shares=np.array([[9.0, 0.5, 0.3, 0.3, -0.1], [2.0, 0.3, 0.1, 0.1, 0.0], [9.0, 0.5, 0.2, 0.2, 0.0]]),
            outlier_in_class=np.array([0.9, 0.8, 0.9]),
            outlier_in_means=np.array([0.987, np.nan, 0.99]),
            outlier_vector_errors=np.zeros(3),
            knockout_removed=np.array([NOTHING, CLASS_MEANS]),
            knockout_eigenvalues=np.array([10.0, 0.6]),
            knockout_bounds=np.full(2, 1e-3),
            knockout_edges=np.array([[-0.2, 0.3], [-0.2, 0.2]]),
            attributes={
                "split": "train",
                "checkpoint": "end",
                "epoch": 3,
                "network": "net",
                "dataset": "data",
                "samples_per_class": 5,
                **attributes,
            },
        )

    return make


SURROUNDINGS = {
    "network": "VGG11-BN",
    "dataset": "FashionMNIST",
    "samples": 1360,
    "samples_per_class": 136,
    "classes": 10,
    "loss": "CrossEntropyLoss",
    "dtype": "float32",
    "device": "cpu",
    "seconds": 12.5,
    "mode": "linearised",
    "created": "2026-01-02T03:04:05+00:00",
    "hesspec": "0.1.0",
    "torch": "2.11.0",
    "python": "3.12.3",
    "numpy": "2.4.6",
    "threads": 2,
    "machine": "x86_64",
}

EPOCHS = [
    {
        "epoch": epoch,
        "train_loss": 2.3 / (1 + epoch),
        "train_error": 0.9 / (1 + epoch),
        "test_loss": 2.4 / (1 + epoch) + 0.1,
        "test_error": 0.9 / (1 + epoch) + 0.05,
        "learning_rate": 0 if epoch == 0 else 0.1 / 10 ** ((epoch - 1) // 4),
    }
    for epoch in range(13)
]


@pytest.fixture(scope="session")
def study(tmp_path_factory, make_spectrum):
    """A folder with three checkpoints, three matrices and two splits of one run, and its training record."""
    folder = tmp_path_factory.mktemp("study")
    for checkpoint, epoch, scale, count in (
        ("initialisation", 0, 0.1, 3),
        ("middle", 6, 1.5, 10),
        ("end", 12, 1.0, 10),
    ):
        for matrix in ("Hessian", "GaussNewton", "Residual"):
            for split, factor in (("train", 1.0), ("test", 1.3)):
                spectrum = make_spectrum(
                    matrix,
                    scale=scale * factor,
                    outliers=OUTLIERS[:count],
                    seed=epoch,
                    split=split,
                    checkpoint=checkpoint,
                    epoch=epoch,
                    risk=0.5 / (1 + epoch) * factor,
                    **SURROUNDINGS,
                )
                spectrum.save(folder / f"{matrix.lower()}-{split}-{checkpoint}.nc")
    (folder / "training.json").write_text(json.dumps(EPOCHS), encoding="utf-8")
    return folder


SIZES, STUDY_EPOCHS = (10, 19, 37), (0, 2, 20)

STUDY = """\
datasets:
- {name: %(dataset)s}
networks: [%(network)s]
samples_per_class: [10, 19, 37]
seeds: [0]
training: {epochs: 20, learning_rates: [0.003, 0.01]}
measure:
  epochs: [0, 2, end]
  matrices: [Hessian, GaussNewton, Residual]
  splits: [train, test]
"""


@pytest.fixture(scope="session")
def write_study(make_spectrum):
    """Function that writes a folder as `hesspec study` does; `skip(n, epoch, split, matrix)` tells what is missing."""

    def write(
        folder, *, dataset="digits", network="net", skip=lambda *_: False, splits=("train", "test"), **attributes
    ):
        for size in SIZES:
            for rate in (0.003, 0.01):
                run = folder / "runs" / f"data-net-n{size}-seed0-lr{rate}-0123456789"
                run.mkdir(parents=True)
                (run / "training.json").write_text(json.dumps(EPOCHS), encoding="utf-8")
            for epoch in STUDY_EPOCHS:
                for split in splits:
                    for matrix in ("Hessian", "GaussNewton", "Residual"):
                        if skip(size, epoch, split, matrix):
                            continue
                        # The two largest change places between epochs 0 and 2.
                        tracks = [1, 0, *range(2, 10)] if epoch == 0 else range(10)
                        spectrum = make_spectrum(
                            matrix,
                            scale=(1 + epoch) / size,
                            seed=epoch,
                            sketches=None if matrix == "Residual" else tracks,
                            split=split,
                            epoch=epoch,
                            network=network,
                            dataset=dataset,
                            train_samples_per_class=size,
                            samples_per_class=size if split == "train" else 10,
                            training_seed=0,
                            classes=10,
                            risk=0.5,
                            **attributes,
                        )
                        spectrum.save(run / f"epoch-{epoch:04}-{split}-{matrix}-0123456789.nc")
        text = STUDY % {"dataset": json.dumps(dataset), "network": json.dumps(network)}
        (folder / "study.yaml").write_text(text, encoding="utf-8")
        requested = {
            "trainings": 2 * len(SIZES),
            "epochs": [STUDY_EPOCHS[-1]],
            "splits": ["train", "test"],
            "matrices": ["Hessian", "GaussNewton", "Residual"],
            "measured": [[dataset, network, "sgd", "scratch", 0, size, list(STUDY_EPOCHS)] for size in SIZES],
        }
        (folder / "requested.json").write_text(json.dumps(requested), encoding="utf-8")
        return folder

    return write


# Pages in a browser


@pytest.fixture(scope="session")
def browser():
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=EXECUTABLE, args=ARGUMENTS)
        yield browser
        browser.close()


@pytest.fixture
def opened(browser):
    """Function that opens a page of its own, which is closed at the end."""
    pages = []

    def open_page(path, width=1280, **how):
        pages.append(open_in(browser, path, width, **how))
        return pages[-1]

    yield open_page
    for page in pages:
        page.close()


@pytest.fixture(scope="session")
def report(study):
    return write_report(study)


@pytest.fixture(scope="session")
def study_report(tmp_path_factory, write_study):
    """Page of a folder as `hesspec study` writes it."""
    return write_report(write_study(tmp_path_factory.mktemp("studies") / "study", splits=("train",)))


@pytest.fixture(scope="session")
def runs_report(tmp_path_factory, make_spectrum, write_study):
    """Page of a folder with a study and two runs, which only their folders distinguish."""
    parent = tmp_path_factory.mktemp("parent")
    write_study(parent / "study", splits=("train",), skip=lambda size, epoch, *_: size == 10 or epoch == 2)
    for run, scale in (("adam", 1.0), ("sgd", 2.0)):
        for epoch in (0, 20):
            for matrix in ("Hessian", "GaussNewton"):
                spectrum = make_spectrum(matrix, scale=scale, epoch=epoch, split="train", network="net", risk=scale)
                spectrum.save(parent / run / f"epoch-{epoch}-{matrix}.nc")
    return write_report(parent)


@pytest.fixture(scope="session")
def shared(browser):
    """Function that opens a page once for all tests, and brings it back to how it opened."""
    pages = {}

    def page_of(path, width=1280, height=900, scheme="light"):
        key = (path, width, height, scheme)
        if key not in pages:
            pages[key] = open_in(browser, path, width, height, scheme)
        page = pages[key]
        page.evaluate(AT_FIRST)
        page.complaints.clear()
        return page

    yield page_of
    for page in pages.values():
        page.close()
