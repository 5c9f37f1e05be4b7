"""Commands say what to do next, and it works."""

import re
import shlex


def test_after_measuring_comes_the_page(hesspec, here):
    options = ("own:linear", "--data", "digits", "--samples-per-class", "2", "--out", "my spectra")
    for command in (("measure", *options, "--steps", "4", "--matrix", "g"), ("structure", *options, "--steps", "4")):
        result = hesspec(*command)
        assert result.exit_code == 0, result.output
        (line,) = re.findall("^Next: hesspec (.*) makes a page .*$", result.stderr, re.MULTILINE)
        assert "Next:" not in result.stdout
    assert hesspec(*shlex.split(line)).exit_code == 0
    assert (here / "my spectra" / "report.html").exists()
