"""Self-contained interactive HTML pages: of the spectra in a folder, and of a comparison."""

from hesspec.report.comparison_page import write_comparison
from hesspec.report.page import write_report

__all__ = ["write_comparison", "write_report"]
