"""Coverage of each part of the package by lines and branches, printed; a part below 85% is an error.

Usage: python .ci/check_coverage.py REPORT.json
"""

# ruff: noqa: T201 - what it prints is its result

import json
import sys
from collections import Counter
from pathlib import Path

LEAST = 0.85


def main(report: Path) -> None:
    """Print the coverage of each folder of `src/hesspec`, and that of the files at its top."""
    covered: dict[str, Counter[str]] = {}
    for file, found in json.loads(report.read_text(encoding="utf-8"))["files"].items():
        below = Path(file).parts[Path(file).parts.index("hesspec") + 1 :]
        covered.setdefault("/".join(below[:-1]) or ".", Counter()).update(found["summary"])
    low = []
    for part, count in sorted(covered.items()):
        # Both counts are zero of a part whose files have no statements.
        total = count["num_statements"] + count["num_branches"]
        share = (count["covered_lines"] + count["covered_branches"]) / total if total else 1.0
        print(
            f"{part:34}{share:7.1%}   lines {count['covered_lines']} of {count['num_statements']}, "
            f"branches {count['covered_branches']} of {count['num_branches']}"
        )
        if share < LEAST:
            low.append(f"{part} ({share:.1%})")
    if low:
        sys.exit(f"Less than {LEAST:.0%} of the lines and branches are covered by tests in {', '.join(low)}.")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
