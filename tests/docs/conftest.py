"""What the tests of pages share."""

import sys
from pathlib import Path

# `pages` is imported by name.
sys.path.insert(0, str(Path(__file__).parent))
