"""Numbers whose interval says nothing are not shown; a sentence says what would tighten them."""

from dataclasses import replace

import numpy as np
import pytest
import torch

import hesspec
from hesspec.spectra.informative import hints, negative_text, trace_text


def spectrum(values, steps=20, **attributes):
    found = hesspec.spectrum(torch.diag(torch.as_tensor(np.asarray(values, float))), steps=steps)
    return replace(found, attributes={**found.attributes, **attributes})


# Half of the eigenvalues are zero, the others of either sign: few are told from zero by ten steps.
TWO_SIDED = np.concatenate([np.zeros(200), 0.001 * np.random.default_rng(0).normal(size=200), [-5.0, 6.0]])
POSITIVE = np.concatenate([np.zeros(300), np.linspace(0.1, 1, 300), [9.0]])


def test_a_share_that_is_not_known_is_not_shown():
    found = spectrum(TWO_SIDED, steps=10)
    assert found.num_negative.upper - found.num_negative.lower > found.dimension / 2
    assert negative_text(found) is None
    assert "negative eigenvalues" not in found.summary()
    assert "more steps or probes (--steps, --probes) tighten it" in found.summary()["not known"]


def test_a_share_that_is_known_is_shown():
    found = spectrum(np.linspace(-1, 3, 50), steps=50)
    assert negative_text(found) == "26%"
    assert "not known" not in found.summary()


def test_a_positive_matrix_has_no_negative_eigenvalues_by_construction():
    found = spectrum(POSITIVE, positive_semidefinite=True)
    assert found.summary()["negative eigenvalues"] == "none (positive semi-definite)"
    assert found.num_negative == (0, 0, 0)
    assert negative_text(spectrum(POSITIVE)) != "none (positive semi-definite)"


def test_a_claim_that_the_eigenvalues_contradict_is_not_believed():
    found = spectrum([*POSITIVE, -8.0], positive_semidefinite=True)
    assert not found.is_positive
    assert found.num_negative.lower >= 1


def test_a_trace_that_is_not_known_is_not_shown_but_how_to_know_it():
    values = np.concatenate([np.random.default_rng(0).normal(0.001, 0.1, 396), [-6.0, 5.0, 7.0, -6.0]])
    found = spectrum(values, steps=8)
    assert 2 * found.trace_standard_error > abs(found.trace)
    assert trace_text(found) is None
    assert "measure it with trace=0.05 (hesspec measure --trace 5%)" in " ".join(hints(found))


@pytest.mark.parametrize("error", [0.001, 0.4])
def test_a_trace_that_cancels_is_known_if_it_is_small_beside_what_cancels(error):
    """A sum of 200 absolute values of 1: an interval of 2 error is short if it is below 5% of them."""
    found = spectrum(np.tile([1.0, -1.0], 100), steps=20)
    found = replace(found, xtrace=0.0, xtrace_error=error * 20, xtrace_matvecs=16)
    assert (trace_text(found) is None) == (error == 0.4)
    if error == 0.4:
        assert "the eigenvalues nearly cancel" in " ".join(hints(found))


def test_a_wanted_error_that_was_not_reached_is_said():
    found = replace(spectrum(POSITIVE), xtrace=170.0, xtrace_error=17.0, xtrace_matvecs=1008)
    found = replace(found, attributes={**found.attributes, "wanted_trace_error": 0.02})
    assert any("known to 0.2 of its size instead of 0.02 after 1,008 products" in hint for hint in hints(found))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_the_trace_of_an_exact_spectrum_has_the_error_of_its_eigenvalues(dtype):
    """They are rounded, and the text states no more digits than are right."""
    generator = np.random.default_rng(0)
    rotation = np.linalg.qr(generator.normal(size=(30, 30)))[0]
    values = np.linspace(-1.0, 3.0, 30) / 3
    given = ((rotation * values) @ rotation.T).astype(dtype)
    found = hesspec.spectrum((given + given.T) / dtype(2), steps=60)
    assert found.exact
    truth = values.sum()
    assert abs(found.trace - truth) <= found.trace_error <= 1e-3 * abs(truth)
    value, error = trace_text(found).replace("\u2212", "-").split(" ± ")
    assert abs(float(value) - truth) <= float(error)
