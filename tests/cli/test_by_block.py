"""`hesspec measure --by`: files and tables of diagonal blocks."""

import numpy as np
import pytest

import hesspec as package


def test_blocks_are_measured_saved_and_shown(hesspec, measured, here):
    result = measured("--by", "parameter", "--matrix", "g", "--matrix", "hess")
    assert "1.weight" in result.stdout
    assert [line for line in result.stdout.splitlines() if line.startswith("Saved")] == [
        f"Saved spectra/initialisation-train-{matrix}-by-parameter.nc" for matrix in ("GaussNewton", "Hessian")
    ]
    found = package.load(here / "spectra" / "initialisation-train-Hessian-by-parameter.nc")
    assert list(found) == ["1.weight", "1.bias"]
    assert found.attributes["dataset"] == "digits"
    # For a linear network the Hessian of cross-entropy is G.
    part = package.load(here / "spectra" / "initialisation-train-GaussNewton-by-parameter.nc")
    np.testing.assert_allclose(found.largest, part.largest, rtol=1e-9)
    again = measured("--by", "parameter", "--matrix", "hess")
    assert "Already measured" in again.stderr
    assert hesspec("show", *sorted((here / "spectra").iterdir())).exit_code == 0
    assert hesspec("report", "spectra").exit_code == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--by", "layers"], "There is no kind of blocks 'layers'; did you mean 'layer'?"),
        (["--by", "layer", "--trace", "2%"], "--by layer cannot be combined with --trace"),
        (["--by", "head"], "has no attention module of a known form"),
    ],
)
def test_what_does_not_fit_is_refused(hesspec, here, options, message):
    result = hesspec("measure", "own:linear", "--data", "digits", "--samples-per-class", 2, "--steps", 4, *options)
    assert result.exit_code == 1
    assert message in " ".join(result.stderr.split())
