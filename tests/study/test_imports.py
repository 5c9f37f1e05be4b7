"""Objects of the user's own code, named `module:callable`."""

import importlib
import math
import os
import subprocess
import sys

import pytest
from sweeps import swept

from hesspec.study import load_object
from hesspec.study.imports import code_digest


@pytest.fixture
def own_code(tmp_path, monkeypatch):
    """Give a function that writes a module into a fresh current directory."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    before = set(sys.modules)

    def write(file_name, text):
        path = tmp_path / file_name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)

    yield write
    for name in set(sys.modules) - before:
        del sys.modules[name]


def test_a_module_of_the_current_directory_is_found(own_code):
    own_code("hs_own_a.py", "def lenet():\n    return 'lenet'\n")
    assert load_object("hs_own_a:lenet", "network")() == "lenet"


def test_a_module_in_a_package_is_found(own_code):
    own_code("hs_own_b/__init__.py", "")
    own_code("hs_own_b/nets.py", "class Net:\n    pass\n")
    assert load_object("hs_own_b.nets:Net", "network").__name__ == "Net"


def test_the_module_may_import_its_neighbour_when_it_is_called(own_code):
    own_code("hs_neighbour.py", "VALUE = 3\n")
    own_code("hs_own_c.py", "def make():\n    import hs_neighbour\n    return hs_neighbour.VALUE\n")
    assert load_object("hs_own_c:make", "network")() == 3


@pytest.mark.parametrize("spec", ["lenet", ":lenet", "a:", "a:b:c", "nets.py/x:y", "./nets:y", ""])
def test_another_form_is_refused(spec):
    with pytest.raises(ValueError, match="must be named in the form 'module:callable'"):
        load_object(spec, "network")


def test_a_missing_module_is_named_with_the_directory(own_code, tmp_path):
    with pytest.raises(ValueError, match="no module 'hs_missing' for the network") as caught:
        load_object("hs_missing:lenet", "network")
    assert str(tmp_path) in str(caught.value)


def test_a_missing_module_in_a_package_is_named(own_code):
    own_code("hs_own_d/__init__.py", "")
    with pytest.raises(ValueError, match=r"no module 'hs_own_d.nets'"):
        load_object("hs_own_d.nets:lenet", "network")


def test_a_module_that_fails_to_import_fails_with_its_own_error(own_code):
    own_code("hs_own_e.py", "import hs_not_installed\n")
    with pytest.raises(ModuleNotFoundError, match="hs_not_installed"):
        load_object("hs_own_e:lenet", "network")


def test_the_nearest_name_is_offered(own_code):
    own_code("hs_own_f.py", "def lenet():\n    pass\n")
    with pytest.raises(ValueError, match="has no network 'lennet'; did you mean 'lenet'"):
        load_object("hs_own_f:lennet", "network")


def test_what_is_not_callable_is_refused(own_code):
    own_code("hs_own_g.py", "lenet = {}\n")
    with pytest.raises(ValueError, match="function or a class, but it is an object of type 'dict'"):
        load_object("hs_own_g:lenet", "network")


def test_the_digest_of_code_is_of_a_module_and_of_what_it_imports_of_the_users_own(own_code):
    own_code("hs_digest/__init__.py", "")
    nets = "import torch\nfrom . import parts\nfrom hs_helper import rate\n\ndef net():\n    pass\n"
    own_code("hs_digest/nets.py", nets)
    own_code("hs_digest/parts.py", "WIDTH = 3\n")
    own_code("hs_helper.py", "def rate():\n    import hs_lazy\n")
    own_code("hs_lazy.py", "X = 1\n")
    own_code("hs_other.py", "Y = 1\n")
    first = code_digest("hs_digest.nets:net")

    assert first
    assert code_digest("hs_digest.nets:net") == first
    for file, text in {
        "hs_digest/nets.py": nets.replace("pass", "return 1"),
        "hs_digest/parts.py": "WIDTH = 4\n",
        "hs_helper.py": "def rate():\n    import hs_lazy as lazy\n",
        "hs_lazy.py": "X = 2\n",
    }.items():
        before = code_digest("hs_digest.nets:net")
        own_code(file, text)
        assert code_digest("hs_digest.nets:net") != before
    changed = code_digest("hs_digest.nets:net")
    own_code("hs_other.py", "Y = 2\n")
    own_code("hs_digest/parts.py", "# wider\nWIDTH  =  4\n")
    assert code_digest("hs_digest.nets:net") == changed


@pytest.mark.parametrize("spec", ["torchvision:resnet18", "math:hypot", "hesspec.study:small_cnn", "nowhere:net"])
def test_what_is_installed_or_missing_has_no_digest(spec):
    assert code_digest(spec) == ""


def test_the_current_directory_is_searched_for_the_users_own_modules_and_for_nothing_else(own_code, tmp_path):
    own_code("hs_neighbour_f.py", "VALUE = 3\n")
    own_code("hs_own_h.py", "import hs_neighbour_f\n\ndef make():\n    import sys\n    return list(sys.path)\n")
    before = list(sys.path)
    make = load_object("hs_own_h:make", "network")
    code_digest("hs_own_h:make")

    assert sys.path == before
    assert make()[0] == str(tmp_path)
    assert sys.path == before
    own_code("hs_trap.py", "raise AssertionError('it was run')\n")
    with pytest.raises(ModuleNotFoundError):
        importlib.import_module("hs_trap")


def test_a_failing_import_leaves_the_path_too(own_code):
    own_code("hs_own_i.py", "raise ValueError('mine')\n")
    before = list(sys.path)
    with pytest.raises(ValueError, match="mine"):
        load_object("hs_own_i:make", "network")
    assert sys.path == before


def test_what_is_installed_is_given_as_it_is():
    assert load_object("math:hypot", "function") is math.hypot


WAYS = [["-m", "hesspec"], ["-c", "import sys; del sys.path[0]; from hesspec.cli.app import main; main()"]]


@pytest.mark.parametrize("how", swept(WAYS))
def test_files_with_the_names_of_libraries_are_not_run_by_the_command(own_code, tmp_path, how):
    for name in ("h5netcdf", "h5py", "xarray", "plotly", "jinja2", "safetensors", "sklearn", "yaml", "pydantic", "PIL"):
        own_code(f"{name}.py", f"open({str(tmp_path / 'ran')!r}, 'a').write({name!r})\n")
    own_code(
        "hs_own_j.py",
        "from torch import nn\n\ndef net(classes):\n    return nn.Sequential(nn.Flatten(), nn.Linear(64, classes))\n",
    )
    arguments = ["measure", "hs_own_j:net", "--data", "digits", "--samples-per-class", "1", "--steps", "2"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    for command in (arguments, ["show", "spectra/initialisation-train-Hessian.nc"], ["report", "spectra"]):
        done = subprocess.run(  # noqa: S603 - our own program
            [sys.executable, *how, *command], capture_output=True, text=True, check=False, env=environment
        )
        assert done.returncode == 0, done.stderr
    assert not (tmp_path / "ran").exists()
