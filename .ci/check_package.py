"""Install the wheel and the sdist of a folder into empty folders, and do with each what a user does first.

    python .ci/check_package.py dist

What is installed is hesspec alone, without its dependencies: these are the ones of this Python, so that no network is
needed. Python runs isolated from this repository and from the installed hesspec, and the extras are hidden from it:
what runs is the package with what it declares that its core needs. That the declared versions can be installed is not
checked here.
"""

import subprocess
import sys
import tarfile
import tempfile
import tomllib
import zipfile
from pathlib import Path

# Modules of the extras. Those of jinja2 and markupsafe are dependencies of PyTorch too.
EXTRAS = ("plotly", "pydantic", "ray", "sklearn", "transformers", "typer", "yaml")
# What a source distribution needs beyond the package, and what none of them may have.
WANTED = ("pyproject.toml", "README.md", "LICENSE", "src/hesspec/py.typed", "src/hesspec/__init__.py")

FIRST = """
import sys

# The installed hesspec is looked for first; the rest of this Python's packages are behind it.
sys.path[:0] = [{folder!r}]
sys.path += {packages!r}
sys.modules.update(dict.fromkeys({extras!r}))
import hesspec
assert hesspec.__file__.startswith({folder!r}), hesspec.__file__
assert hesspec.__version__ == {version!r}, hesspec.__version__

import torch
torch.manual_seed(0)
model = torch.nn.Sequential(torch.nn.Linear(6, 8), torch.nn.Tanh(), torch.nn.Linear(8, 3))
hessian = hesspec.Hessian(model, torch.nn.CrossEntropyLoss(), [(torch.randn(40, 6), torch.randint(3, (40,)))])
spectrum = hesspec.spectrum(hessian, steps=16)
spectrum.save("hessian.nc")
assert (hesspec.load("hessian.nc").nodes == spectrum.nodes).all()
spectrum.plot().savefig("hessian.png")
assert "Hessian" in str(spectrum)
for module, extra in (("study", "study"), ("report", "report")):
    try:
        getattr(hesspec, module)
    except ModuleNotFoundError as error:
        assert f"pip install 'hesspec[{{extra}}]'" in str(error), error
    else:
        raise AssertionError(f"hesspec.{{module}} was imported without its extra")
"""


def names_of(path: Path) -> set[str]:
    """Names of the files in a wheel or an sdist, without the folder of the latter."""
    if path.suffix == ".whl":
        with zipfile.ZipFile(path) as archive:
            return {f"src/{name}" for name in archive.namelist()}
    with tarfile.open(path) as archive:
        return {name.partition("/")[2] for name in archive.getnames()}


def check(path: Path, version: str) -> None:
    """Install one of them and run what a user does first."""
    names = names_of(path)
    wanted = WANTED[3:] if path.suffix == ".whl" else WANTED
    assert not set(wanted) - names, f"{path.name} lacks {set(wanted) - names}"
    waste = {name for name in names if "__pycache__" in name or name.startswith(("docs/_build", "docs/auto_gallery"))}
    assert not waste, f"{path.name} contains {sorted(waste)[:3]}"
    with tempfile.TemporaryDirectory() as name:
        folder, work = Path(name) / "installed", Path(name) / "work"
        work.mkdir()
        pip = [
            sys.executable,
            "-m",
            "pip",
            "install",
            "--quiet",
            "--disable-pip-version-check",
            "--no-index",
            "--no-deps",
        ]
        subprocess.run([*pip, "--no-build-isolation", "--target", str(folder), str(path)], check=True)
        packages = [entry for entry in sys.path if entry.endswith(("site-packages", "dist-packages"))]
        code = FIRST.format(extras=EXTRAS, folder=str(folder), packages=packages, version=version)
        # -I ignores the environment and the current folder, -S the packages with the links of editable installations.
        subprocess.run([sys.executable, "-I", "-S", "-W", "error", "-c", code], check=True, cwd=work)
    print(f"{path.name}: {len(names)} files, {path.stat().st_size / 1e6:.1f} MB, installed and used")


def main(folder: Path) -> None:
    """Check the wheel and the sdist of a folder."""
    version = tomllib.loads(Path("pyproject.toml").read_text())["project"]["version"]
    wheels, sources = sorted(folder.glob("*.whl")), sorted(folder.glob("*.tar.gz"))
    assert len(wheels) == len(sources) == 1, f"{folder} has {len(wheels)} wheels and {len(sources)} sdists"
    for path in (*wheels, *sources):
        check(path, version)


if __name__ == "__main__":
    main(Path(sys.argv[1]).resolve())
