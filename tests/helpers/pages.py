"""Pages written in Markdown: their Python blocks, links and headings.

A block of Python is run unless it contains `...`. One that begins with a comment such as `# name.py` is a script, to be
saved under that name and run by itself.
"""

import re
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGES = sorted([ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").rglob("*.md")])

FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
SCRIPT = re.compile(r"# (\w+\.py)\n")
LINK = re.compile(r"\]\(([^)\s]+)\)")
HEADING = re.compile(r"^#+ (.+)$", re.MULTILINE)


@dataclass(frozen=True)
class Block:
    """A block of Python, the line of the page that it begins at, and the file that it is to be saved as."""

    code: str
    line: int
    script: str | None


def name_of(page):
    """Path of a page in the repository, for the names of tests."""
    return str(page.relative_to(ROOT))


def blocks(page):
    """Blocks of Python of a page that are run or saved, in order."""
    text = page.read_text()
    found = []
    for match in FENCE.finditer(text):
        language, code = match.groups()
        if language == "python" and "..." not in code:
            script = SCRIPT.match(code)
            found.append(Block(code, text.count("\n", 0, match.start(2)), script and script[1]))
    return found


def links(page):
    """Targets of links and pictures of a page that are in the repository."""
    return [target for target in LINK.findall(prose(page)) if not re.match(r"[a-z]+:", target)]


def prose(page):
    """A page without its blocks of code."""
    return FENCE.sub("", page.read_text())


def anchors(page):
    """Names of the headings of a page, as GitHub gives them to links."""
    titles = (re.sub(r"\[(.*?)\]\(.*?\)", r"\1", title) for title in HEADING.findall(prose(page)))
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}
