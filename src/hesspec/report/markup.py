"""Self-contained HTML pages: files of this package, and the policy of a page that runs only its own scripts."""

from __future__ import annotations

import base64
import gzip
import hashlib
import json
from collections.abc import Sequence
from importlib.resources import files
from typing import Any

import jinja2
from markupsafe import Markup
from plotly.offline import get_plotlyjs

__all__ = ["rendered"]


def rendered(template: str, modules: Sequence[str], data: object, **values: Any) -> str:
    """Fill a template with values, data for its script, styles, and the library that draws.

    Parameters
    ----------
    template : str
        Name of the template, which extends `frame.html.j2`.
    modules : sequence of str
        Modules of the page's script, in the order in which they build on one another; they share one scope.
    data : object
        JSON types that the script reads.
    **values
        Values of the template. Texts are escaped.
    """
    environment = jinja2.Environment(
        loader=jinja2.FunctionLoader(_resource),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    plotly, script = (_with_line_ends(text) for text in (get_plotlyjs(), _script(modules)))
    return environment.get_template(template).render(
        values,
        policy=_policy(plotly, script),
        data=_embedded(data),
        css=Markup(_resource("page.css")),  # noqa: S704 - a file of this package
        script=Markup(script),  # noqa: S704 - a file of this package
        plotly=_packed(plotly),
    )


def _script(modules: Sequence[str]) -> str:
    """Return a page's script: its modules in one scope, which nothing outside of it can reach."""
    text = "\n".join(_resource(f"script/{name}.js") for name in modules)
    return f'"use strict";\n(() => {{\n{text}}})();'


def _packed(text: str) -> Markup:
    """Return a script compressed (gzip) as base64, which browsers unpack: 2 MB instead of 5 MB."""
    # Without a time, so that the same spectra give the same page.
    return Markup(base64.b64encode(gzip.compress(text.encode(), mtime=0)).decode())  # noqa: S704 - letters and digits


def _resource(name: str) -> str:
    return files("hesspec.report").joinpath(name).read_text(encoding="utf-8")


def _with_line_ends(text: str) -> str:
    """Normalise line ends as browsers do, so that digests agree."""
    return text.replace("\r\n", "\n").replace("\r", "\n")


def _policy(*scripts: str) -> Markup:
    """Content security policy of a page that runs only these scripts and makes no requests."""
    digests = (base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() for script in scripts)
    allowed = " ".join(f"'sha256-{digest}'" for digest in digests)
    policy = (
        f"default-src 'none'; script-src {allowed}; style-src 'unsafe-inline'; img-src data: blob:; base-uri 'none'; "
        "form-action 'none'"
    )
    return Markup(policy)  # noqa: S704 - made here, of digests


def _embedded(value: object) -> Markup:
    """JSON that is safe inside a script element, whatever text it contains."""
    text = json.dumps(value, allow_nan=False, separators=(",", ":"))
    for character in "<>&":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return Markup(text)  # noqa: S704 - the three characters that HTML reads are escaped
