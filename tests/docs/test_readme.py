"""README as a newcomer meets it: short, with a snippet that runs in an empty folder; and how to cite hesspec."""

import os
import subprocess
import sys
import tomllib

import yaml
from pages import ROOT, blocks

MOST_WORDS = 700

README = ROOT / "README.md"


def test_readme_is_short():
    assert len(README.read_text().split()) <= MOST_WORDS


def test_snippet_runs_as_pasted_into_an_empty_folder(tmp_path):
    (snippet,) = blocks(README)
    # matplotlib's default, which opens no window on a machine without a screen.
    environment = {**os.environ, "MPLBACKEND": "agg"}
    done = subprocess.run(  # noqa: S603 - this very Python
        [sys.executable, "-W", "error", "-c", snippet.code],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "outliers" in done.stdout
    assert sorted(path.name for path in tmp_path.iterdir()) == ["hessian.nc", "hessian.png"]


def test_citation_agrees_with_the_package():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert citation["version"] == project["version"]
    assert citation["license"] == project["license"]
    assert citation["authors"] == project["authors"]
    assert citation["keywords"] == project["keywords"]
