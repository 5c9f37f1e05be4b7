"""Figures of the gallery: hesspec's are values of a block, as in a notebook, and unknown to pyplot."""

from matplotlib import pyplot as plt
from matplotlib.figure import Figure
from sphinx_gallery.scrapers import figure_rst

# Where sphinx-gallery keeps the value of the last expression of a block.
VALUE = "___"
DPI = 110


def save_figure(_block, values, settings):
    """Save the value of a block if it is a figure; return the lines that show it."""
    found = values["example_globals"].pop(VALUE, None)
    if not isinstance(found, Figure) or plt.fignum_exists(getattr(found, "number", -1)):
        return ""
    path = next(values["image_path_iterator"])
    found.savefig(path, dpi=DPI)
    return figure_rst([path], settings["src_dir"])


def _get_sg_image_scraper():
    """What sphinx-gallery asks a module for."""
    return save_figure
