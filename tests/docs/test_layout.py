"""The layout of the source: files and folders that a reader takes in at a glance, and names that scripts import."""

import ast
from importlib import import_module

from pages import ROOT

SOURCE = ROOT / "src/hesspec"
MOST_LINES = 500
MOST_ENTRIES = 16


def test_no_source_file_is_long():
    paths = [path for path in SOURCE.rglob("*") if path.suffix in {".py", ".js", ".css", ".j2"}]
    lines = {path.relative_to(SOURCE).as_posix(): len(path.read_text(encoding="utf-8").splitlines()) for path in paths}
    assert len(lines) > 200
    assert {path: count for path, count in lines.items() if count > MOST_LINES} == {}


def test_the_top_of_the_package_has_few_entries():
    entries = [path.name for path in SOURCE.iterdir() if path.name != "__pycache__"]
    assert len(entries) <= MOST_ENTRIES


def exists(module, name):
    """Whether a module of the package has a name; so it is taken where the module needs a library that is missing."""
    try:
        return hasattr(import_module(module), name)
    except ModuleNotFoundError as error:
        return not str(error.name).startswith("hesspec")


def test_names_that_scripts_import_exist():
    """No test runs these scripts as a whole: they take minutes, or need other machines."""
    paths = [path for folder in ("docs", "benchmarks", ".ci") for path in (ROOT / folder).rglob("*.py")]
    missing, checked = [], 0
    for path in paths:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and str(node.module).partition(".")[0] == "hesspec":
                checked += len(node.names)
                names = [alias.name for alias in node.names if not exists(node.module, alias.name)]
                missing += [f"{path.relative_to(ROOT)}: {node.module}.{name}" for name in names]
    assert checked > 100
    assert missing == []
