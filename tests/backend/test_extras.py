"""What the core needs: without the extras it measures, saves and draws, and what is missing is named."""

import subprocess
import sys

import pytest

from hesspec.backend.extras import require

# jinja2, markupsafe and packaging are dependencies of PyTorch as well.
HIDE = """
import sys

for name in ("plotly", "pydantic", "ray", "sklearn", "transformers", "typer", "yaml"):
    sys.modules[name] = None
"""

CORE = """
import hesspec
import torch

torch.manual_seed(0)
model = torch.nn.Sequential(torch.nn.Linear(4, 5), torch.nn.Tanh(), torch.nn.Linear(5, 3))
data = [(torch.randn(30, 4), torch.arange(30) % 3)]
loss_fn = torch.nn.CrossEntropyLoss()
hessian = hesspec.Hessian(model, loss_fn, data)
spectrum = hesspec.spectrum(hessian, steps=12)
spectrum.save("hessian.nc")
spectrum.plot().savefig("hessian.png")
assert (hesspec.load("hessian.nc").nodes == spectrum.nodes).all()
pairs = hesspec.eigenpairs(hessian, count=2, steps=12)
hesspec.loss_along(hessian, pairs, points=3)
# Applications are part of the core.
hesspec.laplace, hesspec.noise, hesspec.optim, hesspec.stability
for name in hesspec.__all__:
    getattr(hesspec, name)
for part in ("study", "report"):
    try:
        getattr(hesspec, part)
    except ModuleNotFoundError as error:
        print(error)
"""


def test_the_core_works_without_the_extras_and_names_those_of_other_parts(tmp_path):
    done = subprocess.run(  # noqa: S603 - this very Python
        [sys.executable, "-c", HIDE + CORE], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    study, report = done.stdout.splitlines()
    assert study == (
        "hesspec.study needs pydantic and yaml and sklearn, which are not installed: pip install 'hesspec[study]'."
    )
    assert report.startswith("hesspec.report needs ")
    assert report.endswith("pip install 'hesspec[report]'.")


def test_the_command_names_its_extra(tmp_path):
    command = HIDE + "from hesspec.__main__ import main\nmain()\n"
    done = subprocess.run(  # noqa: S603 - this very Python
        [sys.executable, "-c", command], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    sentence = "The command hesspec needs typer, which is not installed: pip install 'hesspec[study]'."
    assert done.stderr == f"Error: {sentence}\n"


def test_what_is_installed_is_not_reported():
    require("This", "hesspec[study]", "numpy", "torch")


def test_one_missing_module_is_named():
    with pytest.raises(ModuleNotFoundError, match="This needs no_such_module, which is not installed") as raised:
        require("This", "hesspec[study]", "numpy", "no_such_module")
    assert raised.value.name == "no_such_module"
