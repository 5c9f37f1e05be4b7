"""Absolute values in docstrings, such as |lambda|, which are text in Python and would name substitutions in a page."""

import re

# What is code or a formula stays as it is.
QUOTED = re.compile(r"(:math:`[^`]*`|``[^`]*``|`[^`]*`)")


def escape_bars(_app, _what, _name, _thing, _options, lines):
    """Escape vertical bars in prose, in place; formulas end with their indentation, examples with a blank line."""
    formula, example = None, False
    for number, line in enumerate(lines):
        indentation = len(line) - len(line.lstrip())
        if line.strip().startswith(".. math::"):
            formula = indentation
        elif formula is not None and line.strip() and indentation <= formula:
            formula = None
        example = bool(line.strip()) and (example or line.strip().startswith(">>>"))
        if formula is None and not example:
            pieces = QUOTED.split(line)
            pieces[::2] = [re.sub(r"(?<!\\)\|", r"\|", piece) for piece in pieces[::2]]
            lines[number] = "".join(pieces)


def setup(app):
    """Escape before numpydoc reads the sections."""
    app.setup_extension("sphinx.ext.autodoc")
    app.connect("autodoc-process-docstring", escape_bars, priority=100)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
