"""A spectrum and a class structure in files, and a limit on what reading a file may take."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from hesspec.applications.class_structure.record import ClassStructure
from hesspec.spectra.spectrum import Spectrum

# Of the process, beyond what it has before; and its processor time for all files.
ROOM, SECONDS = 1 << 28, 20

READ = """
import resource, sys
import hesspec
read = getattr(hesspec, sys.argv[1])
read(sys.argv[2])  # with it, all that reading needs is imported
size = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (size + {room}, size + {room}))
used = sum(resource.getrusage(resource.RUSAGE_SELF)[:2])
resource.setrlimit(resource.RLIMIT_CPU, (int(used) + {seconds}, int(used) + {seconds}))
for path in sys.argv[3:]:
    try:
        read(path)
    except ValueError as error:
        print(error)
    else:
        print("read")
"""


def make_spectrum(resolved: int = 3, bulk: int = 12, **attributes: object) -> Spectrum:
    """A small spectrum, of one probe, with numbers of which no two are the same."""
    p = 300
    values = 5.0 + np.arange(resolved)[::-1]
    nodes = np.linspace(-0.1, 0.2, bulk)
    weights = np.linspace(1, 2, bulk)
    count = resolved + bulk
    return Spectrum(
        dimension=p,
        eigenvalues=values,
        error_bounds=np.linspace(1e-7, 2e-7, resolved),
        eigenvalue_weights=np.full(resolved, 1 / p),
        bulk_nodes=nodes,
        bulk_weights=weights / weights.sum() * (1 - resolved / p),
        bulk_probe=np.zeros(bulk, np.int64),
        ritz_values=np.concatenate([values, nodes]),
        ritz_weights=np.linspace(1, 3, count) / np.linspace(1, 3, count).sum(),
        ritz_bounds=np.linspace(1e-8, 1e-3, count),
        ritz_probe=np.zeros(count, np.int64),
        norm=float(values.max(initial=0.2)),
        rounding=1e-9,
        probes=1,
        steps=count,
        matvecs=count,
        exact=False,
        stopped="all steps done",
        attributes={"matrix": "Hessian", "split": "train", **attributes},
        eigenvector_sketches=np.arange(4 * resolved, dtype=np.float32).reshape(resolved, 4),
    )


def make_structure() -> ClassStructure:
    """A small class structure, in which some fields are empty."""
    return ClassStructure(
        dimension=300,
        classes=2,
        weights=np.array([[0.3, 0.2], [0.1, 0.4]]),
        gram=np.array([[2.0, 0.5], [0.5, 1.0]]),
        gram_true=np.array([0, 1]),
        gram_other=np.array([-1, -1]),
        class_eigenvalues=np.array([1.5, 0.25]),
        same_eigenvalues=np.array([0.75, 0.125]),
        outlier_matrix=np.array(["Hessian", "GaussNewton"]),
        outliers=np.array([3.0, 2.0]),
        outlier_bounds=np.array([1e-6, 2e-6]),
        outlier_shares=np.arange(10.0).reshape(2, 5),
        outlier_in_class=np.array([0.9, 0.8]),
        outlier_in_means=np.array([0.95, np.nan]),
        outlier_vector_errors=np.array([1e-5, 1.0]),
        attributes={"matrix": "ClassStructure"},
    )


@pytest.fixture(scope="session")
def spectrum() -> Callable[..., Spectrum]:
    return make_spectrum


@pytest.fixture(scope="session")
def structure() -> ClassStructure:
    return make_structure()


@pytest.fixture
def read_within_limits(tmp_path: Path, structure: ClassStructure) -> Callable[..., list[str]]:
    """Function that reads files in a process with limits of memory and time: what the error of each says."""

    def read(*paths: Path, reader: str = "load") -> list[str]:
        good = tmp_path / "good.nc"
        (make_spectrum() if reader == "load" else structure).save(good)
        done = subprocess.run(  # noqa: S603 - our own program
            [sys.executable, "-c", READ.format(room=ROOM, seconds=SECONDS), reader, good, *paths],
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr[-2000:]
        return done.stdout.splitlines()

    return read
