"""The site, without building it: its reference misses no public name, and its gallery is what its pages promise.

`make docs` builds it, with the gallery, and takes a minute; warnings are errors there.
"""

import ast
import re
import sys
import textwrap
from importlib import import_module

import pytest
import torch
from pages import ROOT

import hesspec

GALLERY = sorted((ROOT / "docs/gallery").glob("*.py"))
TITLE = re.compile(r"\A\n(.+)\n(=+)\n\n\S")


@pytest.fixture(scope="module")
def reference():
    sys.path.insert(0, str(ROOT / "docs/_extensions"))
    modules = set(sys.modules)
    try:
        return import_module("public_names").page()
    finally:
        sys.path.pop(0)
        # The page gives applications the names by which users know them, for Sphinx.
        for name in set(sys.modules) - modules:
            if name == "public_names" or re.fullmatch(r"hesspec\.(language|laplace|noise|optim|stability)", name):
                del sys.modules[name]


@pytest.mark.parametrize(
    "part", ["", "integrations", "language", "laplace", "noise", "optim", "plot", "report", "stability", "study"]
)
def test_the_reference_has_all_public_names(reference, part):
    module = getattr(hesspec, part) if part else hesspec
    listed = set(re.findall(r"^   (\w+)$|``(\w+)``", reference, re.MULTILINE))
    names = {name for pair in listed for name in pair}
    modules = {"language", "laplace", "noise", "optim", "stability"}
    assert set(module.__all__) - modules <= names


def test_the_gallery_is_complete():
    assert len(GALLERY) >= 16


@pytest.mark.parametrize("path", GALLERY, ids=lambda path: path.stem)
def test_a_script_of_the_gallery_has_a_title_and_ends_in_a_figure(path):
    tree = ast.parse(path.read_text(encoding="utf-8"))
    text = ast.get_docstring(tree, clean=False)
    title = TITLE.match(text)
    assert title is not None
    assert len(title[1]) == len(title[2])
    last = ast.unparse(tree.body[-1])
    assert re.search(r"\.?plot\w*\(", last), last


def test_the_code_of_the_first_page_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    text = (ROOT / "docs/home.rst").read_text(encoding="utf-8")
    (code,) = re.findall(r"^\.\. code-block:: python\n\n((?:   .*\n|\n)+)", text, re.MULTILINE)
    torch.manual_seed(0)
    data = [(torch.randn(40, 4), torch.arange(40) % 3)]
    given = {"model": torch.nn.Linear(4, 3), "loss_fn": torch.nn.CrossEntropyLoss(), "data": data}
    exec(textwrap.dedent(code), given)  # noqa: S102 - of this very repository
    assert (tmp_path / "hessian.png").exists()


def in_navigation(part):
    """Pages of a part of the site in the order of its navigation."""
    path = ROOT / f"docs/site/{part}.rst"
    lines = re.findall(r"^   (?:.*<)?([^\s>]+)>?$", path.read_text(encoding="utf-8"), re.MULTILINE)
    return [page.resolve() for line in lines if line[0] != ":" for page in sorted(path.parent.glob(f"{line}.md"))]


def test_every_page_is_in_the_navigation():
    listed = {page for path in (ROOT / "docs/site").glob("*.rst") for page in in_navigation(path.stem)}
    pages = {*(ROOT / "docs").rglob("*.md")} - {
        *(ROOT / "docs/auto_gallery").rglob("*"),
        *(ROOT / "docs/_build").rglob("*"),
    }
    assert pages - listed == set(), "list them in a toctree of docs/site/"


def test_the_index_has_the_parts_of_the_site_in_their_order():
    index = ROOT / "docs/index.md"
    rows = re.findall(r"^\| \[[^]]+\]\(([^)]+)\)", index.read_text(encoding="utf-8"), re.MULTILINE)
    parts = ("start", "how-to", "guides", "theory", "reference", "evidence", "development")
    pages = [page for part in parts for page in in_navigation(part) if page != index]
    assert [(index.parent / row).resolve() for row in rows] == pages
