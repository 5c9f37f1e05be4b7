"""The layout of the source: files and folders that a reader takes in at a glance."""

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
