"""Mathematics as MathML, which browsers draw by themselves: without a script, without a network, in any colour scheme.

docutils has the converter; Sphinx's own ways need LaTeX, or a script from another site.
"""

import re

from docutils import nodes
from docutils.utils.math import MathError
from docutils.utils.math.latex2mathml import tex2mathml
from sphinx.errors import ExtensionError
from sphinx.util.math import get_node_equation_number
from sphinx.writers.html5 import HTML5Translator

# Commands that docutils does not know, as ones that it does: brackets of given sizes as brackets that fit.
KNOWN = ((r"\\[bB]igg?l?(?=[(\[])", r"\\left"), (r"\\[bB]igg?r?(?=[)\]])", r"\\right"), (r"\\[td]frac", r"\\frac"))


def convert(node, *, block):
    """Return the MathML of a node."""
    text = node.astext()
    for command, known in KNOWN:
        text = re.sub(command, known, text)
    try:
        return tex2mathml(text, as_block=block)
    except MathError as fault:
        raise ExtensionError(
            f"{node.source}:{node.line}: the formula {node.astext()!r} is not understood: {fault}"
        ) from fault


def visit_inline(self: HTML5Translator, node: nodes.math):
    """Write a formula within a line."""
    self.body.append(convert(node, block=False))
    raise nodes.SkipNode


def visit_block(self: HTML5Translator, node: nodes.math_block):
    """Write a formula of its own line, with its number if it has one."""
    number = f'<span class="eqno">({get_node_equation_number(self, node)})</span>' if node["number"] else ""
    self.body.append(f'<div class="math">{number}{convert(node, block=True)}</div>')
    raise nodes.SkipNode


def setup(app):
    """Register the renderer."""
    app.add_html_math_renderer("mathml", inline_renderers=(visit_inline, None), block_renderers=(visit_block, None))
    return {"parallel_read_safe": True, "parallel_write_safe": True}
