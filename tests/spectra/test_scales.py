"""Everything that a spectrum can be asked for, at any scale: known, or said to be beyond floating point."""

import dataclasses
import io
import warnings

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from made_spectra import OUTLIERS, make_spectrum
from random_operators import Diagonal

import hesspec
from hesspec.backend.numbers import LARGEST_EIGENVALUE
from hesspec.plot import KINDS
from hesspec.spectra.numbers import numbers_of

RNG = np.random.default_rng(0)
OPERATORS = {
    "normal": (RNG.standard_normal(60), {"steps": 12}),
    "probes": (RNG.standard_normal(60), {"steps": 12, "probes": 2}),
    "spiked": (np.r_[0.1 * RNG.standard_normal(56), 3, 4, -5, 6], {"steps": 20}),
    "exact": (RNG.standard_normal(20), {"steps": 20}),
    "constant": (np.full(60, -1.0), {"steps": 12}),
    "zero": (np.zeros(60), {"steps": 12}),
    "one": (np.ones(1), {"steps": 1}),
    "one step": (RNG.standard_normal(60), {"steps": 1}),
    "graded": (np.geomspace(1, 1e-25, 60), {"steps": 20}),
}
SCALES = [(torch.float64, scale) for scale in (1e-320, 1e-308, 1e-300, 1e-30, 1e30, 1e300, 1e307)]
SCALES += [(torch.float32, scale) for scale in (1e-38, 1e-30, 1e30, 1e38)]


def measured(name, dtype, scale):
    values, options = OPERATORS[name]
    values = values / (np.abs(values).max() or 1.0)
    return hesspec.spectrum(Diagonal(scale * values, dtype), **options)


@pytest.fixture(autouse=True)
def errors():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


@pytest.mark.parametrize(("dtype", "scale"), SCALES)
def test_everything_is_known_or_said_at_any_scale(dtype, scale):
    for name in OPERATORS:
        spectrum = measured(name, dtype, scale)
        numbers = [
            *(spectrum.nodes, spectrum.weights, spectrum.outlier_p_values, spectrum.bulk_edges, spectrum.bulk_range),
            *(spectrum.effective_rank, spectrum.wasserstein_bound, spectrum.kolmogorov_smirnov_bound),
            *((each.value, each.lower, each.upper) for each in (spectrum.num_negative, *spectrum.bulk_edge_estimates)),
            *spectrum.expectation(np.sign),
        ]
        datasets = [spectrum.cdf(), spectrum.cdf_bracket(), spectrum.log_density(), spectrum.to_dataset()]
        numbers += [part.to_numpy() for each in datasets for part in each.variables.values() if part.dtype.kind == "f"]
        assert all(np.isfinite(number).all() for number in numbers), name
        # These may be beyond float64, and are then infinite.
        beyond = [spectrum.trace, spectrum.trace_standard_error, *(spectrum.moment(order) for order in range(4))]
        beyond += [part.to_numpy() for part in spectrum.density().variables.values()]
        beyond += [number for number in numbers_of(spectrum).values() if isinstance(number, float)]
        assert not any(np.isnan(number).any() for number in beyond), name
        spectrum.to_dataframe()
        texts = [repr(spectrum), spectrum._repr_html_(), repr(hesspec.compare(spectrum, spectrum))]
        for text in texts:
            assert not {"inf", "nan"} & set(text.replace(",", " ").replace("<", " ").replace(">", " ").split()), name


@pytest.mark.parametrize(
    ("name", "dtype", "scale"),
    [
        ("spiked", torch.float64, 1e-308),
        ("spiked", torch.float64, 1e300),
        ("spiked", torch.float64, 1e270),
        ("spiked", torch.float32, 1e-38),
        ("zero", torch.float64, 1.0),
    ],
)
def test_figures_are_drawn_or_say_what_they_hold(name, dtype, scale):
    spectrum = measured(name, dtype, scale)
    for kind in KINDS:
        if spectrum.norm and not 1e-280 < scale < 1e280:
            with pytest.raises(
                ValueError, match=r"figures hold from 1e-280 to 1e\+280.*Plot the spectrum of a multiple"
            ):
                spectrum.plot(kind)
            continue
        figure = spectrum.plot(kind)
        figure.savefig(io.BytesIO(), format="svg")
        plt.close(figure)


def test_eigenvalues_near_the_largest_number_are_refused():
    values = np.array([1.0, 0.5, -0.9]) * 1.5 * LARGEST_EIGENVALUE
    with pytest.raises(hesspec.NonFiniteError, match="within a factor of 16 of it, where their differences do"):
        hesspec.spectrum(Diagonal(values, torch.float64), steps=3)
    spectrum = hesspec.spectrum(Diagonal(values / 2, torch.float64), steps=3)
    assert np.isfinite(np.ptp(spectrum.nodes))


@pytest.mark.parametrize("field", ["eigenvalue_weights", "ritz_weights"])
def test_weights_beyond_one_are_refused(tmp_path, field):
    changed(field, 1e308).save(tmp_path / "a.nc")
    with pytest.raises(ValueError, match=rf"Its {field} has a weight of 1e\+308, but all weights sum to 1"):
        hesspec.load(tmp_path / "a.nc")


def test_such_weights_of_a_bulk_are_not_drawn():
    with pytest.raises(ValueError, match=r"A weight is 1e\+308, but all weights sum to 1: it cannot be drawn"):
        changed("bulk_weights", 1e308).plot()


@pytest.mark.parametrize("field", ["eigenvalues", "bulk_nodes", "ritz_values", "error_bounds", "ritz_bounds"])
def test_a_file_with_numbers_near_the_largest_is_shown(tmp_path, field):
    changed(field, np.finfo(float).max).save(tmp_path / "a.nc")
    spectrum = hesspec.load(tmp_path / "a.nc")
    shown = repr(spectrum) + spectrum._repr_html_()
    assert "inf" not in shown.replace("<", " ").split()
    if field in ("eigenvalues", "bulk_nodes"):
        with pytest.raises(ValueError, match=r"The largest \|eigenvalue\| is 1\.8e\+308, and figures hold"):
            spectrum.plot()


def changed(field, value):
    """A spectrum with another value in the first place of a field, as in a file from someone else."""
    spectrum = make_spectrum(OUTLIERS)
    numbers = getattr(spectrum, field).copy()
    numbers[0] = value
    return dataclasses.replace(spectrum, **{field: numbers})
