"""Names of the parts of G and of the spans of class means, in files, tables and figures."""

from typing import Final

__all__ = ["ALL_MEANS", "CLASS_MEANS", "NOTHING", "PARTS", "SHARES"]

PARTS: Final = ("class", "cross", "within", "same")
"""Parts of G in the order of `ClassStructure.traces`: G = G_class + G_cross + G_within + G_same."""

SHARES: Final = (*PARTS, "residual")
"""Terms v^T M v that sum to an eigenvalue, for each part M of G and for H, in the order of
`ClassStructure.outlier_shares`."""

NOTHING: Final = "nothing"
CLASS_MEANS: Final = "class means"
ALL_MEANS: Final = "class and cross-class means"
"""Spans that are projected out, in `ClassStructure.knockout_removed`."""
