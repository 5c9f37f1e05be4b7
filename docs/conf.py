"""The documentation site: `make docs` builds it without a network, and every warning is an error.

The sources are the repository's own pages, so that they read well on GitHub too: the root of the source tree is the
root of the repository, `docs/site/` and `docs/home.rst` have the navigation, and everything else is Markdown.
"""

import sys
from importlib.metadata import version as installed_version
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent / "_extensions"))

project = "hesspec"
author = "The hesspec developers"
copyright = "The hesspec developers"  # noqa: A001 - the name that Sphinx reads
release = installed_version("hesspec")
version = release

# The first two are in docs/_extensions/.
extensions = [
    "mathml",
    "docstrings",
    "myst_parser",
    "numpydoc",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx_copybutton",
    "sphinx_gallery.gen_gallery",
]
root_doc = "docs/home"
include_patterns = ["docs/**", "CHANGELOG.md", "CODE_OF_CONDUCT.md", "CONTRIBUTING.md", "benchmarks/README.md"]
# gallery/ is read by sphinx-gallery, which writes auto_gallery/; the others are code or what was built.
exclude_patterns = ["docs/_*", "docs/examples", "docs/gallery"]
# Absolute, as some are looked for beside this file and some at the root.
templates_path = [str(Path(__file__).parent / "_templates")]

# Single backticks in docstrings are links where they name something public, and code elsewhere.
default_role = "autolink"
autosummary_generate = True
autosummary_ignore_module_all = False
# Types are in the docstrings, where numpydoc reads them.
autodoc_typehints = "none"
autodoc_member_order = "bysource"
numpydoc_show_class_members = False
numpydoc_class_members_toctree = False

myst_enable_extensions = ["dollarmath"]
# Anchors as GitHub gives them to headings.
myst_heading_anchors = 4
# Generated tables have small headings below large ones, which GitHub and browsers take as they are.
suppress_warnings = ["myst.header"]

html_theme = "pydata_sphinx_theme"
html_title = f"hesspec {release}"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_math_renderer = "mathml"
html_show_sourcelink = False
html_copy_source = False
# The home page is in docs/; the root of the site leads there.
html_additional_pages = {"index": "redirect.html"}
html_theme_options = {
    "header_links_before_dropdown": 7,
    "navbar_align": "left",
    "navigation_with_keys": False,
    "show_toc_level": 2,
    "footer_start": ["copyright"],
    "footer_end": ["sphinx-version"],
}
html_sidebars = {"docs/home": [], "CHANGELOG": []}

copybutton_prompt_text = r">>> |\.\.\. |\$ "
copybutton_prompt_is_regexp = True
copybutton_only_copy_prompt_lines = False

sphinx_gallery_conf = {
    "examples_dirs": ["docs/gallery"],
    "gallery_dirs": ["docs/auto_gallery"],
    "filename_pattern": r"docs/gallery/",
    "within_subsection_order": "figures.GalleryOrder",
    # A page of the gallery is a notebook that opens by itself.
    "first_notebook_cell": '%pip install --quiet "hesspec[report,study]"\n%matplotlib inline',
    "matplotlib_animations": False,
    "remove_config_comments": True,
    "show_memory": False,
    "min_reported_time": 1,
    "image_scrapers": ("matplotlib", "figures"),
    "capture_repr": ("_repr_html_",),
    "abort_on_example_error": True,
    "download_all_examples": True,
    "write_computation_times": True,
}


def setup(_app):
    """Write the reference before pages are looked for."""
    import public_names  # noqa: PLC0415 - it imports PyTorch, which linters of this file need not

    public_names.write(Path(__file__).parent / "reference" / "api.rst")
