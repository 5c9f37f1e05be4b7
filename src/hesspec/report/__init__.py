"""Self-contained interactive HTML page of the spectra in a folder."""

from hesspec.report.page import write_report

__all__ = ["write_report"]
