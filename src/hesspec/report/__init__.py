"""Self-contained interactive HTML pages: of the spectra in a folder, and of a comparison."""
# ruff: noqa: E402 - what is missing is named before it is imported

from hesspec.backend.extras import require

require("hesspec.report", "hesspec[report]", "jinja2", "markupsafe", "plotly", "yaml", "sklearn")

from hesspec.report.comparison_page import write_comparison
from hesspec.report.page import write_report

__all__ = ["write_comparison", "write_report"]
