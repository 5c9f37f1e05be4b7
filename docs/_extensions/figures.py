"""Figures of the gallery: hesspec's are values of a block, as in a notebook, and unknown to pyplot."""

from matplotlib import pyplot as plt
from matplotlib.figure import Figure
from sphinx_gallery.scrapers import figure_rst

# Where sphinx-gallery keeps the value of the last expression of a block.
VALUE = "___"
DPI = 110


def save_figure(_block, values, settings):
    """Save the value of a block if it is a figure; return the lines that show it."""
    found = values["example_globals"].get(VALUE)
    if not isinstance(found, Figure) or plt.fignum_exists(getattr(found, "number", -1)):
        return ""
    # The next block may have no value, and would show this one again.
    values["example_globals"][VALUE] = None
    path = next(values["image_path_iterator"])
    found.savefig(path, dpi=DPI)
    return figure_rst([path], settings["src_dir"])


def _get_sg_image_scraper():
    """What sphinx-gallery asks a module for."""
    return save_figure


# What a newcomer reads first; other scripts follow by their names.
FIRST = (
    "first_spectrum.py",
    "hess_g_h.py",
    "scree_and_cdf.py",
    "class_structure.py",
    "train_and_test.py",
    "through_training.py",
    "sample_size.py",
    "per_layer.py",
    "two_optimisers.py",
    "loss_along_eigenvectors.py",
    "loss_plane.py",
    "own_loop.py",
    "own_matrix.py",
    "language_model.py",
)


class GalleryOrder:
    """Order of the gallery's scripts, as sphinx-gallery asks for it."""

    def __init__(self, folder):
        self.folder = folder

    def __call__(self, name):
        """Key by which a script is sorted."""
        return (FIRST.index(name) if name in FIRST else len(FIRST)), name
