"""Documentation pages: their Python runs, their links lead somewhere, and what they list is what there is."""

import os
import re
import subprocess
import sys
from dataclasses import fields
from importlib import import_module

import pytest
import torch
from pages import PAGES, ROOT, anchors, blocks, links, name_of

import hesspec
from hesspec.spectra.record import KINDS

RUNNABLE = [page for page in PAGES if page.name != "README.md" and any(not block.script for block in blocks(page))]


# These measure a network several times.
LONG = {"laplace.md", "edge-of-stability.md", "class-structure.md", "fast-gauss-newton.md"}


@pytest.mark.parametrize(
    "page",
    [pytest.param(page, marks=[pytest.mark.long] * (page.name in LONG)) for page in RUNNABLE],
    ids=map(name_of, RUNNABLE),
)
def test_python_of_a_page_runs_from_top_to_bottom(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = {"__name__": "__main__"}
    for block in blocks(page):
        if not block.script:
            # Lines are those of the page, so that a traceback leads there.
            code = "\n" * block.line + block.code
            exec(compile(code, str(page), "exec"), names)  # noqa: S102 - of this very repository


@pytest.mark.long
def test_script_for_two_processes_runs(tmp_path):
    (script,) = (block for block in blocks(ROOT / "docs/guide/many-processes.md") if block.script)
    (tmp_path / script.script).write_text(script.code)
    done = subprocess.run(  # noqa: S603 - this very Python
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", script.script],
        cwd=tmp_path,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert hesspec.load(tmp_path / "hessian.nc").attributes["ranks"] == 2


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links_lead_somewhere(page):
    for target in links(page):
        path, _, heading = target.partition("#")
        other = (page.parent / path).resolve() if path else page
        assert other.exists(), target
        assert not heading or heading in anchors(other), target


def test_every_page_is_linked_from_the_index():
    index = ROOT / "docs/index.md"
    linked = {(index.parent / target.partition("#")[0]).resolve() for target in links(index)}
    assert set((ROOT / "docs").rglob("*.md")) - linked == {index}


def test_file_format_lists_all_fields_and_attributes():
    text = (ROOT / "docs/reference/file-format.md").read_text()
    listed = set(re.findall(r"`(\w+)`", text))
    kinds = [
        getattr(import_module(module), name) for module, _, name in (kind.rpartition(".") for kind in KINDS.values())
    ]
    assert {kind.KIND for kind in kinds} <= set(re.findall(r"^\| ([^|`]+) \| `hesspec", text, re.MULTILINE))
    results = [name for kind in kinds for name in (kind.FORMAT_ATTRIBUTE, *(field.name for field in fields(kind)))]
    data = [(torch.randn(4, 3), torch.tensor([0, 1, 0, 1]))]
    hessian = hesspec.Hessian(torch.nn.Linear(3, 2), torch.nn.CrossEntropyLoss(), data)
    spectrum = hesspec.spectrum(hessian)
    assert {*results, *spectrum.attributes, *spectrum.to_dataset().attrs} <= listed


def test_files_that_contributing_names_exist():
    text = (ROOT / "CONTRIBUTING.md").read_text()
    named = {path for path in re.findall(r"`([\w/]+(?:/|\.(?:html\.j2|js|md|py|toml)))`", text) if "NAME" not in path}
    assert len(named) > 60
    places = (ROOT, ROOT / "src/hesspec")
    assert {path for path in named if not any((place / path).exists() for place in places)} == set()


def test_tests_that_pages_name_exist():
    named = {name for page in PAGES for name in re.findall(r"`([\w/]+\.py::\w+)`", page.read_text(encoding="utf-8"))}
    assert len(named) > 60
    missing = set()
    for name in named:
        path, _, function = name.partition("::")
        file = ROOT / "tests" / path
        if not file.is_file() or f"\ndef {function}(" not in file.read_text(encoding="utf-8"):
            missing.add(name)
    assert missing == set()
