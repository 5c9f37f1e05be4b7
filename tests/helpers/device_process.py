"""Scripts on a pretended device, in processes of their own: it has to be registered before the first backward pass."""

import json
import os
import subprocess
import sys
from pathlib import Path

HELPERS = Path(__file__).parent
SCRIPTS = HELPERS.parent / "scripts"


def printed_rows(script, *arguments):
    """Run a script of the tests, and return the rows of JSON that it prints."""
    ended = subprocess.run(  # noqa: S603 - this very Python and a script of the tests
        [sys.executable, SCRIPTS / script, *arguments],
        capture_output=True,
        text=True,
        check=False,
        timeout=1000,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(HELPERS), *sys.path])},
    )
    assert ended.returncode == 0, ended.stderr
    return json.loads(ended.stdout)
