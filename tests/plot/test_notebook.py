"""Figures show themselves in a notebook without a magic command, and open in a script by `plt.show()`."""

import base64
import os
import subprocess
import sys

import nbformat
import pytest
from made_spectra import OUTLIERS, make_spectrum
from nbclient import NotebookClient

SPECTRUM = """
import hesspec
spectrum = hesspec.load({path!r})
"""


@pytest.fixture
def path(tmp_path):
    file = tmp_path / "spectrum.nc"
    make_spectrum(OUTLIERS, matrix="Hessian").save(file)
    return str(file)


@pytest.fixture
def source(monkeypatch):
    """Kernels and scripts import the package that is tested here."""
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(entry for entry in sys.path if entry))
    monkeypatch.setenv("PYDEVD_DISABLE_FILE_VALIDATION", "1")


@pytest.mark.filterwarnings("default")  # those of Jupyter's own packages
def test_a_fresh_kernel_shows_each_figure_once_and_results_as_tables(path, source, tmp_path, monkeypatch):
    monkeypatch.setenv("JUPYTER_PLATFORM_DIRS", "1")
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    cells = [
        SPECTRUM.format(path=path),
        "spectrum.plot()",
        "spectrum",
        "import matplotlib.pyplot as plt\nspectrum.plot('scree')",
        "%matplotlib inline\nspectrum.plot('cdf', width=3.25)",
    ]
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in cells])
    notebook.metadata["kernelspec"] = {"name": "python3", "display_name": "python3", "language": "python"}
    NotebookClient(notebook, timeout=120, kernel_name="python3").execute()
    outputs = [cell.outputs for cell in notebook.cells]
    for index in (1, 3, 4):
        pictures = [output.data["image/png"] for output in outputs[index] if "image/png" in output.get("data", {})]
        assert len(pictures) == 1, (index, outputs[index])
        assert base64.b64decode(pictures[0]).startswith(b"\x89PNG")
    (table,) = outputs[2]
    assert "<table>" in table.data["text/html"]
    assert "10.0000" in table.data["text/html"]


BACKEND = """
from matplotlib.backend_bases import FigureManagerBase
from matplotlib.backends.backend_agg import FigureCanvasAgg


class FigureManager(FigureManagerBase):
    @classmethod
    def pyplot_show(cls, *, block=None):
        from matplotlib import pyplot
        print("shown:", len(pyplot.get_fignums()))


class FigureCanvas(FigureCanvasAgg):
    manager_class = FigureManager
"""

SCRIPT = """
import hesspec
spectrum = hesspec.load({path!r})
spectrum.plot()  # before pyplot is there: left alone
import matplotlib.pyplot as plt
spectrum.plot("scree")
spectrum.plot("log")
plt.show()
"""


@pytest.mark.parametrize(("backend", "expected"), [("module://windows", "shown: 2"), ("agg", "")])
def test_a_script_shows_its_figures_where_there_are_windows(path, source, tmp_path, monkeypatch, backend, expected):
    (tmp_path / "windows.py").write_text(BACKEND, encoding="utf-8")
    (tmp_path / "script.py").write_text(SCRIPT.format(path=path), encoding="utf-8")
    monkeypatch.setenv("MPLBACKEND", backend)
    done = subprocess.run(  # noqa: S603 - this interpreter
        [sys.executable, tmp_path / "script.py"], capture_output=True, text=True, check=False, timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == expected
