"""The examples of integrations run, and are short."""

import ast
import runpy
from pathlib import Path

import pytest

import hesspec

EXAMPLES = Path(__file__).parents[2] / "docs/examples"
MOST_LINES = 20
NAMES = ("lightning_callback", "trainer_callback", "plain_loop", "accelerate_loop")


def lines(path):
    """Lines of code, without the docstrings and the imports."""
    tree = ast.parse(path.read_text())
    code = set()
    for node in ast.walk(tree):
        text = isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
        if isinstance(node, ast.stmt) and not text and not isinstance(node, ast.Import | ast.ImportFrom):
            code |= {node.lineno} if hasattr(node, "body") else set(range(node.lineno, node.end_lineno + 1))
    return len(code)


@pytest.mark.parametrize("name", NAMES)
def test_examples_are_short(name):
    assert lines(EXAMPLES / f"{name}.py") <= MOST_LINES


@pytest.mark.long
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", NAMES)
def test_examples_run(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    runpy.run_path(str(EXAMPLES / f"{name}.py"), run_name="__main__")
    assert len(hesspec.study.open("spectra").epoch) >= 4
    assert list(tmp_path.rglob("events.out.tfevents.*"))
